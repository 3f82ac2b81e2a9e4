"""``relay explain``: what a status code or a reason means, and what to do about it."""

import difflib
import json
import textwrap
from typing import Annotated

import typer

from relay_service.cli.explanations import CODES, REASONS, Explanation
from relay_service.cli.failures import COULD_NOT_TELL, fail
from relay_service.core.reason import Reason
from relay_service.core.status import Code

LINE_CHARACTERS = 100


def explain(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[CODE|REASON]", help="A status code (name or number) or a reason."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain a gRPC status code or one of the relay's reasons; without a name, list them all."""
    chosen = _named(name) if name is not None else [*Reason, *Code]
    if as_json:
        typer.echo(json.dumps([_as_json(subject) for subject in chosen], indent=2))
    elif name is None:
        _list()
    else:
        _tell(chosen[0])


def explanation(subject: Code | Reason) -> Explanation:
    """What is to be said of a code or a reason."""
    return REASONS[subject] if isinstance(subject, Reason) else CODES[subject]


def told_as(reason: Reason) -> str:
    """The status code a reason comes with, in words."""
    return reason.code.name if reason.code is not None else "the last attempt's status"


def _named(name: str) -> list[Code | Reason]:
    wanted = name.strip().upper().replace("-", "_")
    subjects: dict[str, Code | Reason] = {code.name: code for code in Code}
    subjects |= {str(code.value): code for code in Code} | {reason.name: reason for reason in Reason}
    if wanted not in subjects:
        close = difflib.get_close_matches(wanted, subjects, n=1)
        hint = f"did you mean {close[0]}?" if close else "`relay explain` lists them all"
        fail(f"{name!r} is neither a status code nor a reason: {hint}", COULD_NOT_TELL)
    return [subjects[wanted]]


def _list() -> None:
    typer.echo("Reasons (in ErrorInfo, and in the trailer relay-decision):")
    for reason in Reason:
        typer.echo(f"  {reason.name:<26} {reason.meaning}")
    typer.echo("\nStatus codes:")
    for code in Code:
        typer.echo(f"  {code.name:<26} {CODES[code].meaning}")
    typer.echo("\n`relay explain NAME` says when each comes and what to do.")


def _tell(subject: Code | Reason) -> None:
    said = explanation(subject)
    kind = (
        f"reason, told as {told_as(subject)}"
        if isinstance(subject, Reason)
        else f"status code {subject.value}"
    )
    typer.echo(f"{subject.name} ({kind})")
    for label, text in (("Meaning:", said.meaning), ("When:", said.when), ("What to do:", said.advice)):
        typer.echo(
            textwrap.fill(text, LINE_CHARACTERS, initial_indent=f"  {label:<12}", subsequent_indent=" " * 14)
        )


def _as_json(subject: Code | Reason) -> dict[str, object]:
    said = explanation(subject)
    told = {"meaning": said.meaning, "when": said.when, "advice": said.advice}
    if isinstance(subject, Reason):
        return {"reason": subject.name, "code": subject.code.name if subject.code else None, **told}
    return {"code": subject.name, "number": subject.value, **told}
