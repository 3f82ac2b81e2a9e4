"""Ending a call to one of the relay's own services with a typed error."""

from collections.abc import Sequence
from typing import Any, Never, TypeAlias

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure
from google.rpc.status_pb2 import Status

from relay_service.config.problems import Problem
from relay_service.contract import DOMAIN, MESSAGE_CHARS_MAX
from relay_service.core.reason import Reason
from relay_service.core.status import Code

# Generic in its type stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

PROBLEMS_TOLD_MAX = 10
"""Faults of a policy that stand in an answer: trailers have room for a few kilobytes. All are in the log."""

_STATUS = {status.value[0]: status for status in grpc.StatusCode}


async def refuse(context: Context, reason: Reason, message: str, **details: str) -> Never:
    """End with the reason's code and an ErrorInfo that holds the reason and ``details``.

    All may quote what was asked, which may be megabytes; trailers that large would end the connection.
    """
    code = reason.code or Code.UNKNOWN
    status = Status(code=int(code), message=_short(message))
    told = {name: _short(text) for name, text in details.items()}
    status.details.add().Pack(ErrorInfo(reason=reason.name, domain=DOMAIN, metadata=told))
    await _abort(context, code, status)


async def refuse_field(context: Context, field: str, description: str) -> Never:
    """INVALID_ARGUMENT for one field of the request."""
    description = _short(description)
    status = Status(code=int(Code.INVALID_ARGUMENT), message=f"{field} {description}")
    violation = BadRequest.FieldViolation(field=field, description=description)
    status.details.add().Pack(BadRequest(field_violations=[violation]))
    await _abort(context, Code.INVALID_ARGUMENT, status)


async def refuse_policy(context: Context, problems: Sequence[Problem]) -> Never:
    """FAILED_PRECONDITION with every fault of a policy, as far as they fit into trailers."""
    text = f"the policy is refused for {len(problems)} faults, the old one stays in force"
    status = Status(code=int(Code.FAILED_PRECONDITION), message=text)
    violations = [
        PreconditionFailure.Violation(
            type="POLICY", subject=problem.path or problem.where, description=str(problem)
        )
        for problem in problems[:PROBLEMS_TOLD_MAX]
    ]
    status.details.add().Pack(PreconditionFailure(violations=violations))
    await _abort(context, Code.FAILED_PRECONDITION, status)


async def end(context: Context, code: Code, message: str) -> Never:
    """End with a plain status."""
    await _abort(context, code, Status(code=int(code), message=_short(message)))


def _short(text: str) -> str:
    return text[:MESSAGE_CHARS_MAX]


async def _abort(context: Context, code: Code, status: Status) -> Never:
    trailers = (("grpc-status-details-bin", status.SerializeToString()),) if status.details else ()
    await context.abort(_STATUS[int(code)], status.message, trailers)
    raise AssertionError("abort does not return")
