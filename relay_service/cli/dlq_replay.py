"""``relay dlq replay``: do dead letters' work again, and say beforehand what that would do."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from relay_service.cli.dlq_filter import (
    BY,
    Causes,
    CodeName,
    Every,
    Ids,
    Method,
    Since,
    Until,
    letter_filter,
    must_narrow,
    pages,
    service,
)
from relay_service.cli.dlq_view import compared_lines, forecast_lines, letter_state, report_lines
from relay_service.cli.failures import BROKEN
from relay_service.cli.work import AdminAddress, AsJson, as_line, progress_bar


def replay(
    ids: Ids = None,
    *,
    cause: Causes = None,
    method: Method = "",
    code: CodeName = None,
    since: Since = None,
    until: Until = None,
    every: Every = False,
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
    """Do open dead letters' work again, under their keys.

    Exit code 0 when all were done, 1 when one was not, or one that was named is not open.
    """
    from protos.relay.v1 import dead_letter_pb2

    must_narrow(letter_filter(ids, cause, None, method=method, code=code, since=since, until=until), every)
    all_open = _all_open(ids or [], address)
    which = letter_filter(ids, cause, ["OPEN"], method=method, code=code, since=since, until=until)
    if dry_run:
        _forecast(which, address, as_json=as_json)
    else:
        request = dead_letter_pb2.ReplayRequest(
            filter=which, rate_per_second=rate, canary=canary, max_failures=max_failures, by=BY
        )
        request.wait.FromNanoseconds(round(wait * 1e9))
        report = _follow(request, address, as_json=as_json)
        all_open &= report.executed + report.already_executed >= report.total
    if not all_open:
        raise typer.Exit(BROKEN)


def _all_open(ids: Sequence[str], address: str | None) -> bool:
    """Whether all letters named can be replayed; tells which cannot."""
    if not ids:
        return True
    with service(address) as stub:
        found = {letter.id: letter_state(letter) for letter in pages(stub, letter_filter(ids), len(ids))}
    for letter_id in ids:
        state = found.get(letter_id)
        if state is None:
            typer.echo(f"error: there is no dead letter {letter_id!r}", err=True)
        elif state != "OPEN":
            typer.echo(f"error: dead letter {letter_id} is {state}; only open ones are replayed", err=True)
    return all(found.get(letter_id) == "OPEN" for letter_id in ids)


def _follow(request: Any, address: str | None, *, as_json: bool) -> Any:
    from protos.relay.v1 import dead_letter_pb2

    report = dead_letter_pb2.ReplayReport()
    ends = []
    with service(address) as stub, progress_bar() as progress:
        bar = progress.add_task("replaying", total=None)
        for event in stub.Replay(request):
            match event.WhichOneof("event"):
                case "total":
                    progress.update(bar, total=event.total)
                case "end":
                    progress.advance(bar)
                    ends.append(event.end)
                    if as_json:
                        typer.echo(as_line(event.end))
                case "report":
                    report = event.report
    lines = [*report_lines(report), *compared_lines(ends)]
    typer.echo(as_line(report) if as_json else "\n".join(lines))
    return report


def _forecast(which: Any, address: str | None, *, as_json: bool) -> None:
    from protos.relay.v1 import dead_letter_pb2

    forecasts = []
    with service(address) as stub, progress_bar() as progress:
        bar = progress.add_task("forecasting", total=None)
        for planned in stub.PlanReplay(dead_letter_pb2.PlanReplayRequest(filter=which)):
            progress.advance(bar)
            if as_json:
                typer.echo(as_line(planned.forecast))
            forecasts.append(planned.forecast)
    if not as_json:
        typer.echo("\n".join(forecast_lines(forecasts)))
