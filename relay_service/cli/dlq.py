"""``relay dlq``: dead letters of a running relay."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_service.cli.admin_target import admin_target
from relay_service.cli.dlq_view import counted, group_row, letter_row, report_lines, surprise_lines
from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail
from relay_service.cli.work import (
    ANSWER_TIMEOUT_S,
    PAGE_SIZE,
    AdminAddress,
    AsJson,
    Limit,
    Payloads,
    as_line,
    chosen,
    connected,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from protos.relay.v1 import dead_letter_pb2

BY = "relay dlq"

app = typer.Typer(
    name="dlq",
    help="Look at dead letters, and decide about them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LetterId = Annotated[str, typer.Argument(help="The letter's id.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Only these letters; all that match otherwise.")]
Causes = Annotated[list[str] | None, typer.Option("--cause", "-c", help="Only this cause; may be repeated.")]
States = Annotated[list[str] | None, typer.Option("--state", "-s", help="Only this state; may be repeated.")]
Method = Annotated[str, typer.Option(help="Only letters of package.Service/Method.")]


@app.command("ls")
def ls(
    *,
    cause: Causes = None,
    state: States = None,
    method: Method = "",
    limit: Limit = 100,
    address: AdminAddress = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    found = []
    with _service(address) as stub:
        for letter in _pages(stub, _filter(None, cause, state, method), limit):
            if as_json:
                typer.echo(as_line(letter))
            found.append(letter)
    if not as_json:
        columns = ("id", "state", "cause", "method", "key", "died", "runs", "message")
        print_table("Dead letters", columns, map(letter_row, found))


@app.command("groups")
def groups(
    *,
    cause: Causes = None,
    state: States = None,
    method: Method = "",
    address: AdminAddress = None,
    as_json: AsJson = False,
) -> None:
    """Count dead letters by what they died of."""
    from protos.relay.v1 import dead_letter_pb2

    request = dead_letter_pb2.GroupLettersRequest(filter=_filter(None, cause, state, method))
    with _service(address) as stub:
        found = stub.GroupLetters(request, timeout=ANSWER_TIMEOUT_S).groups
    if as_json:
        for group in found:
            typer.echo(as_line(group))
        return
    columns = ("count", "state", "cause", "code", "method", "oldest", "newest", "for example")
    print_table("Dead letters", columns, map(group_row, found))


@app.command("show")
def show(letter_id: LetterId, *, payloads: Payloads = False, address: AdminAddress = None) -> None:
    """Show one letter with its history, as JSON."""
    from protos.relay.v1 import dead_letter_pb2

    request = dead_letter_pb2.GetLetterRequest(id=letter_id, include_payloads=payloads)
    with _service(address) as stub:
        typer.echo(as_line(stub.GetLetter(request, timeout=ANSWER_TIMEOUT_S).letter))


@app.command("replay")
def replay(
    ids: Ids = None,
    *,
    cause: Causes = None,
    method: Method = "",
    every: Annotated[bool, typer.Option("--all", help="Without ids or filter: all open letters.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would happen to each.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0.01, max=10_000, help="Letters per second.")] = 10.0,
    canary: Annotated[
        int, typer.Option(min=0, help="Letters tried first, one by one; one failure ends it all.")
    ] = 1,
    max_failures: Annotated[int, typer.Option(min=1, help="Begin nothing more after so many failures.")] = 10,
    wait: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds to wait for each.")] = 60.0,
    address: AdminAddress = None,
    as_json: AsJson = False,
) -> None:
    """Do dead letters' work again, under their keys.

    Exit code 0 when all were done, 1 when one was not.
    """
    from protos.relay.v1 import dead_letter_pb2

    if not (ids or cause or method or every):
        fail("name letters, a --cause or a --method, or say --all", COULD_NOT_TELL)
    which = _filter(ids, cause, ["OPEN"], method)
    if dry_run:
        _forecast(which, address, as_json=as_json)
        return
    request = dead_letter_pb2.ReplayRequest(
        filter=which, rate_per_second=rate, canary=canary, max_failures=max_failures, by=BY
    )
    request.wait.FromNanoseconds(round(wait * 1e9))
    report = _follow(request, address, as_json=as_json)
    if report.executed + report.already_executed < report.total:
        raise typer.Exit(BROKEN)


def _follow(request: Any, address: str | None, *, as_json: bool) -> "dead_letter_pb2.ReplayReport":
    from protos.relay.v1 import dead_letter_pb2

    report = dead_letter_pb2.ReplayReport()
    with _service(address) as stub, progress_bar() as progress:
        bar = progress.add_task("replaying", total=None)
        for event in stub.Replay(request):
            match event.WhichOneof("event"):
                case "total":
                    progress.update(bar, total=event.total)
                case "end":
                    progress.advance(bar)
                    if as_json:
                        typer.echo(as_line(event.end))
                case "report":
                    report = event.report
    typer.echo(as_line(report) if as_json else "\n".join(report_lines(report)))
    return report


def _forecast(which: Any, address: str | None, *, as_json: bool) -> None:
    from protos.relay.v1 import dead_letter_pb2

    forecasts = []
    with _service(address) as stub:
        for planned in stub.PlanReplay(dead_letter_pb2.PlanReplayRequest(filter=which)):
            if as_json:
                typer.echo(as_line(planned.forecast))
            forecasts.append(planned.forecast)
    if not as_json:
        typer.echo("\n".join([counted(forecasts), *surprise_lines(forecasts)]))


@app.command("edit")
def edit(
    letter_id: LetterId,
    request: Annotated[str, typer.Argument(help="The request to make instead, as JSON; - reads stdin.")],
    *,
    key: Annotated[str, typer.Option("--key", "-k", help="Its key; the new job's id by default.")] = "",
    address: AdminAddress = None,
    relay: Annotated[
        str | None, typer.Option(help="The relay's own address, for the method's types.")
    ] = None,
) -> None:
    """Do other work in a letter's place, under a key of its own; prints the new job's id."""
    import asyncio

    from protos.relay.v1 import dead_letter_pb2
    from relay_service.cli import caller
    from relay_service.cli.call import relay_target

    with _service(address) as stub:
        asked = dead_letter_pb2.GetLetterRequest(id=letter_id)
        method = stub.GetLetter(asked, timeout=ANSWER_TIMEOUT_S).letter.work.method
        text = sys.stdin.read() if request == "-" else request
        try:
            (encoded,) = asyncio.run(caller.encode(relay_target(relay), method, [text]))
        except (caller.UnusableCallError, caller.UnreachableError) as error:
            fail(str(error), COULD_NOT_TELL)
        wanted = dead_letter_pb2.EditAndReplayRequest(id=letter_id, idempotency_key=key, by=BY)
        wanted.request.value = encoded.message
        typer.echo(stub.EditAndReplay(wanted, timeout=ANSWER_TIMEOUT_S).job_id)


@app.command("hold")
def hold(
    letter_id: LetterId,
    *,
    note: Annotated[str, typer.Option(help="Why.")] = "",
    address: AdminAddress = None,
) -> None:
    """Keep a letter from every replay and from expiry."""
    from protos.relay.v1 import dead_letter_pb2

    with _service(address) as stub:
        stub.Hold(dead_letter_pb2.HoldRequest(id=letter_id, note=note), timeout=ANSWER_TIMEOUT_S)


@app.command("release")
def release(letter_id: LetterId, *, address: AdminAddress = None) -> None:
    """Open a held letter again."""
    from protos.relay.v1 import dead_letter_pb2

    with _service(address) as stub:
        stub.Release(dead_letter_pb2.ReleaseRequest(id=letter_id), timeout=ANSWER_TIMEOUT_S)


@app.command("discard")
def discard(
    ids: Annotated[list[str], typer.Argument(help="The letters' ids.")],
    *,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why the work need not be done.")],
    address: AdminAddress = None,
) -> None:
    """Decide that letters' work need not be done. Their keys stay used."""
    from protos.relay.v1 import dead_letter_pb2

    with _service(address) as stub:
        for letter_id in ids:
            request = dead_letter_pb2.DiscardRequest(id=letter_id, reason=reason)
            stub.Discard(request, timeout=ANSWER_TIMEOUT_S)


@app.command("export")
def export(
    *,
    cause: Causes = None,
    state: States = None,
    method: Method = "",
    address: AdminAddress = None,
) -> None:
    """Print letters whole, payloads included, as JSON lines."""
    from protos.relay.v1 import dead_letter_pb2

    with _service(address) as stub, progress_bar() as progress:
        bar = progress.add_task("exporting", total=None)
        which = _filter(None, cause, state, method)
        for exported in stub.Export(dead_letter_pb2.ExportRequest(filter=which)):
            typer.echo(as_line(exported.letter))
            progress.advance(bar)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="JSON lines as exported; - reads stdin.")],
    *,
    address: AdminAddress = None,
) -> None:
    """Take exported letters in, as open ones; says how many were new."""
    try:
        lines = (sys.stdin.read() if str(file) == "-" else file.read_text()).splitlines()
    except OSError as error:
        fail(f"{file}: {error.strerror}", COULD_NOT_TELL)
    requests = list(_imports(lines))
    with _service(address) as stub:
        done = stub.Import(iter(requests))
    typer.echo(f"{done.imported} imported, {done.known} here already")


def _imports(lines: list[str]) -> "Iterator[dead_letter_pb2.ImportRequest]":
    """All are read before the first is sent: a bad line is told before anything is done."""
    from google.protobuf.json_format import Parse, ParseError

    from protos.relay.v1 import dead_letter_pb2

    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                letter = Parse(line, dead_letter_pb2.DeadLetter())
            except ParseError as error:
                fail(f"line {number} is no dead letter: {error}", COULD_NOT_TELL)
            yield dead_letter_pb2.ImportRequest(letter=letter)


def _pages(stub: Any, which: Any, limit: int) -> "Iterator[dead_letter_pb2.DeadLetter]":
    from protos.relay.v1 import dead_letter_pb2

    token = ""
    while limit > 0:
        request = dead_letter_pb2.ListLettersRequest(
            filter=which, page_size=min(limit, PAGE_SIZE), page_token=token
        )
        page = stub.ListLetters(request, timeout=ANSWER_TIMEOUT_S)
        yield from page.letters
        limit -= len(page.letters)
        token = page.next_page_token
        if not token:
            return


def _filter(ids: list[str] | None, cause: list[str] | None, state: list[str] | None, method: str) -> Any:
    from protos.relay.v1 import dead_letter_pb2

    return dead_letter_pb2.LetterFilter(
        ids=ids or [],
        causes=chosen(cause, dead_letter_pb2.Cause, "CAUSE_", "--cause"),
        states=chosen(state, dead_letter_pb2.LetterState, "LETTER_STATE_", "--state"),
        method=method,
    )


@contextmanager
def _service(address: str | None) -> Iterator[Any]:
    from protos.relay.v1.dead_letter_pb2_grpc import DeadLetterServiceStub

    with connected(admin_target(address)) as channel:
        yield DeadLetterServiceStub(channel)
