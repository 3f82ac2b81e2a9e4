"""``relay lint``: what is wrong, and what is suspicious, in a policy file."""

import json
from typing import Annotated

import typer

from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail
from relay_service.config.document import read_document
from relay_service.config.lint import Finding, findings
from relay_service.config.problems import ConfigError, Problem, UnreadableError

_STAND_IN_TARGET = "127.0.0.1:50052"
"""The file may leave the upstream to the settings; for judging it any address will do."""


def lint(
    file: Annotated[str, typer.Argument(help="A policy file, or the name of a preset.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a policy file: errors (exit code 1), and warnings about what is likely not meant.

    Warnings include what a stock gRPC client would silently do with the same file.
    """
    errors, warnings = _judge(file)
    if as_json:
        typer.echo(json.dumps(_as_json(errors, warnings), indent=2))
    else:
        _tell(file, errors, warnings)
    if errors:
        raise typer.Exit(BROKEN)


def _judge(file: str) -> tuple[tuple[Problem, ...], list[Finding]]:
    try:
        return (), findings(read_document(file), _STAND_IN_TARGET)
    except UnreadableError as error:
        fail(str(error), COULD_NOT_TELL)
    except ConfigError as error:
        return error.problems, []


def _as_json(errors: tuple[Problem, ...], warnings: list[Finding]) -> dict[str, object]:
    return {
        "errors": [
            {"where": p.where, "path": p.path, "found": p.found, "allowed": p.allowed} for p in errors
        ],
        "warnings": [{"rule": f.rule, "path": f.path, "text": f.text} for f in warnings],
    }


def _tell(file: str, errors: tuple[Problem, ...], warnings: list[Finding]) -> None:
    for problem in errors:
        typer.echo(f"error: {problem}", err=True)
    for finding in warnings:
        typer.echo(f"warning: {file}: {finding.path}: {finding.text} [{finding.rule}]")
    if not errors:
        typer.echo(f"{file}: no errors, {len(warnings)} warning{'' if len(warnings) == 1 else 's'}")
