"""Ending a call to one of the relay's own services with a typed error."""

from typing import Any, Never, TypeAlias

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from relay_service.contract import DOMAIN
from relay_service.core.reason import Reason
from relay_service.core.status import Code

# Generic in its type stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_STATUS = {status.value[0]: status for status in grpc.StatusCode}


async def refuse(context: Context, reason: Reason, message: str, **details: str) -> Never:
    """End with the reason's code and an ErrorInfo that holds the reason and ``details``."""
    code = reason.code or Code.UNKNOWN
    status = Status(code=int(code), message=message)
    status.details.add().Pack(ErrorInfo(reason=reason.name, domain=DOMAIN, metadata=details))
    await _abort(context, code, status)


async def refuse_field(context: Context, field: str, description: str) -> Never:
    """INVALID_ARGUMENT for one field of the request."""
    status = Status(code=int(Code.INVALID_ARGUMENT), message=f"{field} {description}")
    violation = BadRequest.FieldViolation(field=field, description=description)
    status.details.add().Pack(BadRequest(field_violations=[violation]))
    await _abort(context, Code.INVALID_ARGUMENT, status)


async def end(context: Context, code: Code, message: str) -> Never:
    """End with a plain status."""
    await _abort(context, code, Status(code=int(code), message=message))


async def _abort(context: Context, code: Code, status: Status) -> Never:
    trailers = (("grpc-status-details-bin", status.SerializeToString()),) if status.details else ()
    await context.abort(_STATUS[int(code)], status.message, trailers)
    raise AssertionError("abort does not return")
