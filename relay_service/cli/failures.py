"""How the command says that something is wrong: a line on stderr for each fault, never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

import typer

from relay_service.config.problems import ConfigError

BROKEN = 1
"""What was asked about is broken: the call failed, the policy has errors."""
COULD_NOT_TELL = 2
"""Bad usage, or there was nobody to ask."""


def fail(text: str, exit_code: int) -> Never:
    """Say ``text`` on stderr, in one line whatever it quotes, and end the command."""
    typer.echo(f"error: {' '.join(text.split())}", err=True)
    raise typer.Exit(exit_code)


@contextmanager
def config_errors_told() -> Iterator[None]:
    """Turn a `ConfigError` into its lines and exit code 2."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(COULD_NOT_TELL) from None
