"""What the relay counts, in plain integers, and one look at it as values.

Nothing here knows a metrics library: the hot path adds to integers, and whoever wants to show them
(Prometheus, the admin service) reads a `Snapshot` from the side. All on the event loop's thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Verdict
from relay_service.telemetry.histogram import LogHistogram

OTHER = "other"
"""Counts for the methods without counters of their own."""

METHOD_CHARS_MAX = 256

# Reading an enum's member off its class costs eight times as much as a global.
_FATE_OK, _FATE_ERROR, _FATE_REFUSED = Fate.OK, Fate.ERROR, Fate.REFUSED
_UNIMPLEMENTED = Code.UNIMPLEMENTED
_CODES = tuple(Code)


class MethodCounters:
    """The counters of one method."""

    __slots__ = ("attempts", "codes", "hedges", "latency", "received", "retries")

    def __init__(self) -> None:
        self.received = 0
        self.codes = [0] * len(_CODES)
        self.attempts = 0
        self.retries = 0
        self.hedges = 0
        self.latency = LogHistogram()


@dataclass(frozen=True, slots=True)
class CallTotals:
    """The law of conservation (I7): received = ok + errors + refused + cancelled + in_flight."""

    received: int
    ok: int
    errors: int
    refused: int
    cancelled: int
    in_flight: int
    by_reason: Mapping[str, int]
    """Refusals and failures by the relay's reason for them."""


@dataclass(frozen=True, slots=True)
class MethodStats:
    """Rate, errors and duration of one method; ``received - sum(by_code)`` calls are in flight."""

    method: str
    received: int
    by_code: Mapping[str, int]
    """By the name of the status code the caller got; only codes that occurred."""
    attempts: int
    """First attempts, retries and hedges."""
    retries: int
    latency: LogHistogram
    """Of the calls that ended OK or with an error; refusals would flatter it. Live, not a copy."""
    hedges: int = 0

    @property
    def ok(self) -> int:
        """Calls that ended with OK."""
        return self.by_code.get("OK", 0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at all counters, which run from the start of the process."""

    calls: CallTotals
    methods: tuple[MethodStats, ...]
    queue_wait: LogHistogram
    """Of the calls that had to wait for a worker and got one. Live, not a copy."""


class CallMetrics:
    """All counters.

    State: the totals, the reasons, and the counters of up to ``max_methods`` methods. Callers may invent
    method names, so a method gets counters of its own only with the first call that went to an upstream
    and did not end with UNIMPLEMENTED; until then, and past the limit, it counts as `OTHER`.
    """

    def __init__(self, max_methods: int) -> None:
        self._max_methods = max_methods
        self._methods: dict[str, MethodCounters] = {}
        self._other = MethodCounters()
        self._received = 0
        self._ok = 0
        self._errors = 0
        self._refused = 0
        self._cancelled = 0
        self._reasons: dict[Reason, int] = {}
        self.queue_wait = LogHistogram()

    def started(self, method: str) -> MethodCounters:
        """Count a call in; hand the result back to `finished`."""
        counters = self._methods.get(method, self._other)
        self._received += 1
        counters.received += 1
        return counters

    def finished(self, method: str, counters: MethodCounters, verdict: Verdict, latency_s: float) -> None:
        """Count a call out, exactly once."""
        fate = verdict.fate
        if counters is self._other:
            counters = self._settle(method, verdict)
        counters.codes[verdict.code] += 1
        attempts = verdict.attempts
        counters.attempts += attempts
        if attempts > 1:
            counters.retries += verdict.retries
            counters.hedges += verdict.hedges
        if verdict.reason is not None:
            self._reasons[verdict.reason] = self._reasons.get(verdict.reason, 0) + 1
        if fate is _FATE_OK:
            self._ok += 1
            counters.latency.record(latency_s)
        elif fate is _FATE_ERROR:
            self._errors += 1
            counters.latency.record(latency_s)
        elif fate is _FATE_REFUSED:
            self._refused += 1
        else:
            self._cancelled += 1

    def snapshot(self, method_prefix: str = "") -> Snapshot:
        """All counters now; ``method_prefix`` limits the methods, not the totals."""
        ended = self._ok + self._errors + self._refused + self._cancelled
        calls = CallTotals(
            received=self._received,
            ok=self._ok,
            errors=self._errors,
            refused=self._refused,
            cancelled=self._cancelled,
            in_flight=self._received - ended,
            by_reason={reason.name: count for reason, count in self._reasons.items()},
        )
        rows = [*sorted(self._methods.items()), (OTHER, self._other)]
        methods = tuple(
            _method_stats(method, counters)
            for method, counters in rows
            if counters.received and method.startswith(method_prefix)
        )
        return Snapshot(calls, methods, self.queue_wait)

    def _settle(self, method: str, verdict: Verdict) -> MethodCounters:
        """The counters that a call counted as `OTHER` so far ends under."""
        counters = self._methods.get(method)
        if counters is None:
            if not self._deserves_counters(method, verdict):
                return self._other
            counters = self._methods[method] = MethodCounters()
        self._other.received -= 1
        counters.received += 1
        return counters

    def _deserves_counters(self, method: str, verdict: Verdict) -> bool:
        return (
            len(self._methods) < self._max_methods
            and len(method) <= METHOD_CHARS_MAX
            and verdict.attempts > 0
            and verdict.code is not _UNIMPLEMENTED
        )


def _method_stats(method: str, counters: MethodCounters) -> MethodStats:
    return MethodStats(
        method=method,
        received=counters.received,
        by_code={code.name: counters.codes[code] for code in _CODES if counters.codes[code]},
        attempts=counters.attempts,
        retries=counters.retries,
        hedges=counters.hedges,
        latency=counters.latency,
    )
