"""Envoy as the bench's other relay, with the retry policy of the relay's preset `default`."""

from enum import Enum
from pathlib import Path

from chaos.envoy import ADAPTIVE, ENVOY_ENV, EnvoySettings, configuration, find_envoy, listening_address
from chaos.envoy import command as command_of

__all__ = ["ENVOY_ENV", "Protection", "command", "find_envoy", "listening_address"]

BREAKER_REQUESTS_MAX = 40
"""Twice what the overloaded upstream of the bench works on at once, and as many again that wait."""


class Protection(Enum):
    """What keeps Envoy's upstream from being flooded."""

    NONE = "envoy"
    """Limits so wide that they never act."""
    BREAKER = "envoy breaker"
    """The circuit breaker's bound on requests, told the right number."""
    ADAPTIVE = "envoy adaptive"
    """The adaptive concurrency filter with its gradient controller, told nothing."""

    @property
    def settings(self) -> EnvoySettings:
        """Up to three retries within a budget of 20 %, and the protection."""
        match self:
            case Protection.NONE:
                return EnvoySettings()
            case Protection.BREAKER:
                return EnvoySettings(requests_max=BREAKER_REQUESTS_MAX)
            case Protection.ADAPTIVE:
                return EnvoySettings(requests_max=ADAPTIVE)


def command(
    binary: Path, upstream: str, directory: Path, protection: Protection = Protection.NONE
) -> list[str]:
    """Write the configuration and return the command line that serves it on one worker thread."""
    return command_of(binary, directory, configuration(upstream, protection.settings))
