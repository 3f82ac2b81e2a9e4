"""The lab's scenarios, as data: what load meets which faults on which stack, and what must hold then."""

from chaos.scenarios.library import SCENARIOS, find
from chaos.scenarios.model import Scenario

__all__ = ["SCENARIOS", "Scenario", "find"]
