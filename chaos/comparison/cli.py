"""The verb ``relay-chaos compare``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from chaos.comparison.gate import Compared

COULD_NOT_TELL = 2
WIDTH = 110


def compare(  # noqa: PLR0917 (typer reads the options from the signature)
    before: Annotated[Path, typer.Argument(metavar="A", help="Folder of the run to compare with.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Folder of the run that must not be worse.")],
    errors: Annotated[float, typer.Option(help="Allowed rise of the error share, in percent of A's.")] = 10,
    p50: Annotated[float, typer.Option(help="Allowed rise of the median latency, in percent.")] = 15,
    p99: Annotated[float, typer.Option(help="Allowed rise of the 99th percentile, in percent.")] = 30,
    throughput: Annotated[float, typer.Option(help="Allowed fall of successes a second, in percent.")] = 5,
    memory: Annotated[float, typer.Option(help="Allowed rise of the relay's peak memory, in percent.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hold run B against run A: errors, latency, throughput, memory, each with the noise taken into account.

    Exit code 0: not worse than allowed. 1: worse. 2: could not tell (too few calls, too much noise, no run).
    """
    from chaos.comparison.gate import DEFAULT_LIMITS, Allowance, Limits, verdict_of
    from chaos.comparison.gate import compare as held_against
    from chaos.comparison.sample import RunError, read_run, require_alike

    def allow(percent: float, default: Allowance) -> Allowance:
        return Allowance(percent / 100, default.floor)

    limits = Limits(
        errors=allow(errors, DEFAULT_LIMITS.errors),
        p50=allow(p50, DEFAULT_LIMITS.p50),
        p99=allow(p99, DEFAULT_LIMITS.p99),
        throughput=allow(throughput, DEFAULT_LIMITS.throughput),
        memory=allow(memory, DEFAULT_LIMITS.memory),
    )
    try:
        first, second = read_run(before), read_run(after)
        require_alike(first, second)
    except RunError as error:
        typer.echo(f"relay-chaos: {error}", err=True)
        raise typer.Exit(COULD_NOT_TELL) from None
    rows = held_against(first, second, limits)
    verdict = verdict_of(rows)
    if as_json:
        shown = {"a": str(before), "b": str(after), "scenario": first.scenario}
        measures = [_row_json(row) for row in rows]
        typer.echo(json.dumps({**shown, "verdict": verdict.name.lower(), "measures": measures}, indent=2))
    else:
        _print_table(rows)
        typer.echo(f"\n{before} -> {after}: {verdict.words}")
    raise typer.Exit(verdict.value)


def _row_json(row: "Compared") -> dict[str, Any]:
    return {
        **{key: _number(value) for key, value in asdict(row).items() if key not in ("interval", "verdict")},
        "interval": [row.interval.low, row.interval.high] if row.interval else None,
        "verdict": row.verdict.name.lower() if row.verdict else None,
    }


def _number(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 (only NaN differs)


def _print_table(rows: "tuple[Compared, ...]") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    table = Table("measure", box=None, pad_edge=False, header_style="dim")
    for name in ("A", "B", "worse by", "95 % interval", "allowed"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        interval = (
            f"{_show(row, row.interval.low)} .. {_show(row, row.interval.high)}" if row.interval else ""
        )
        words = row.verdict.words if row.verdict else "-"
        told = f"{words}: {row.note}" if row.note else words
        values = (_show(row, value) for value in (row.before, row.after, row.worse_by))
        table.add_row(row.measure, *values, interval, _show(row, row.allowed), told)
    console.print(table, highlight=False)


def _show(row: "Compared", value: float | None) -> str:
    if value is None or value != value:  # noqa: PLR0124 (only NaN differs from itself)
        return "-"
    if row.unit == "%":
        return f"{value:.2%}"
    return f"{value:,.0f} {row.unit}" if abs(value) >= 100 else f"{value:.3g} {row.unit}"
