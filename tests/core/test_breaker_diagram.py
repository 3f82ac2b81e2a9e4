"""The picture in the docs is the table in the code."""

import importlib.util
from pathlib import Path

from relay_service.core.breaker import TRANSITIONS, BreakerState

SCRIPT = Path(__file__).parents[2] / "docs" / "draw_breaker.py"
spec = importlib.util.spec_from_file_location("draw_breaker", SCRIPT)
assert spec is not None
assert spec.loader is not None
draw_breaker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_breaker)


def test_the_committed_diagram_is_what_the_table_says() -> None:
    page = draw_breaker.PAGE.read_text()
    assert page == draw_breaker.with_diagram(page), "run docs/draw_breaker.py"


def test_the_diagram_names_every_state_and_every_trigger() -> None:
    drawn = draw_breaker.diagram()
    assert all(state.name in drawn for state in BreakerState)
    assert all(trigger.value in drawn for _, trigger in TRANSITIONS)
