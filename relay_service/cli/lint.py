"""``relay lint``: what is wrong, and what is suspicious, in a policy file."""

import json
from collections.abc import Mapping
from typing import Annotated

import typer

from relay_service.cli.described import UndescribedError, described
from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail
from relay_service.config.document import read_document
from relay_service.config.lint import Finding, findings, undeclared
from relay_service.config.problems import ConfigError, Problem, UnreadableError
from relay_service.control.names import PUBLIC_SERVICES
from relay_service.core.evidence import Safety

_STAND_IN_TARGET = "127.0.0.1:50052"
"""The file may leave the upstream to the settings; for judging it any address will do."""


def lint(
    file: Annotated[str, typer.Argument(help="A policy file, or the name of a preset.")],
    descriptors: Annotated[
        str | None,
        typer.Option(
            help="Also list the methods whose safety nobody declares: a descriptor set (protoc "
            "--include_imports --descriptor_set_out, buf build -o), or HOST:PORT of a server with reflection."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a policy file: errors (exit code 1), and warnings about what is likely not meant.

    Warnings include what a stock gRPC client would silently do with the same file.
    """
    errors, warnings = _judge(file, _safeties(descriptors) if descriptors is not None else {})
    if as_json:
        typer.echo(json.dumps(_as_json(errors, warnings), indent=2))
    else:
        _tell(file, errors, warnings)
    if errors:
        raise typer.Exit(BROKEN)


def _safeties(source: str) -> dict[str, Safety | None]:
    try:
        methods = described(source).methods
    except UndescribedError as error:
        fail(f"--descriptors: {error}", COULD_NOT_TELL)
    return {
        name: facts.safety
        for name, facts in methods.items()
        if name.rpartition("/")[0] not in PUBLIC_SERVICES  # the relay answers them itself
    }


def _judge(file: str, by_proto: Mapping[str, Safety | None]) -> tuple[tuple[Problem, ...], list[Finding]]:
    try:
        document = read_document(file)
        found = findings(document, _STAND_IN_TARGET)
        return (), [*found, *undeclared(document, _STAND_IN_TARGET, by_proto)]
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
