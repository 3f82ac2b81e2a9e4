"""``relay-chaos``: the tour, the scenarios, the stack to play with, and Toxiproxy."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from chaos import scenario_cli
from chaos.beside.cli import beside
from chaos.comparison.cli import compare
from chaos.experiments.cli import experiment
from chaos.toxiproxy.cli import app as toxiproxy_app

# Errors of gRPC's core are ours to report; its own lines on stderr would only repeat them. Set before grpc
# is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

DEMO_DIR = Path("out/demo")
UP_DIR = Path("out/up")
BROKEN = 1
COULD_NOT_TELL = 2

app = typer.Typer(
    name="relay-chaos",
    help="Break the network between a relay and a failing service, and check that every promise held.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(toxiproxy_app, name="toxiproxy")
app.command()(experiment)
app.command()(compare)
app.command()(beside)
app.command("list")(scenario_cli.list_scenarios)
app.command()(scenario_cli.run)
app.command()(scenario_cli.explore)
app.command()(scenario_cli.mutants)

Seed = Annotated[int, typer.Option(help="Seed of every draw.")]


def main() -> None:
    """The console script. Exit codes: 0 held, 1 broken, 2 could not tell, 128 + n ended by signal n."""
    app()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and its data; overwritten.")] = DEMO_DIR,
    seed: Seed = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; narrate on stderr.")
    ] = False,
) -> None:
    """The narrated tour of about a minute: four acts, each promise checked, a report at the end.

    Exit code 0: every promise held. 1: one was broken. 2: too little happened to tell.
    """
    from rich.console import Console

    from chaos.demo.narrator import PLAIN_WIDTH
    from chaos.demo.tour import DemoConfig, exit_code, run_demo
    from chaos.interrupt import Interrupted, run_interruptible
    from chaos.processes import ProcessError
    from chaos.stack import MemberDiedError, PortBusyError

    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    config = DemoConfig(out_dir=out, seed=seed)
    try:
        summary = run_interruptible(lambda: run_demo(config, console))
    except Interrupted as interrupted:
        typer.echo(f"{interrupted}; everything is stopped", err=True)
        raise typer.Exit(interrupted.exit_code) from None
    except (ProcessError, PortBusyError, MemberDiedError) as error:
        _fail(error, COULD_NOT_TELL)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    raise typer.Exit(exit_code(summary))


@app.command()
def up(
    policy: Annotated[str, typer.Option(help="The relay's policy: a preset or a file.")] = "payments-demo",
    out: Annotated[Path, typer.Option(help="Folder for ledger, spans and logs; overwritten.")] = UP_DIR,
    seed: Seed = 1,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take any free ports instead of the default ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON when ready.")] = False,
) -> None:
    """Start downstream, Toxiproxy and relay, and leave them running until Ctrl-C or SIGTERM.

    Exit code 0: ended on request. 1: a member died. 2: the stack could not be started.
    """
    from chaos.interrupt import Interrupted, run_interruptible
    from chaos.processes import ProcessError
    from chaos.stack import DEFAULT_ADDRESSES, FREE_ADDRESSES, MemberDiedError, PortBusyError, StackConfig
    from chaos.up import run_up

    addresses = FREE_ADDRESSES if free_ports else DEFAULT_ADDRESSES
    config = StackConfig(out, addresses, policy, seed)
    announce = _print_ready_json if as_json else _print_ready
    try:
        run_interruptible(lambda: run_up(config, announce))
    except Interrupted:
        return
    except MemberDiedError as error:
        _fail(error, BROKEN)
    except (ProcessError, PortBusyError) as error:
        _fail(error, COULD_NOT_TELL)


def _print_ready_json(stack: dict[str, Any]) -> None:
    # Whoever waits for this line reads from a pipe: it must leave the buffer now.
    print(json.dumps(stack), flush=True)


def _print_ready(stack: dict[str, Any]) -> None:
    toxiproxy, pids = stack["toxiproxy"], stack["pids"]
    rows = (
        ("relay", stack["relay"], pids["relay"], "call it with the downstream's stubs"),
        ("  admin", stack["relay_admin"], "", "relay stats, AdminService"),
        ("  http", stack["relay_http"], "", "metrics, health"),
        (
            "toxiproxy",
            toxiproxy["api"],
            pids["toxiproxy"],
            f"{toxiproxy['kind']}; its proxy is at {toxiproxy['proxy']}",
        ),
        ("downstream", stack["downstream"], pids["downstream"], "relay-downstream faults show|set|clear"),
    )
    for name, address, pid, what in rows:
        typer.echo(f"{name:<11} {address:<22} {f'pid {pid}' if pid else '':<12} {what}")
    typer.echo("Ctrl-C ends it.")


def _fail(error: Exception, code: int) -> NoReturn:
    typer.echo(f"relay-chaos: {error}", err=True)
    raise typer.Exit(code)
