"""The verbs about Toxiproxy itself: `relay-chaos toxiproxy install | which | serve`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, NoReturn

import typer

from chaos.toxiproxy.errors import GoMissingError, ToxiproxyError

HELD, BROKEN, COULD_NOT_TELL = 0, 1, 2

app = typer.Typer(
    name="toxiproxy",
    help="The Toxiproxy that breaks the network: find it, install the real one, run the embedded one.",
    no_args_is_help=True,
    add_completion=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]


@app.command()
def install(as_json: JsonOption = False) -> None:
    """Build the real Toxiproxy with Go and keep it in the project's cache.

    Exit code 0: it is there. 1: the build failed. 2: there is no Go to build it with.
    """
    from chaos.toxiproxy.identity import VERSION
    from chaos.toxiproxy.install import install as install_binary

    try:
        path = install_binary()
    except GoMissingError as error:
        _fail(error, COULD_NOT_TELL)
    except ToxiproxyError as error:
        _fail(error, BROKEN)
    _say(as_json, f"Toxiproxy {VERSION} is at {path}", path=str(path), version=VERSION)


@app.command()
def which(as_json: JsonOption = False) -> None:
    """Say which Toxiproxy a run would use: TOXIPROXY_URL, a binary (PATH, cache), or the embedded one.

    Exit code 0: that one can be used. 1: TOXIPROXY_URL is set and nothing answers there.
    """
    from chaos.toxiproxy.launcher import Binary, Running, find, launch

    choice = find()
    match choice:
        case Running():
            try:
                joined = launch(choice)
            except ToxiproxyError as error:
                _fail(error, BROKEN)
            _say(as_json, str(choice), kind=joined.kind, url=joined.url, version=joined.version)
        case Binary(path):
            _say(as_json, str(choice), kind="real", path=str(path))
        case _:
            hint = "; `relay-chaos toxiproxy install` builds the real one where Go is"
            _say(as_json, f"{choice}{hint}", kind="embedded")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Where the API listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The API's port; 0 takes a free one.", min=0, max=65535)] = 8474,
    seed: Annotated[int, typer.Option(help="Decides toxicity, jitter and slice sizes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run the embedded Toxiproxy until SIGTERM or Ctrl-C.

    Exit code 0: stopped as asked. 1: the address cannot be had.
    """
    from chaos.toxiproxy.embedded.addresses import AddressError
    from chaos.toxiproxy.embedded.server import run

    def ready(url: str) -> None:
        _say(as_json, f"embedded Toxiproxy at {url}, seed {seed}", kind="embedded", url=url, seed=seed)

    try:
        run(host, port, seed, ready)
    except AddressError as error:
        _fail(error, BROKEN)


def _say(as_json: bool, text: str, **data: object) -> None:
    """Print the data as JSON, or the text."""
    typer.echo(json.dumps(data) if as_json else text)
    sys.stdout.flush()


def _fail(error: Exception, exit_code: int) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(exit_code)


def main() -> None:
    """Run the verbs as a program of their own."""
    app()
