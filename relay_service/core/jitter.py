"""How waits are spread."""

from enum import Enum


class Jitter(Enum):
    """How the wait before a retry is spread, so that callers who failed together do not return together.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    NONE = "none"
    """Exactly the exponential backoff."""
    FULL = "full"
    """Uniform between zero and the exponential backoff."""
    EQUAL = "equal"
    """Half of the exponential backoff, the other half uniform."""
    DECORRELATED = "decorrelated"
    """Uniform between the initial backoff and three times the previous wait."""
