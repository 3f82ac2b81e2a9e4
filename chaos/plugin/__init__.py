"""The lab for your own tests: your service behind a relay and Toxiproxy, faults as ``with`` blocks.

`chaos.pytest_plugin` makes it available to pytest as the fixture ``chaos_lab``; `open_lab` does without
pytest, or in a fixture of another scope.
"""

from chaos.plugin.lab import Lab, open_lab
from chaos.plugin.proxied import ProxiedUpstream
from chaos.plugin.recorder import Recorder
from chaos.plugin.relay import Relay
from chaos.plugin.service import AdoptedProcess, Service, ServiceError

__all__ = [
    "AdoptedProcess",
    "Lab",
    "ProxiedUpstream",
    "Recorder",
    "Relay",
    "Service",
    "ServiceError",
    "open_lab",
]
