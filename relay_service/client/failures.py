"""What an exception says about an attempt, and what the caller gets when a call has failed for good."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
import grpc.aio

from relay_service import contract
from relay_service.core.evidence import Delivery
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Verdict

NEVER_SENT = "failed to connect to all addresses"
"""How gRPC's core begins the message of a call for which there was no connection."""

MADE_LOCALLY = frozenset(
    {
        Code.CANCELLED,
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
    }
)
"""Codes that gRPC's core also gives by itself, when a connection breaks or a message is too large."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed, in the words that the policies judge by.

    ``delivery`` is what is known of it: NOT_SENT promises that nothing was executed, ANSWERED that the
    service itself said ``code``; UNANSWERED is all that is not known for certain. ``pushback_s`` is when the
    service said to come back, negative for never, None when it said nothing.
    """

    code: Code
    delivery: Delivery = Delivery.UNANSWERED
    message: str = ""
    pushback_s: float | None = None


FailureOf = Callable[[Exception], Failure | None]
"""Reads an exception; None when it is not about the call (a bug, say) and is to be raised at once."""


class CallFailedError(grpc.aio.AioRpcError):
    """A call that was ended here and not by the service: refused, past its deadline, or of unknown outcome.

    An `grpc.aio.AioRpcError`, so that whoever handles those handles it. ``verdict`` says all: the reason,
    how many attempts were made, and whether an effect may exist (``verdict.outcome``).
    """

    def __init__(self, verdict: Verdict) -> None:
        code = next(code for code in grpc.StatusCode if code.value[0] == verdict.code)
        nothing = grpc.aio.Metadata()
        super().__init__(code, nothing, nothing, verdict.message)
        self.verdict = verdict

    @property
    def reason(self) -> Reason | None:
        """Why it was ended."""
        return self.verdict.reason


def grpc_failure(error: Exception) -> Failure | None:
    """What a ``grpc.aio`` error says; None for any other exception.

    gRPC's core does not tell a status that came over the wire from one that it made itself. Trailers come
    only over the wire, and some codes are never made locally; all else may be a broken connection, after
    which the call may have been executed. So a bare UNAVAILABLE is repeated only where that does no harm.
    """
    if not isinstance(error, grpc.aio.AioRpcError):
        return None
    if isinstance(error, CallFailedError):
        return None
    code, message = Code(error.code().value[0]), error.details() or ""
    trailers = [(str(key).encode(), _bytes(value)) for key, value in _pairs(error.trailing_metadata())]
    if code is Code.UNAVAILABLE and message.startswith(NEVER_SENT):
        return Failure(code, Delivery.NOT_SENT, message)
    proven = bool(trailers) or code not in MADE_LOCALLY
    delivery = Delivery.ANSWERED if proven else Delivery.UNANSWERED
    return Failure(code, delivery, message, contract.pushback_s(trailers) if trailers else None)


def _pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> Iterable[tuple[str, str | bytes]]:
    return metadata or ()


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
