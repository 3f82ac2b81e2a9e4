"""``relay jobs``: durable jobs of a running relay."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_service.cli.call import relay_target
from relay_service.cli.failures import BROKEN

if TYPE_CHECKING:
    from protos.relay.v1 import job_pb2

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
    moment,
    name_of,
    print_table,
)

app = typer.Typer(
    name="jobs",
    help="Look at durable jobs, and steer them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobId = Annotated[str, typer.Argument(help="The job's id.")]
Method = Annotated[str, typer.Option(help="Only jobs of package.Service/Method.")]
OrderKey = Annotated[str, typer.Option(help="Only jobs of this order key.")]


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
        print_table(
            "Jobs", ("id", "state", "method", "key", "submitted", "ready", "runs", "last"), map(_row, found)
        )


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


def _row(job: "job_pb2.Job") -> tuple[str, ...]:
    last = f"{job.tries[-1].code} {job.tries[-1].message}"[:60] if job.tries else ""
    times = (moment(job.submit_time), moment(job.ready_time))
    return (
        job.id,
        state_name(job),
        job.work.method,
        job.work.idempotency_key,
        *times,
        str(job.attempts),
        last,
    )


def state_name(job: "job_pb2.Job") -> str:
    """Where a job stands, in one word."""
    from protos.relay.v1 import job_pb2

    return name_of(job_pb2.JobState, job.state, "JOB_STATE_")


@app.command("show")
def show(job_id: JobId, *, payloads: Payloads = False, address: Address = None) -> None:
    """Show one job with its history, as JSON."""
    from protos.relay.v1 import job_pb2

    with _service(address) as stub:
        request = job_pb2.GetJobRequest(id=job_id, include_payloads=payloads)
        typer.echo(as_line(stub.GetJob(request, timeout=ANSWER_TIMEOUT_S).job))


@app.command("watch")
def watch(
    job_id: JobId, *, payloads: Payloads = False, address: Address = None, as_json: AsJson = False
) -> None:
    """Follow a job until it has ended. Exit code 0 when it completed, 1 when it did not."""
    from protos.relay.v1 import job_pb2

    state = ""
    with _service(address) as stub:
        for change in stub.WatchJob(job_pb2.WatchJobRequest(id=job_id, include_payloads=payloads)):
            state = state_name(change.job)
            typer.echo(as_line(change.job) if as_json else f"{state} after {change.job.attempts} runs")
    if state != "COMPLETED":
        raise typer.Exit(BROKEN)


@app.command("cancel")
def cancel(job_id: JobId, *, address: Address = None, as_json: AsJson = False) -> None:
    """Cancel a job. Exit code 1 when it had ended otherwise before."""
    from protos.relay.v1 import job_pb2

    with _service(address) as stub:
        job = stub.CancelJob(job_pb2.CancelJobRequest(id=job_id), timeout=ANSWER_TIMEOUT_S).job
    typer.echo(as_line(job) if as_json else state_name(job))
    if state_name(job) != "CANCELLED":
        raise typer.Exit(BROKEN)


@app.command("pause")
def pause(*, method: Method = "", order_key: OrderKey = "", address: Address = None) -> None:
    """Keep waiting jobs from being run; says how many."""
    from protos.relay.v1 import job_pb2

    which = job_pb2.JobFilter(method=method, order_key=order_key)
    with _service(address) as stub:
        done = stub.PauseJobs(job_pb2.PauseJobsRequest(filter=which), timeout=ANSWER_TIMEOUT_S)
    typer.echo(str(done.paused))


@app.command("resume")
def resume(*, method: Method = "", order_key: OrderKey = "", address: Address = None) -> None:
    """Let paused jobs run again; says how many."""
    from protos.relay.v1 import job_pb2

    which = job_pb2.JobFilter(method=method, order_key=order_key)
    with _service(address) as stub:
        done = stub.ResumeJobs(job_pb2.ResumeJobsRequest(filter=which), timeout=ANSWER_TIMEOUT_S)
    typer.echo(str(done.resumed))


@contextmanager
def _service(address: str | None) -> Iterator[Any]:
    from protos.relay.v1.job_pb2_grpc import JobServiceStub

    with connected(relay_target(address)) as channel:
        yield JobServiceStub(channel)
