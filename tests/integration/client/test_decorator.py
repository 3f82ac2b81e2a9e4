"""The policies around any async function."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from relay_service.client import CallFailedError, Failure, Resilience, grpc_failure, resilient
from relay_service.core.breaker import BreakerState
from relay_service.core.evidence import Delivery, Safety
from relay_service.core.policy import BreakerPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code


class BusyError(Exception):
    """The service of these tests says that it did nothing."""


class LostError(Exception):
    """It says nothing."""


def read(error: Exception) -> Failure | None:
    match error:
        case BusyError():
            return Failure(Code.UNAVAILABLE, Delivery.ANSWERED, "busy", pushback_s=0.0)
        case LostError():
            return Failure(Code.UNAVAILABLE)
    return None


class Function:
    """Raises what it is told to, one after the other, then returns."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls: list[tuple[Any, ...]] = []

    async def __call__(self, *args: Any) -> str:
        self.calls.append(args)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_a_function_is_called_again_with_the_same_arguments(policy) -> None:
    function = Function(BusyError(), BusyError())

    @resilient(Resilience(policy()), failure_of=read)
    async def work(first: int, *, second: str) -> str:
        """Its own words."""
        return await function(first, second)

    assert await work(1, second="2") == "done"
    assert function.calls == [(1, "2")] * 3
    assert (work.__name__, work.__doc__) == ("work", "Its own words.")


async def test_what_was_not_understood_is_raised_at_once_and_frees_the_probe(policy) -> None:
    breaker = BreakerPolicy(consecutive_failures=1, open_s=0.01, probe_timeout_s=60, probe_successes=1)
    resilience = Resilience(policy(breakers={"": breaker}))
    function = Function(LostError(), KeyError("a bug"))
    work = resilient(resilience, failure_of=read)(function)
    with pytest.raises(CallFailedError):
        await work()
    await asyncio.sleep(0.02)
    with pytest.raises(KeyError):
        await work()
    assert await work() == "done", "the next call may probe"
    (view,) = resilience.breakers.views(asyncio.get_running_loop().time())
    assert view.status.state is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("safety", "has_key", "calls"),
    [
        (Safety.IDEMPOTENT, False, 2),
        (Safety.KEYED, True, 2),
        (Safety.KEYED, False, 1),
        (Safety.NONE, True, 1),
    ],
)
async def test_what_may_have_been_executed_is_repeated_only_where_that_does_no_harm(
    policy, safety: Safety, has_key: bool, calls: int
) -> None:
    function = Function(LostError())
    resilience = Resilience(_with_safety(policy(), safety))
    work = resilient(resilience, failure_of=read, has_key=lambda: has_key)(function)
    if calls == 2:
        assert await work() == "done"
    else:
        with pytest.raises(CallFailedError) as failed:
            await work()
        assert (failed.value.reason, failed.value.verdict.outcome) == (Reason.OUTCOME_UNKNOWN, "unknown")
        assert isinstance(failed.value.__cause__, LostError)
    assert len(function.calls) == calls


def _with_safety(policy: Any, safety: Safety) -> Any:
    from dataclasses import replace

    return replace(policy, methods={"": replace(policy.method_policy("a.B/C"), safety=safety)})


async def test_the_last_error_is_raised_when_the_attempts_are_used_up(policy) -> None:
    errors = [BusyError(str(number)) for number in range(4)]
    with pytest.raises(BusyError, match="3") as failed:
        await resilient(Resilience(policy()), failure_of=read)(Function(*errors))()
    assert failed.value.__notes__ == ["after 4 attempts: RETRIES_EXHAUSTED"]


async def test_an_attempt_that_takes_too_long_is_cancelled_and_made_again(policy) -> None:
    attempts = []

    @resilient(
        Resilience(_with_safety(policy(method_attempt_timeout_s=0.05), Safety.IDEMPOTENT)), failure_of=read
    )
    async def work() -> str:
        attempts.append("begun")
        if len(attempts) == 1:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                attempts.append("cancelled")
                raise
        return "done"

    assert await work() == "done"
    assert attempts == ["begun", "cancelled", "begun"]


async def test_a_timeout_of_the_functions_own_is_its_own_exception(policy) -> None:
    with pytest.raises(TimeoutError):
        await resilient(Resilience(policy()), failure_of=read)(Function(TimeoutError()))()


@pytest.mark.parametrize(
    ("code", "message", "trailers", "delivery"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: x",
            (),
            Delivery.NOT_SENT,
        ),
        (grpc.StatusCode.UNAVAILABLE, "Stream removed (Socket closed)", (), Delivery.UNANSWERED),
        (grpc.StatusCode.UNAVAILABLE, "busy", (), Delivery.UNANSWERED),
        (grpc.StatusCode.UNAVAILABLE, "busy", (("relay-origin", "relay"),), Delivery.ANSWERED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Sent message larger", (), Delivery.UNANSWERED),
        (grpc.StatusCode.NOT_FOUND, "no", (), Delivery.ANSWERED),
    ],
)
def test_what_a_grpc_error_proves(code: Any, message: str, trailers: Any, delivery: Delivery) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), message)
    failure = grpc_failure(error)
    assert failure is not None
    assert (failure.delivery, failure.code.name) == (delivery, code.name)


def test_other_exceptions_say_nothing() -> None:
    assert grpc_failure(KeyError("x")) is None
