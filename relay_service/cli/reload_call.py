"""Asking a relay to reload its policy, and reading its answer."""

from collections.abc import Iterator, Sequence

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from google.rpc.error_details_pb2 import PreconditionFailure
from grpc_status import rpc_status

from protos.relay.v1.admin_pb2 import ReloadPolicyRequest, ReloadPolicyResponse
from protos.relay.v1.admin_pb2_grpc import AdminServiceStub

ANSWER_TIMEOUT_S = 15.0
"""New upstreams are given a few seconds to be connected before the policy comes into force."""


class PolicyRefusedError(Exception):
    """The policy has errors; the old one stays in force."""

    def __init__(self, text: str, problems: Sequence[str]) -> None:
        super().__init__(text)
        self.text = text
        self.problems = problems


class NoAnswerError(Exception):
    """Nobody reloaded anything; the text says why."""


async def reload_policy(target: str) -> ReloadPolicyResponse:
    """Have the relay at ``target`` reload. Raises `PolicyRefusedError` or `NoAnswerError`."""
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            answer = await AdminServiceStub(channel).ReloadPolicy(
                ReloadPolicyRequest(), timeout=ANSWER_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise PolicyRefusedError(error.details() or "", list(_problems(error))) from error
            raise NoAnswerError(f"nothing reloaded: {error.code().name}: {error.details()}") from error
        return answer


def as_json(reloaded: ReloadPolicyResponse) -> object:
    """The answer as JSON's types, in the proto's words."""
    return MessageToDict(
        reloaded, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _problems(error: grpc.aio.AioRpcError) -> Iterator[str]:
    status = rpc_status.from_call(error)  # type: ignore[no-untyped-call]  # comes without types
    for detail in status.details if status else ():
        failure = PreconditionFailure()
        if detail.Unpack(failure):
            yield from (violation.description for violation in failure.violations)
