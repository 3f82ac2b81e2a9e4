"""What surrounds every call of the payment service: its span, its faults, its count, its status.

A handler's body runs inside ``Calls.attend`` and raises; only here do errors become a gRPC status.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import grpc
import structlog

from downstream_service.book import KeyReusedError, Posted
from downstream_service.capacity import QueueFullError
from downstream_service.errors import (
    PUSHBACK_TRAILER,
    CallFailedError,
    InvalidInputError,
    Trailers,
    invalid_argument,
    refused,
    status_of,
)
from downstream_service.fault_board import FaultBoard
from downstream_service.fault_input import FAULT_METADATA_KEY, faults_of_call
from downstream_service.faults import Crash, Failure, Fault, Hang, Moment
from downstream_service.ledger import LedgerClosingError, LedgerUnavailableError
from downstream_service.telemetry import CallSpan, Telemetry

KEY_METADATA_KEY: Final = "idempotency-key"
KEY_LENGTH_MAX: Final = 255
STATUS_TRAILER: Final = "idempotency-status"
CRASH_EXIT_STATUS: Final = 70

Context = grpc.aio.ServicerContext[Any, Any]
AfterEffect = Callable[[], Awaitable[None]]
FaultReader = Callable[[Sequence[str]], tuple[Fault, ...]]


def no_faults_of_call(values: Sequence[str]) -> tuple[Fault, ...]:  # noqa: ARG001 (the signature of a FaultReader)
    """Read no fault from a call's metadata, whatever it brings."""
    return ()


def checked_key(key: str, field: str) -> str:
    """Return a key that is empty or well formed; raises ``InvalidInputError`` for ``field`` otherwise."""
    if len(key) > KEY_LENGTH_MAX or not (key.isascii() and key.isprintable()):
        raise InvalidInputError(field, f"must be 1 to {KEY_LENGTH_MAX} printable ASCII characters")
    return key


class Call:
    """One call under way, for its handler: ``key`` is the caller's, ``trailers`` go out with an OK."""

    def __init__(self, span: CallSpan, key: str, after_effect: AfterEffect) -> None:
        self._span = span
        self._after_effect = after_effect
        self.key = key
        self.trailers: Trailers = ()

    def posted(self, posted: Posted) -> None:
        """Tell the caller (if it sent a key) and the trace what became of the effect."""
        if posted.replayed:
            self._span.replayed()
        else:
            self._span.posted(posted.sequence)
        if self.key:
            self.trailers = ((STATUS_TRAILER, "replayed" if posted.replayed else "executed"),)

    async def first_message_sent(self) -> None:
        """Let a fault strike that waits for the effect; for calls answered by a stream."""
        await self._after_effect()


class Calls:
    """Attends calls.

    Mutable state: three counts, and the event that tells when one of them is zero.
    """

    def __init__(
        self,
        board: FaultBoard,
        telemetry: Telemetry,
        log: structlog.typing.FilteringBoundLogger,
        die: Callable[[int], NoReturn],
        own_faults: FaultReader = faults_of_call,
    ) -> None:
        """``die`` ends the process at once; ``own_faults`` reads the faults a call brings in its metadata."""
        self._board = board
        self._telemetry = telemetry
        self._log = log
        self._die = die
        self._own_faults = own_faults
        self.seen = 0
        self.in_flight = 0
        self.cancelled = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def attend(self, method: str, context: Context) -> AsyncIterator[Call]:
        """Run a handler's body; ends the call with ``context.abort`` if it raises."""
        metadata = tuple(context.invocation_metadata() or ())
        span = self._telemetry.start(method, {k: v for k, v in metadata if isinstance(v, str)})
        self._begun()
        try:
            async with self._struck(method, metadata, span) as after_effect:
                call = Call(span, _key_of(metadata), after_effect)
                yield call
            # Only now, or an answer that a fault loses would still tell that it was executed.
            context.set_trailing_metadata(call.trailers)
        except asyncio.CancelledError:
            await self._cancelled(context, span)
            raise
        except Exception as error:  # noqa: BLE001 (an exception that leaves a handler loses its code and trailers)
            failed = self._failure_of(error, method, span)
            span.end(failed.code, failed.message)
            await context.abort(failed.code, failed.message, failed.trailers)
        else:
            span.end(grpc.StatusCode.OK)
        finally:
            self._ended()

    async def wait_idle(self) -> None:
        """Wait until no call is in flight; put a bound around it."""
        await self._idle.wait()

    def _begun(self) -> None:
        self.seen += 1
        self.in_flight += 1
        self._idle.clear()

    def _ended(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    @asynccontextmanager
    async def _struck(
        self, method: str, metadata: Sequence[tuple[str, str | bytes]], span: CallSpan
    ) -> AsyncIterator[AfterEffect]:
        """Draw the call's faults, let them strike around the body; yields what strikes after the effect."""
        strike = self._board.draw(method, self._own_faults(_values(metadata, FAULT_METADATA_KEY)))
        lifted = self._board.lifted
        if strike.names:
            span.struck(strike.names)
            self._log.debug("fault", rpc_method=method, fault=strike.names, **span.ids())
        if strike.latency_s > 0.0:
            await asyncio.sleep(strike.latency_s)

        async def after_effect() -> None:
            await self._meet(strike.ending, Moment.AFTER_EFFECT, lifted, span)

        await self._meet(strike.ending, Moment.BEFORE_EFFECT, lifted, span)
        yield after_effect
        await after_effect()

    async def _meet(
        self, ending: Failure | Hang | Crash | None, moment: Moment, lifted: asyncio.Event, span: CallSpan
    ) -> None:
        if ending is None or ending.moment is not moment:
            return
        match ending:
            case Failure(code=code, message=message, retry_pushback_ms=pushback_ms):
                trailers = () if pushback_ms is None else ((PUSHBACK_TRAILER, str(pushback_ms)),)
                raise CallFailedError(status_of(code), message, trailers)
            case Hang():
                await lifted.wait()
                raise CallFailedError(grpc.StatusCode.UNAVAILABLE, "the call hung until the fault was lifted")
            case Crash():
                self._log.warning("crash", reason="a fault asked for it", **span.ids())
                self._die(CRASH_EXIT_STATUS)

    async def _cancelled(self, context: Context, span: CallSpan) -> None:
        task = asyncio.current_task()
        if task is None or task.cancelling() == 0:
            # Not the caller's doing: something this call waited for was cancelled. A CancelledError that
            # leaves the handler sends no status, and the caller would wait to its deadline.
            span.end(grpc.StatusCode.UNAVAILABLE, "interrupted")
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the service interrupted this call")
        self.cancelled += 1
        # None without a deadline, although the stubs say otherwise.
        remaining_s: Any = context.time_remaining()
        span.end(grpc.StatusCode.DEADLINE_EXCEEDED if remaining_s == 0.0 else grpc.StatusCode.CANCELLED)

    def _failure_of(self, error: Exception, method: str, span: CallSpan) -> CallFailedError:
        match error:
            case CallFailedError():
                return error
            case InvalidInputError():
                return invalid_argument(error)
            case KeyReusedError():
                return refused(grpc.StatusCode.FAILED_PRECONDITION, str(error), "IDEMPOTENCY_KEY_REUSED")
            case QueueFullError():
                message = "all workers are busy and the queue is full"
                return refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message, "QUEUE_FULL")
            case LedgerUnavailableError():
                return refused(grpc.StatusCode.UNAVAILABLE, str(error), "LEDGER_UNAVAILABLE")
            case LedgerClosingError():
                return refused(grpc.StatusCode.UNAVAILABLE, "the service is shutting down", "DRAINING")
        self._log.error("unexpected", rpc_method=method, exc_info=error, **span.ids())
        return CallFailedError(
            grpc.StatusCode.INTERNAL, "an unexpected error; the service's log has the details"
        )


def _values(metadata: Sequence[tuple[str, str | bytes]], name: str) -> list[str]:
    return [value for key, value in metadata if key == name and isinstance(value, str)]


def _key_of(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    match _values(metadata, KEY_METADATA_KEY):
        case []:
            return ""
        case [key] if key:
            return checked_key(key, KEY_METADATA_KEY)
        case [_]:
            raise InvalidInputError(KEY_METADATA_KEY, "must not be empty")
        case keys:
            raise InvalidInputError(KEY_METADATA_KEY, f"must come once, not {len(keys)} times")
