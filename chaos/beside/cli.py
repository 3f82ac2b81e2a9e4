"""The verb ``relay-chaos beside``."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from chaos.beside.columns import Column, Missing
    from chaos.beside.run import Comparison

COULD_NOT_TELL = 2
ALL = "all"
WIDTH = 110


def beside(
    name: Annotated[
        str, typer.Argument(help="A scenario that is known to be run beside others, or `all` of them.")
    ],
    seed: Annotated[int, typer.Option(help="Seed of every draw: faults, traffic, failures.")] = 1,
    out: Annotated[
        Path, typer.Option(help="Where each scenario gets its folder; one of the same name is overwritten.")
    ] = Path("out/beside"),
    *,
    short: Annotated[bool, typer.Option("--short", help="A few seconds for each way.")] = False,
    write: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summaries as JSON; narrate on stderr.")
    ] = False,
) -> None:
    """Run a scenario three ways: the relay, the relay with its patterns off, Envoy's nearest configuration.

    The seed, the traffic and the faults are the same. Exit code 0: every way was run or is known to be
    missing, whatever came out. 2: the lab could not run one.
    """
    from chaos.beside.catalogue import BESIDE, NothingBesideError
    from chaos.beside.catalogue import beside as entry_of
    from chaos.beside.document import document
    from chaos.beside.run import run_beside
    from chaos.interrupt import Interrupted, run_interruptible
    from chaos.runner import Form, RunFailedError

    form = Form.SHORT if short else Form.NORMAL
    made: list[Comparison] = []
    try:
        for entry in BESIDE if name == ALL else (entry_of(name),):
            folder = out / entry.scenario
            typer.echo(f"\n{entry.scenario}, seed {seed}", err=as_json)
            told = _to_stderr if as_json else _to_stdout
            made.append(run_interruptible(partial(run_beside, entry, folder, seed, form, told)))
            if not as_json:
                _print_table(made[-1])
                typer.echo(f"page: {folder / 'beside.html'}")
    except Interrupted as interrupted:
        typer.echo(f"{interrupted}; faults are undone and everything is stopped", err=True)
        raise typer.Exit(interrupted.exit_code) from None
    except (NothingBesideError, RunFailedError) as error:
        typer.echo(f"relay-chaos: {error}", err=True)
        raise typer.Exit(COULD_NOT_TELL) from None
    if write is not None:
        write.write_text(document(made), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps([each.summary for each in made], indent=2))


def _to_stdout(column: "Column | Missing") -> None:
    typer.echo(f"  {column.title} ...")


def _to_stderr(column: "Column | Missing") -> None:
    typer.echo(f"  {column.title} ...", err=True)


def _print_table(made: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    from chaos.beside.columns import Missing
    from chaos.beside.table import cells

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    table = Table("measure", box=None, pad_edge=False, header_style="dim")
    for column in made.columns:
        if column.name in made.found:
            table.add_column(column.title, justify="right")
    for title, shown in cells(made.found):
        table.add_row(title, *shown)
    console.print(table, highlight=False)
    for column in made.columns:
        if isinstance(column, Missing):
            console.print(f"{column.title}: {column.why}", highlight=False)
