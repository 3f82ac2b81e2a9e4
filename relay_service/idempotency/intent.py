"""What was decided at the headers about a call whose key is kept."""

from dataclasses import dataclass

from relay_service.core.evidence import Safety
from relay_service.core.key_policy import IdempotencyPolicy
from relay_service.core.policy import MethodPolicy
from relay_service.ports import CallHead


@dataclass(frozen=True, slots=True)
class Intent:
    """One caller's wish, as far as its headers tell."""

    head: CallHead
    upstream: str
    policy: MethodPolicy
    keys: IdempotencyPolicy
    """The policy's ``idempotency``, which is there."""
    safety: Safety
    hops: int
    key: bytes | None
    """As the caller sent it; None where the request's hash is to be the key."""
    deadline: float | None
    """Monotonic seconds."""

    @property
    def repeatable(self) -> bool:
        """Whether a request that may have been executed may be sent again under its derived key."""
        return self.safety.allows_repeat(has_key=True)
