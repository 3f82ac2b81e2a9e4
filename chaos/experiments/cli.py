"""The verb ``relay-chaos experiment``."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

COULD_NOT_TELL = 2


class Name(StrEnum):
    """The experiments; here and not from the catalogue, so that ``--help`` loads no drawing library."""

    JITTER = "jitter"
    QUEUE = "queue"
    TIMEOUT = "timeout"
    WORKERS = "workers"
    STORM = "storm"
    METASTABLE = "metastable"
    HEDGING = "hedging"


def experiment(
    name: Annotated[Name, typer.Argument(help="Which knob to turn.")],
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for page and data; overwritten. Default: out/experiments/NAME."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the settings that differ most, in a few seconds.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; narrate on stderr.")
    ] = False,
) -> None:
    """Turn one knob: theory first, then measurement, one picture, and what to choose.

    Exit code 0: what was measured matches the prediction. 1: it does not. 2: could not tell.
    """
    from rich.console import Console

    from chaos.experiments.catalogue import EXPERIMENTS
    from chaos.experiments.experiment import Pace
    from chaos.experiments.run import RunConfig, exit_code, run_experiment
    from chaos.interrupt import Interrupted, run_interruptible
    from chaos.processes import ProcessError
    from chaos.stack import MemberDiedError, PortBusyError

    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = 110
    config = RunConfig(out or Path("out/experiments") / name.value, seed, Pace.QUICK if quick else Pace.FULL)
    try:
        summary = run_interruptible(lambda: run_experiment(EXPERIMENTS[name.value], config, console))
    except Interrupted as interrupted:
        typer.echo(f"{interrupted}; everything is stopped", err=True)
        raise typer.Exit(interrupted.exit_code) from None
    except (ProcessError, PortBusyError, MemberDiedError) as error:
        typer.echo(f"relay-chaos: {error}", err=True)
        raise typer.Exit(COULD_NOT_TELL) from None
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    raise typer.Exit(exit_code(summary))
