"""Envoy in the relay's place: found, configured with what comes nearest to a policy, run as part of a stack.

``python -m chaos.envoy serve`` takes the flags that the relay takes, says with the same line that it is
ready, and answers the same questions about itself, so nothing that starts or watches a relay needs to know.
"""

from chaos.envoy.binary import ENVOY_ENV, find_envoy
from chaos.envoy.configuration import configuration
from chaos.envoy.process import command, listening_address
from chaos.envoy.settings import ADAPTIVE, EnvoySettings

__all__ = [
    "ADAPTIVE",
    "ENVOY_ENV",
    "EnvoySettings",
    "command",
    "configuration",
    "find_envoy",
    "listening_address",
]
