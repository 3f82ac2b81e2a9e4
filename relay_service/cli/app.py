"""The verbs of the ``relay`` command.

Exit codes: 0 done, 1 broken (a failed call, a faulty policy), 2 could not tell (bad usage, nobody there).
What goes wrong is told in lines on stderr that say what, where and what to do.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from relay_service.cli import call, dlq, explain, idem, jobs, lint, reload, serve, stats, submit

app = typer.Typer(
    name="relay",
    help="A gRPC relay to put in front of a service that fails.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"relay {version('resilient-relay')}")
        raise typer.Exit


@app.callback()
def _relay(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A gRPC relay to put in front of a service that fails."""


app.command("serve")(serve.serve)
app.command("call")(call.call)
app.command("submit")(submit.submit)
app.add_typer(jobs.app, name="jobs")
app.add_typer(dlq.app, name="dlq")
app.command("stats")(stats.stats)
app.command("reload")(reload.reload)
app.command("lint")(lint.lint)
app.command("explain")(explain.explain)
app.add_typer(idem.app, name="idem")


def main() -> None:
    """Run the command line; ends the process."""
    app(prog_name="relay")
