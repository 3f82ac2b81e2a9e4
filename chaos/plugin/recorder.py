"""Records the calls that a test makes with its own stubs, and asserts the promises on the record.

A channel of the recorder is an ordinary channel with an interceptor: unary calls are recorded, streams pass.
Calls that carry the same ``idempotency-key`` are tries of one operation, as a client's own retries are.
"""

import asyncio
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from chaos import invariants
from chaos.client import CHANNEL_OPTIONS, outcome_of, reason_of
from chaos.findings import Finding, Verdict
from chaos.history import CallRecord, FaultWindow, HistoryWriter, LedgerEntry, RunHead

KEY = "idempotency-key"
TRACEPARENT = "traceparent"
PHASE = "test"
OFFENDERS_TOLD = 5


class Recorder:
    """The history of one test. Its channels may be used from several threads.

    State: the calls and fault windows so far, and how often each operation was tried.
    """

    def __init__(self, seed: int) -> None:
        self._began_s = time.monotonic()
        self._lock = threading.Lock()
        self._rng = random.Random(f"{seed}/trace-ids")
        self._ids = itertools.count(1)
        self._calls: list[CallRecord] = []
        self._faults: list[FaultWindow] = []
        self._tries: Counter[str] = Counter()

    def now(self) -> float:
        """Seconds since the record began."""
        return time.monotonic() - self._began_s

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        """The calls that have ended."""
        with self._lock:
            return tuple(self._calls)

    @property
    def faults(self) -> tuple[FaultWindow, ...]:
        """What was broken on purpose, and when."""
        with self._lock:
            return tuple(self._faults)

    def channel(self, address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """A channel to ``address`` whose unary calls are recorded. It retries nothing by itself."""
        plain = grpc.insecure_channel(address, options=(*CHANNEL_OPTIONS, *options))
        return grpc.intercept_channel(plain, _Interceptor(self))

    def aio_channel(self, address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
        """The same for asyncio."""
        return grpc.aio.insecure_channel(
            address, options=(*CHANNEL_OPTIONS, *options), interceptors=[_AioInterceptor(self)]
        )

    def add_fault(self, fault: FaultWindow) -> None:
        """Note that something was broken."""
        with self._lock:
            self._faults.append(fault)

    def write(self, path: Path, head: RunHead) -> None:
        """The record as a history file, which the lab's other tools read."""
        with HistoryWriter(path, head) as writer:
            for call in self.calls:
                writer.add(call)
            for fault in self.faults:
                writer.add(fault)

    def begin(self, method: str, metadata: Mapping[str, str | bytes], timeout_s: float | None) -> "Begun":
        """A call is about to be sent."""
        with self._lock:
            number = next(self._ids)
            trace_id, span_id = self._rng.getrandbits(128) or 1, self._rng.getrandbits(64) or 1
            key = _text(metadata.get(KEY))
            operation = key or f"{method.rpartition('/')[2]}-{number:06d}"
            self._tries[operation] += 1
            client_try = self._tries[operation]
        traceparent = _text(metadata.get(TRACEPARENT)) or f"00-{trace_id:032x}-{span_id:016x}-00"
        return Begun(self, number, method, operation, key, client_try, traceparent, timeout_s)

    def add(self, record: CallRecord) -> None:
        """A call has ended."""
        with self._lock:
            self._calls.append(record)

    def assert_answered_in_time(self, slack_s: float = invariants.DEADLINE_SLACK_S) -> Finding:
        """Every call with a deadline was answered by it, plus ``slack_s``."""
        __tracebackhide__ = True
        return held(invariants.answered_in_time(self.calls, slack_s))

    def assert_success_at_least(self, share: float, minimum: int = 1) -> Finding:
        """At least this share of the operations ended well, the last try of each counting."""
        __tracebackhide__ = True
        finals = invariants.final_tries(self.calls)
        statement = f"at least {share:.0%} of the operations succeed"
        if len(finals) < minimum or not finals:
            detail = f"only {len(finals)} operations, {max(1, minimum)} are needed"
            return held(Finding("test", statement, Verdict.COULD_NOT_TELL, detail))
        good = sum(call.ok for call in finals)
        verdict = Verdict.HELD if good >= share * len(finals) else Verdict.BROKEN
        codes = Counter(call.code for call in finals)
        return held(Finding("test", statement, verdict, f"{good} of {len(finals)}: {dict(codes)}"))

    def assert_refusals_are_useful(self, fast_s: float = 0.5, minimum: int = 1) -> Finding:
        """What was shed was told so: RESOURCE_EXHAUSTED, a reason, when to return, within ``fast_s``."""
        __tracebackhide__ = True
        return held(invariants.refusals_are_useful(self.calls, fast_s, minimum))

    def assert_all_accounted_for(self, operations: int) -> Finding:
        """So many operations were begun, and every one ended, with a trace id and refusals with a reason."""
        __tracebackhide__ = True
        return held(invariants.all_accounted_for(operations, invariants.final_tries(self.calls)))

    def assert_at_most_one_effect(self, effects: Iterable[str]) -> Finding:
        """No operation is twice among the effects that the service's own books hold, named by their keys."""
        __tracebackhide__ = True
        return held(invariants.at_most_one_effect(_ledger(effects)))

    def assert_answers_match_effects(self, effects: Iterable[str]) -> Finding:
        """OK means that the effect is in the service's books, a definite refusal that it is not.

        Judged are the methods that were called with an ``idempotency-key``: those have an effect to name.
        """
        __tracebackhide__ = True
        calls = self.calls
        methods = {call.method for call in calls if call.key is not None}
        return held(invariants.answers_match_ledger(calls, _ledger(effects), methods))

    def assert_retries_within(self, ratio: float, burst: float, attempts: int | None = None) -> Finding:
        """The relay's attempts beyond the first are at most ``ratio`` for each call, and ``burst``.

        ``attempts`` is how many the service saw; without it the relay's own count is taken.
        """
        __tracebackhide__ = True
        calls = self.calls
        counted = sum(call.attempts or 0 for call in calls) if attempts is None else attempts
        return held(invariants.retries_within_budget(counted, len(calls), ratio, burst))


class Begun:
    """A call under way."""

    def __init__(  # noqa: PLR0917 (made in one place, from the parts of a call)
        self,
        recorder: Recorder,
        number: int,
        method: str,
        operation: str,
        key: str | None,
        client_try: int,
        traceparent: str,
        timeout_s: float | None,
    ) -> None:
        self._recorder = recorder
        self._number = number
        self._method = method.removeprefix("/")
        self._operation = operation
        self._key = key
        self._client_try = client_try
        self._timeout_s = timeout_s
        self._sent_s = recorder.now()
        self.traceparent = traceparent

    def end(self, code: str, message: str, trailers: Mapping[str, str | bytes]) -> None:
        """It ended so."""
        self._recorder.add(
            CallRecord(
                id=self._number,
                phase=PHASE,
                operation=self._operation,
                method=self._method,
                intended_s=self._sent_s,
                sent_s=self._sent_s,
                done_s=self._recorder.now(),
                code=code,
                outcome=outcome_of(code, trailers),
                trace_id=self.traceparent.split("-")[1],
                timeout_s=self._timeout_s,
                key=self._key,
                client_try=self._client_try,
                message=message[:200] or None,
                reason=reason_of(trailers),
                attempts=_number(trailers.get("relay-attempts")),
                origin=_text(trailers.get("relay-origin")),
                decision=_text(trailers.get("relay-decision")),
                pushback_ms=_number(trailers.get("grpc-retry-pushback-ms")),
                idempotency=_text(trailers.get("idempotency-status")),
            )
        )


def held(finding: Finding) -> Finding:
    """The finding, or an AssertionError that tells what was seen. Too little to tell is no proof: it "
    "fails."""
    __tracebackhide__ = True
    if finding.verdict is Verdict.HELD:
        return finding
    lines = [f"{finding.verdict.words}: {finding.statement}", f"  seen: {finding.detail}"]
    lines += [
        f"  call {each.call_id} ({each.operation}, trace {each.trace_id}): {each.what}"
        for each in finding.offenders[:OFFENDERS_TOLD]
    ]
    if finding.offender_count > OFFENDERS_TOLD:
        lines.append(f"  and {finding.offender_count - OFFENDERS_TOLD} more")
    raise AssertionError("\n".join(lines))


class _Details(grpc.ClientCallDetails):
    """A call's details with a traceparent added."""

    def __init__(self, given: Any, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self.method = given.method
        self.timeout = given.timeout
        self.metadata = metadata
        self.credentials = given.credentials
        self.wait_for_ready = getattr(given, "wait_for_ready", None)
        self.compression = getattr(given, "compression", None)


class _Interceptor(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = tuple(details.metadata or ())
        begun = self._recorder.begin(details.method, dict(metadata), details.timeout)
        call = continuation(_Details(details, _with_trace(metadata, begun)), request)
        call.add_done_callback(lambda ended: begun.end(*_ending(ended)))
        return call


class _AioInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        metadata = tuple(details.metadata or ())
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        begun = self._recorder.begin(method, dict(metadata), details.timeout)
        traced = details._replace(metadata=grpc.aio.Metadata(*_with_trace(metadata, begun)))
        call = await continuation(traced, request)
        try:
            code = await call.code()
        except asyncio.CancelledError:
            # Waiting here stands between the caller and its call, so its cancellation must be handed on.
            call.cancel()
            begun.end("CANCELLED", "", {})
            raise
        begun.end(code.name, await call.details() or "", dict(await call.trailing_metadata() or ()))
        return call


def _with_trace(metadata: Sequence[tuple[str, Any]], begun: Begun) -> tuple[tuple[str, Any], ...]:
    kept = tuple((name, value) for name, value in metadata if name != TRACEPARENT)
    return (*kept, (TRACEPARENT, begun.traceparent))


def _ending(call: Any) -> tuple[str, str, dict[str, str | bytes]]:
    return call.code().name, call.details() or "", dict(call.trailing_metadata() or ())


def _ledger(effects: Iterable[str]) -> Collection[LedgerEntry]:
    return [LedgerEntry(number, effect, effect) for number, effect in enumerate(effects, start=1)]


def _number(value: str | bytes | None) -> int | None:
    text = _text(value)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
