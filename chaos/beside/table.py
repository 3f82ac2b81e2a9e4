"""The table: one row a measure, one column a way. For terminals, for pages and for documents alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chaos.beside.measure import Measured

NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Row:
    """A measure in words, and what to show of a column."""

    title: str
    show: Callable[[Measured], str]


def _number(value: float | None, pattern: str) -> str:
    return NOTHING if value is None else pattern.format(value)


def verdict_words(column: Measured) -> str:
    """How many of the promises that apply were held, and the numbers of those that were broken."""
    if not column.broken:
        return f"all {column.held} held"
    numbers = [line.split(" ", 1)[0] for line in column.broken]
    told = ", ".join(
        f"{number} {TIMES}{numbers.count(number)}" if numbers.count(number) > 1 else number
        for number in dict.fromkeys(numbers)
    )
    return f"{column.held} held, broken: {told}"


ROWS = (
    Row("goodput in the fault", lambda column: f"{column.goodput_per_s:.1f}/s"),
    Row("operations that succeed", lambda column: f"{column.success:.1%}"),
    Row("CRITICAL calls that succeed", lambda column: _number(column.critical, "{:.1%}")),
    Row("p99 of successes", lambda column: _number(column.p99_ms, "{:,.0f} ms")),
    Row("attempts for each call", lambda column: _number(column.attempts_per_call, TIMES + "{:.2f}")),
    Row("\u2026 in the worst second", lambda column: _number(column.attempts_worst_second, TIMES + "{:.2f}")),
    Row("attempts for each first one", lambda column: _number(column.attempts_per_first, TIMES + "{:.2f}")),
    Row("work for nobody", lambda column: _number(column.late_work, "{:.1%}")),
    Row(
        "back after",
        lambda column: "not back" if column.recovery_s is None else f"{column.recovery_s:.2f} s",
    ),
    Row("goodput after, of before", lambda column: _number(column.goodput_after, "{:.0%}")),
    Row("promises", verdict_words),
    Row("the lab could tell", lambda column: "no" if column.untold else "yes"),
)


def cells(found: Mapping[str, Measured]) -> list[tuple[str, list[str]]]:
    """Every row that says something, with a cell for each column of ``found``."""
    rows = [(row.title, [row.show(column) for column in found.values()]) for row in ROWS]
    return [(title, shown) for title, shown in rows if any(cell != NOTHING for cell in shown)]
