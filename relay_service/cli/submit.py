"""``relay submit``: durable jobs from JSON."""

import asyncio
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_service.cli.call import relay_target
from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail
from relay_service.cli.job_view import state_name
from relay_service.cli.work import (
    ANSWER_TIMEOUT_S,
    Address,
    AsJson,
    as_line,
    connected,
    could_not_tell,
    progress_bar,
)

if TYPE_CHECKING:
    from relay_service.cli.caller import Encoded

AT_ONCE = 64
"""Submissions under way: those that come together share the store's commits."""


def submit(
    method: Annotated[str, typer.Argument(help="package.Service/Method")],
    request: Annotated[
        str, typer.Argument(help="The request as JSON; - reads one request per line from stdin.")
    ] = "{}",
    *,
    key: Annotated[
        str, typer.Option("--key", "-k", help="Idempotency key; of requests from stdin KEY-1, KEY-2, …")
    ] = "",
    order_key: Annotated[str, typer.Option(help="Jobs of one order key run one by one.")] = "",
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher first.")] = 0,
    delay: Annotated[float, typer.Option(min=0, help="Seconds before it may run.")] = 0.0,
    ttl: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds after which it is given up; the policy's by default."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="NAME:VALUE", help="Request metadata; may be repeated."),
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Submit durable jobs; prints each one's id once it is committed.

    Exit code 0 when all were accepted, 1 when one was refused, 2 when nobody could be asked: then submit
    again under the same key, which is never accepted twice.
    """
    from protos.relay.v1 import job_pb2
    from relay_service.cli import caller

    target = relay_target(address)
    method = method.removeprefix("/")
    lines = _lines() if request == "-" else [request]
    if key and request == "-":
        # Also of a single line: its key must not depend on how many others come with it.
        keys = [f"{key}-{number}" for number in range(1, len(lines) + 1)]
    else:
        keys = [key] * len(lines)
    try:
        metadata = dict(caller.parse_header(text) for text in header or ())
        requests = asyncio.run(caller.encode(target, method, lines))
    except caller.UnusableCallError as error:
        fail(str(error), COULD_NOT_TELL)
    except caller.UnreachableError as error:
        fail(str(error), COULD_NOT_TELL)
    work = job_pb2.Work(
        method=method,
        order_key=order_key,
        priority=priority,
        metadata={name: str(value) for name, value in metadata.items()},
    )
    submissions = list(_submissions(work, requests, keys, delay, ttl))
    exit_code = _submit_all(target, submissions, as_json=as_json)
    if exit_code:
        raise typer.Exit(exit_code)


def _lines() -> list[str]:
    """The requests on stdin."""
    lines = [line for line in sys.stdin if line.strip()]
    if not lines:
        fail("there is no request on stdin", COULD_NOT_TELL)
    return lines


def _submissions(
    work: Any, requests: "list[Encoded]", keys: list[str], delay_s: float, ttl_s: float | None
) -> Iterator[Any]:
    from protos.relay.v1 import job_pb2

    for key, encoded in zip(keys, requests, strict=True):
        submission = job_pb2.SubmitRequest(work=work)
        submission.work.request.type_url = f"type.googleapis.com/{encoded.type_name}"
        submission.work.request.value = encoded.message
        submission.work.idempotency_key = key
        if delay_s:
            submission.delay.FromNanoseconds(round(delay_s * 1e9))
        if ttl_s is not None:
            submission.time_to_live.FromNanoseconds(round(ttl_s * 1e9))
        yield submission


def _submit_all(target: str, submissions: list[Any], *, as_json: bool) -> int:
    """Print each accepted job in the order of the requests; returns the exit code."""
    from protos.relay.v1.job_pb2_grpc import JobServiceStub

    exit_code = 0
    with connected(target) as channel, progress_bar() as progress:
        bar = progress.add_task("submitting", total=len(submissions))
        stub = JobServiceStub(channel)
        for first in range(0, len(submissions), AT_ONCE):
            chunk = submissions[first : first + AT_ONCE]
            calls = [stub.Submit.future(one, timeout=ANSWER_TIMEOUT_S) for one in chunk]
            for number, call in enumerate(calls, start=first + 1):
                error = call.exception()
                if error is not None and len(submissions) == 1:
                    raise error
                if error is None:
                    _accepted(call.result(), as_json=as_json)
                else:
                    exit_code = max(exit_code, _not_accepted(number, call))
                progress.advance(bar)
    return exit_code


def _accepted(response: Any, *, as_json: bool) -> None:
    typer.echo(as_line(response) if as_json else response.job.id)
    if response.existed and not as_json:
        job = response.job
        typer.echo(
            f"note: {job.work.idempotency_key!r} was submitted before; this is its job, {state_name(job)}",
            err=True,
        )


def _not_accepted(number: int, call: Any) -> int:
    """Tell it; what it is for the exit code."""
    if not could_not_tell(call):
        typer.echo(f"error: request {number}: {call.code().name}: {call.details()}", err=True)
        return BROKEN
    typer.echo(
        f"error: request {number}: {call.code().name}: {call.details()};"
        " it may have been accepted: submit it again under the same key",
        err=True,
    )
    return COULD_NOT_TELL
