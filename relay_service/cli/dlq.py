"""``relay dlq``: dead letters of a running relay."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay_service.cli import dlq_decide, dlq_replay
from relay_service.cli.dlq_filter import (
    Causes,
    CodeName,
    Method,
    Relay,
    Since,
    States,
    Until,
    letter_filter,
    pages,
    service,
)
from relay_service.cli.dlq_view import group_row, letter_lines, letter_row
from relay_service.cli.failures import COULD_NOT_TELL, fail
from relay_service.cli.job_view import shown
from relay_service.cli.work import (
    ANSWER_TIMEOUT_S,
    AdminAddress,
    AsJson,
    Limit,
    Payloads,
    as_line,
    print_table,
    progress_bar,
    told_more,
    types_at,
)

if TYPE_CHECKING:
    from protos.relay.v1 import dead_letter_pb2

app = typer.Typer(
    name="dlq",
    help="Look at dead letters, and decide about them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("ls")
def ls(
    *,
    cause: Causes = None,
    state: States = None,
    method: Method = "",
    code: CodeName = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 100,
    address: AdminAddress = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    which = letter_filter(None, cause, state, method=method, code=code, since=since, until=until)
    found = []
    with service(address) as stub:
        for letter in pages(stub, which, limit):
            if as_json:
                typer.echo(as_line(letter))
            found.append(letter)
    if not as_json:
        columns = ("id", "state", "cause", "method", "key", "died", "runs", "message")
        print_table("Dead letters", columns, map(letter_row, found))
    told_more(len(found), limit)


@app.command("groups")
def groups(
    *,
    cause: Causes = None,
    state: States = None,
    method: Method = "",
    code: CodeName = None,
    since: Since = None,
    until: Until = None,
    address: AdminAddress = None,
    as_json: AsJson = False,
) -> None:
    """Count dead letters by what they died of."""
    from protos.relay.v1 import dead_letter_pb2

    which = letter_filter(None, cause, state, method=method, code=code, since=since, until=until)
    request = dead_letter_pb2.GroupLettersRequest(filter=which)
    with service(address) as stub:
        found = stub.GroupLetters(request, timeout=ANSWER_TIMEOUT_S).groups
    if as_json:
        for group in found:
            typer.echo(as_line(group))
        return
    columns = ("count", "state", "cause", "code", "method", "oldest", "newest", "for example")
    print_table("Dead letters", columns, map(group_row, found))


@app.command("show")
def show(
    letter_id: Annotated[str, typer.Argument(help="The letter's id.")],
    *,
    payloads: Payloads = False,
    address: AdminAddress = None,
    relay: Relay = None,
    as_json: AsJson = False,
) -> None:
    """Show one letter with its history."""
    from protos.relay.v1 import dead_letter_pb2
    from relay_service.cli.call import relay_target

    request = dead_letter_pb2.GetLetterRequest(id=letter_id, include_payloads=payloads)
    with service(address) as stub:
        letter = stub.GetLetter(request, timeout=ANSWER_TIMEOUT_S).letter
    known = types_at(relay_target(relay)) if payloads else None
    typer.echo(shown(letter, letter_lines(letter, known), known, as_json=as_json))


app.command("replay")(dlq_replay.replay)
app.command("edit")(dlq_decide.edit)
app.command("hold")(dlq_decide.hold)
app.command("release")(dlq_decide.release)
app.command("discard")(dlq_decide.discard)


@app.command("export")
def export(
    *,
    cause: Causes = None,
    state: States = None,
    method: Method = "",
    code: CodeName = None,
    since: Since = None,
    until: Until = None,
    address: AdminAddress = None,
) -> None:
    """Print letters whole, payloads included (in base64), as JSON lines that `import` takes."""
    from protos.relay.v1 import dead_letter_pb2

    which = letter_filter(None, cause, state, method=method, code=code, since=since, until=until)
    with service(address) as stub, progress_bar() as progress:
        bar = progress.add_task("exporting", total=None)
        for exported in stub.Export(dead_letter_pb2.ExportRequest(filter=which)):
            typer.echo(as_line(exported.letter))
            progress.advance(bar)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="JSON lines as exported; - reads stdin.")],
    *,
    address: AdminAddress = None,
    as_json: AsJson = False,
) -> None:
    """Take exported letters in, as open ones; says how many were new."""
    try:
        lines = (sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")).splitlines()
    except OSError as error:
        fail(f"{file}: {error.strerror}", COULD_NOT_TELL)
    except UnicodeDecodeError as error:
        fail(f"{file} is no text: {error}", COULD_NOT_TELL)
    requests = list(_imports(lines))
    with service(address) as stub, progress_bar() as progress:
        bar = progress.add_task("importing", total=len(requests))
        done = stub.Import(progress.track(requests, task_id=bar))
    typer.echo(as_line(done) if as_json else f"{done.imported} imported, {done.known} here already")


def _imports(lines: list[str]) -> "Iterator[dead_letter_pb2.ImportRequest]":
    """All are read before the first is sent: a bad line is told before anything is done."""
    from protos.relay.v1 import dead_letter_pb2
    from relay_service.cli.payloads import letter_of_line

    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                letter = letter_of_line(line)
            except ValueError as error:
                fail(f"line {number} is no dead letter: {error}", COULD_NOT_TELL)
            yield dead_letter_pb2.ImportRequest(letter=letter)
