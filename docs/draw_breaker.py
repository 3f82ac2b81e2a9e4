"""Draws the circuit breaker's diagram from its table of transitions.

``python docs/draw_breaker.py`` writes it into docs/explanation/breaker.md; a test holds page and table
together.
"""

import re
from pathlib import Path

from relay_service.core.breaker import TRANSITIONS, BreakerState

PAGE = Path(__file__).parent / "explanation" / "breaker.md"


def diagram() -> str:
    """The table as a Mermaid state diagram; triggers with the same way share an arrow."""
    ways: dict[tuple[BreakerState, BreakerState], list[str]] = {}
    for (before, trigger), after in TRANSITIONS.items():
        ways.setdefault((before, after), []).append(trigger.value)
    arrows = (f"  {old.name} --> {new.name}: {' / '.join(by)}" for (old, new), by in ways.items())
    return "\n".join(["stateDiagram-v2", f"  [*] --> {BreakerState.CLOSED.name}", *arrows, ""])


def with_diagram(page: str) -> str:
    """The page with its diagram drawn anew."""
    return re.sub(r"(?s)(?<=```mermaid\n).*?(?=```)", lambda _: diagram(), page, count=1)


if __name__ == "__main__":
    PAGE.write_text(with_diagram(PAGE.read_text()))
