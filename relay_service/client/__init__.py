"""The relay's policies in a Python client, without a relay: an interceptor for ``grpc.aio`` channels and a
decorator for any async function, driven by the same state machines.

    resilience = Resilience(read_policy("policy.json"))
    channel = grpc.aio.insecure_channel(target, interceptors=[resilience.interceptor()])

    @resilient(resilience, on_retry=log_retry)
    async def fetch(): ...

What there is and is not: deadlines, retries by evidence, pushback, budget, breaker and adaptive throttle;
no queue, no workers and no hedging, which are the relay's.
"""

from relay_service.client.decorator import resilient
from relay_service.client.failures import CallFailedError, Failure, FailureOf, grpc_failure
from relay_service.client.resilience import OnRetry, Resilience, RetryDetails, read_policy

__all__ = [
    "CallFailedError",
    "Failure",
    "FailureOf",
    "OnRetry",
    "Resilience",
    "RetryDetails",
    "grpc_failure",
    "read_policy",
    "resilient",
]
