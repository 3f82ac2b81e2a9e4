"""The attribute keys on the relay's spans, each named once.

Those without the ``relay.`` prefix are OpenTelemetry's RPC conventions
(https://opentelemetry.io/docs/specs/semconv/rpc/grpc/), a release candidate whose names still move.
"""

from typing import Final

RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS_CODE: Final = "rpc.response.status_code"
"""The status code's name. Later drafts of the conventions call this key ``rpc.status_code``."""
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
CLIENT_ADDRESS: Final = "client.address"
CLIENT_PORT: Final = "client.port"

UPSTREAM: Final = "relay.upstream"
"""The name of the upstream an attempt went to."""
ATTEMPT: Final = "relay.attempt"
"""The attempt's number, from 1."""
HEDGE: Final = "relay.hedge"
"""True on an attempt that was made beside others of its call because they took long."""
ATTEMPTS: Final = "relay.attempts"
"""How many attempts a call took."""
DELIVERY: Final = "relay.delivery"
"""What the transport knows of an attempt: ``not_sent``, ``unanswered`` or ``answered``."""
EVIDENCE: Final = "relay.evidence"
"""What that proves: ``not_sent``, ``refused``, ``definite`` or ``ambiguous``; of a call, the worst."""
REASON: Final = "relay.reason"
"""Why the relay itself ended the call, as in the caller's ErrorInfo."""
DECISION: Final = "relay.decision"
"""What was decided: a reason's name, ``RETRIED`` or ``FORWARDED``; as in the caller's trailers."""
ORIGIN: Final = "relay.origin"
"""Who made the status: ``upstream`` or ``relay``."""
OUTCOME: Final = "relay.outcome"
"""What the caller may believe of the effect: ``executed``, ``not-executed`` or ``unknown``."""
QUEUE_WAIT_MS: Final = "relay.queue_wait_ms"
"""On a queue span its length; on a call the sum of its waits."""
SAMPLED_AFTERWARDS: Final = "relay.sampled_afterwards"
"""True on the one span of a failed call whose trace was not sampled."""
