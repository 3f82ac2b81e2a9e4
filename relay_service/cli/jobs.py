"""``relay jobs``: durable jobs of a running relay."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_service.cli.call import relay_target
from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail
from relay_service.cli.job_view import ROW, change_line, job_lines, job_row, shown, state_name
from relay_service.cli.work import (
    ANSWER_TIMEOUT_S,
    PAGE_SIZE,
    Address,
    AsJson,
    Limit,
    Payloads,
    as_line,
    chosen,
    connected,
    print_table,
    told_more,
    types_at,
)

if TYPE_CHECKING:
    from protos.relay.v1 import job_pb2

app = typer.Typer(
    name="jobs",
    help="Look at durable jobs, and steer them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobId = Annotated[str, typer.Argument(help="The job's id.")]
Method = Annotated[str, typer.Option(help="Only jobs of package.Service/Method.")]
OrderKey = Annotated[str, typer.Option(help="Only jobs of this order key.")]
Every = Annotated[bool, typer.Option("--all", help="Without --method or --order-key: all jobs.")]


@app.command("ls")
def ls(
    *,
    state: Annotated[
        list[str] | None, typer.Option("--state", "-s", help="Only this state; may be repeated.")
    ] = None,
    method: Method = "",
    order_key: OrderKey = "",
    limit: Limit = 100,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, oldest first."""
    from protos.relay.v1 import job_pb2

    states = chosen(state, job_pb2.JobState, "JOB_STATE_", "--state")
    which = job_pb2.JobFilter(method=method, states=states, order_key=order_key)
    found = []
    with _service(address) as stub:
        for job in _pages(stub, which, limit):
            if as_json:
                typer.echo(as_line(job))
            found.append(job)
    if not as_json:
        print_table("Jobs", ROW, map(job_row, found))
    told_more(len(found), limit)


def _pages(stub: Any, which: "job_pb2.JobFilter", limit: int) -> "Iterator[job_pb2.Job]":
    from protos.relay.v1 import job_pb2

    token = ""
    while limit > 0:
        request = job_pb2.ListJobsRequest(filter=which, page_size=min(limit, PAGE_SIZE), page_token=token)
        page = stub.ListJobs(request, timeout=ANSWER_TIMEOUT_S)
        yield from page.jobs
        limit -= len(page.jobs)
        token = page.next_page_token
        if not token:
            return


@app.command("show")
def show(
    job_id: JobId, *, payloads: Payloads = False, address: Address = None, as_json: AsJson = False
) -> None:
    """Show one job with its history."""
    from protos.relay.v1 import job_pb2

    with _service(address) as stub:
        request = job_pb2.GetJobRequest(id=job_id, include_payloads=payloads)
        job = stub.GetJob(request, timeout=ANSWER_TIMEOUT_S).job
    known = types_at(relay_target(address)) if payloads else None
    typer.echo(shown(job, job_lines(job, known), known, as_json=as_json))


@app.command("watch")
def watch(
    job_id: JobId, *, payloads: Payloads = False, address: Address = None, as_json: AsJson = False
) -> None:
    """Follow a job until it has ended. Exit code 0 when it completed, 1 when it did not."""
    from protos.relay.v1 import job_pb2

    known = types_at(relay_target(address)) if payloads else None
    state, last = "", None
    with _service(address) as stub:
        for change in stub.WatchJob(job_pb2.WatchJobRequest(id=job_id, include_payloads=payloads)):
            state, last = state_name(change.job), change.job
            typer.echo(as_line(change.job, known) if as_json else change_line(change.job))
    if payloads and last is not None and not as_json:
        typer.echo("\n".join(job_lines(last, known)))
    if state != "COMPLETED":
        raise typer.Exit(BROKEN)


@app.command("cancel")
def cancel(
    job_ids: Annotated[list[str], typer.Argument(help="The jobs' ids.")],
    *,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs. Exit code 1 when one is not known or had ended otherwise before."""
    from protos.relay.v1 import job_pb2

    all_cancelled = True
    for job_id in job_ids:
        with _service(address) as stub:
            job = stub.CancelJob(job_pb2.CancelJobRequest(id=job_id), timeout=ANSWER_TIMEOUT_S).job
        typer.echo(as_line(job) if as_json else f"{job.id} {state_name(job)}")
        all_cancelled &= state_name(job) == "CANCELLED"
    if not all_cancelled:
        raise typer.Exit(BROKEN)


@app.command("pause")
def pause(
    *,
    method: Method = "",
    order_key: OrderKey = "",
    every: Every = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Keep the jobs that wait now from being run; those submitted later are not paused."""
    from protos.relay.v1 import job_pb2

    which = _which(method, order_key, every)
    with _service(address) as stub:
        done = stub.PauseJobs(job_pb2.PauseJobsRequest(filter=which), timeout=ANSWER_TIMEOUT_S)
    typer.echo(as_line(done) if as_json else f"{done.paused} paused")


@app.command("resume")
def resume(
    *,
    method: Method = "",
    order_key: OrderKey = "",
    every: Every = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Let paused jobs run again."""
    from protos.relay.v1 import job_pb2

    which = _which(method, order_key, every)
    with _service(address) as stub:
        done = stub.ResumeJobs(job_pb2.ResumeJobsRequest(filter=which), timeout=ANSWER_TIMEOUT_S)
    typer.echo(as_line(done) if as_json else f"{done.resumed} resumed")


def _which(method: str, order_key: str, every: bool) -> "job_pb2.JobFilter":
    from protos.relay.v1 import job_pb2

    if not (method or order_key or every):
        fail("name a --method or an --order-key, or say --all", COULD_NOT_TELL)
    return job_pb2.JobFilter(method=method, order_key=order_key)


@contextmanager
def _service(address: str | None) -> Iterator[Any]:
    from protos.relay.v1.job_pb2_grpc import JobServiceStub

    with connected(relay_target(address)) as channel:
        yield JobServiceStub(channel)
