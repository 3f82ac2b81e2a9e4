"""The policies for any async function."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from relay_service.client.failures import FailureOf, grpc_failure
from relay_service.client.resilience import OnRetry, Resilience, Work, ignore_retry

P = ParamSpec("P")
T = TypeVar("T")


def resilient(
    resilience: Resilience,
    *,
    method: str = "",
    failure_of: FailureOf = grpc_failure,
    on_retry: OnRetry = ignore_retry,
    has_key: Callable[P, bool] | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Make an async function's calls attempts under a policy.

    ``method`` (``package.Service/Method``) picks the part of the policy; empty is its default.
    ``failure_of`` reads the function's exceptions. ``on_retry`` hears of every retry before its wait.
    ``has_key`` says, of a call's arguments, whether it carries an idempotency key that all its attempts
    share: then a KEYED method may be repeated when its outcome is not known.

    The function is cancelled when an attempt's time is over, and raises as `Resilience.run` says.
    """

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(function)
        async def attempts(*args: P.args, **kwargs: P.kwargs) -> T:
            return await resilience.run(
                Work(
                    method,
                    lambda _: function(*args, **kwargs),
                    failure_of,
                    on_retry,
                    has_key=has_key is not None and has_key(*args, **kwargs),
                )
            )

        return attempts

    return decorate
