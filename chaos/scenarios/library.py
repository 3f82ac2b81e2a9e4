"""Every named scenario, in the order in which they are listed and run."""

from chaos.scenarios.model import Scenario, StackShape
from chaos.scenarios.network import MIXED, NETWORK
from chaos.scenarios.overload import OVERLOAD
from chaos.scenarios.patterns import PATTERNS
from chaos.scenarios.policies import NO_WORD
from chaos.scenarios.processes import PROCESSES
from chaos.scenarios.stores import STORES
from chaos.scenarios.trouble import TROUBLE

DRAWN = Scenario(
    "drawn",
    "Whatever combination of faults the seed draws, every promise stands.",
    traffic=MIXED,
    stack=StackShape(NO_WORD),
    tags=frozenset({"kills"}),
)
SCENARIOS: tuple[Scenario, ...] = (*NETWORK, *PROCESSES, *STORES, *TROUBLE, *OVERLOAD, *PATTERNS, DRAWN)


class UnknownScenarioError(ValueError):
    """No scenario is called so."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no scenario is called {name!r}; `relay-chaos list` shows them all")


def find(name: str) -> Scenario:
    """The scenario of that name. Raises `UnknownScenarioError`."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise UnknownScenarioError(name)
