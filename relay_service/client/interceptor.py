"""The policies for the unary calls of a ``grpc.aio`` channel."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from relay_service import contract
from relay_service.client.failures import grpc_failure
from relay_service.client.resilience import OnRetry, Resilience, Work

HOPS = contract.HOPS.decode()
IDEMPOTENCY_KEY = contract.IDEMPOTENCY_KEY.decode()

_Continuation = Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]]


class ResilientInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Give it to ``grpc.aio.insecure_channel(..., interceptors=[...])``; made by `Resilience.interceptor`.

    The call returned is that of the attempt that succeeded. A method that is retried here says so in its
    metadata, and a relay on the way leaves the retries to us.
    """

    def __init__(self, resilience: Resilience, on_retry: OnRetry) -> None:
        self._resilience = resilience
        self._on_retry = on_retry

    async def intercept_unary_unary(
        self, continuation: _Continuation, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        """Make the call as often as the policy wants."""
        details = client_call_details
        method = _text(details.method).removeprefix("/")
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        given = {name for name, _ in metadata}
        if self._resilience.method_policy(method).retry.max_attempts > 1 and HOPS not in given:
            metadata.add(HOPS, "1")

        async def attempt(timeout_s: float | None) -> Any:
            limited = grpc.aio.ClientCallDetails(
                details.method, timeout_s, metadata, details.credentials, details.wait_for_ready
            )
            call = await continuation(limited, request)
            await call
            return call

        work = Work(
            method,
            attempt,
            grpc_failure,
            self._on_retry,
            timeout_s=details.timeout,
            has_key=IDEMPOTENCY_KEY in given,
        )
        return await self._resilience.run(work)


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
