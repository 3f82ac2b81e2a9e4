"""What is known of the upstreams' methods: how many messages go each way, and what a repeat would do."""

from dataclasses import dataclass
from typing import Protocol

from relay_service.core.evidence import Safety


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """What a method's descriptor says."""

    unary: bool
    """One message each way."""
    safety: Safety | None
    """From ``idempotency_level``; None when the proto does not say."""
    input_type: str
    """Full name of the request message."""
    output_type: str
    """Full name of the response message."""


class MethodCatalog(Protocol):
    """Looks methods up; implemented over the upstreams' reflection."""

    def facts(self, upstream: str, method: str) -> MethodFacts | None:
        """The facts of ``package.Service/Method``, or None while they are not known."""
