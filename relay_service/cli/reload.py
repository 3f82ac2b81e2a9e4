"""``relay reload``: have a running relay read its policy again."""

import asyncio
import json
from typing import Annotated

import typer

from relay_service.cli.admin_target import AddressOption, admin_target
from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail


def reload(
    *,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put the policy as it stands in its file now into force, without a restart.

    A policy with errors changes nothing: they are printed, and the exit code is 1.
    """
    from relay_service.cli import reload_call

    target = admin_target(address)
    try:
        reloaded = asyncio.run(reload_call.reload_policy(target))
    except reload_call.PolicyRefusedError as refused:
        for problem in refused.problems:
            typer.echo(f"error: {problem}", err=True)
        typer.echo(refused.text, err=True)
        raise typer.Exit(BROKEN) from None
    except reload_call.NoAnswerError as error:
        fail(f"{error}. Is the relay running, and is {target} its admin address?", COULD_NOT_TELL)
    if as_json:
        typer.echo(json.dumps(reload_call.as_json(reloaded), indent=2))
        return
    for warning in reloaded.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(f"policy {reloaded.policy.name} {reloaded.policy.version} is in force")
