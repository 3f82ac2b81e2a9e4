"""Draws the life of a stream from its tables of transitions.

``python docs/draw_streams.py`` writes both diagrams into docs/explanation/streams.md; a test holds page
and tables together.
"""

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path

from relay_service.wire.phases import ATTEMPTS, REPLIES, AttemptPhase, ReplyPhase

PAGE = Path(__file__).parent / "explanation" / "streams.md"

Way = tuple[Enum, Enum, str, str]
"""From, to, the step, and what is known then (empty where there is nothing to know)."""


def reply_diagram() -> str:
    """The caller's end of a call."""
    return _diagram(ReplyPhase.SILENT, ((old, new, step.name, "") for (old, step), new in REPLIES.items()))


def attempt_diagram() -> str:
    """An attempt at the upstream; with its end stands what is therefore known."""
    ways = (
        (old, new, step.name, f"{known.name} by " if known else "")
        for (old, step), (new, known) in ATTEMPTS.items()
    )
    return _diagram(AttemptPhase.WAITING, ways)


def _diagram(first: Enum, ways: Iterable[Way]) -> str:
    """Mermaid; steps with the same way and the same knowledge share an arrow."""
    arrows: dict[tuple[Enum, Enum, str], list[str]] = {}
    for old, new, step, known in ways:
        arrows.setdefault((old, new, known), []).append(step)
    lines = (
        f"  {old.name} --> {new.name}: {known}{' / '.join(by)}" for (old, new, known), by in arrows.items()
    )
    return "\n".join(["stateDiagram-v2", f"  [*] --> {first.name}", *lines, ""])


def with_diagrams(page: str) -> str:
    """The page with its diagrams drawn anew."""
    drawn: Mapping[str, str] = {"reply": reply_diagram(), "attempt": attempt_diagram()}
    for name, diagram in drawn.items():
        pattern = rf"(?s)(?<=<!-- {name} -->\n```mermaid\n).*?(?=```)"
        page = re.sub(pattern, lambda _, text=diagram: text, page, count=1)
    return page


if __name__ == "__main__":
    PAGE.write_text(with_diagrams(PAGE.read_text()))
