"""How a call of the payment service fails: one exception, with everything the caller is to be told."""

from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

Trailers = tuple[tuple[str, str | bytes], ...]

STATUS_DETAILS_TRAILER: Final = "grpc-status-details-bin"
PUSHBACK_TRAILER: Final = "grpc-retry-pushback-ms"
ERROR_DOMAIN: Final = "downstream.v1"

_STATUS_BY_NUMBER: Final = {status.value[0]: status for status in grpc.StatusCode}


class CallFailedError(Exception):
    """A call ends with this status, message and trailers."""

    def __init__(self, code: grpc.StatusCode, message: str, trailers: Trailers = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailers = trailers


class InvalidInputError(ValueError):
    """An input field makes no sense; ``field`` is its path, as in ``faults[0].failure.code``."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def status_of(number: int) -> grpc.StatusCode:
    """Return the grpcio status for a google.rpc.Code; ``KeyError`` for a number that is none."""
    return _STATUS_BY_NUMBER[number]


def invalid_argument(error: InvalidInputError) -> CallFailedError:
    """Refuse a call for one field, named in the message and as ``google.rpc.BadRequest``."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.problem)
    return _with_detail(
        grpc.StatusCode.INVALID_ARGUMENT,
        str(error),
        error_details_pb2.BadRequest(field_violations=[violation]),
    )


def refused(code: grpc.StatusCode, message: str, reason: str) -> CallFailedError:
    """Refuse a call with a ``google.rpc.ErrorInfo``, which tells it from others of the same code."""
    return _with_detail(code, message, error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN))


def _with_detail(code: grpc.StatusCode, message: str, detail: Message) -> CallFailedError:
    packed = any_pb2.Any()
    packed.Pack(detail)
    number = code_pb2.Code.Value(code.name)
    status = status_pb2.Status(code=number, message=message, details=[packed])
    return CallFailedError(code, message, ((STATUS_DETAILS_TRAILER, status.SerializeToString()),))
