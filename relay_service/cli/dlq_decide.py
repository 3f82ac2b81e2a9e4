"""``relay dlq edit|hold|release|discard``: what somebody decides about dead letters."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from relay_service.cli.dlq_filter import (
    ALL,
    BY,
    Causes,
    CodeName,
    Every,
    Ids,
    Method,
    Relay,
    Since,
    Until,
    letter_filter,
    must_narrow,
    pages,
    service,
)
from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail
from relay_service.cli.work import ANSWER_TIMEOUT_S, AdminAddress, could_not_tell, progress_bar

Decision = Callable[[Any, str], object]
"""Makes the decision about one letter known: the service and the letter's id."""


def edit(
    letter_id: Annotated[str, typer.Argument(help="The letter's id.")],
    request: Annotated[str, typer.Argument(help="The request to make instead, as JSON; - reads stdin.")],
    *,
    key: Annotated[str, typer.Option("--key", "-k", help="Its key; the new job's id by default.")] = "",
    address: AdminAddress = None,
    relay: Relay = None,
) -> None:
    """Do other work in a letter's place, under a key of its own; prints the new job's id."""
    import asyncio

    from protos.relay.v1 import dead_letter_pb2
    from relay_service.cli import caller
    from relay_service.cli.call import relay_target

    with service(address) as stub:
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


def hold(
    ids: Ids = None,
    *,
    note: Annotated[str, typer.Option(help="Why.")] = "",
    cause: Causes = None,
    method: Method = "",
    code: CodeName = None,
    since: Since = None,
    until: Until = None,
    every: Every = False,
    address: AdminAddress = None,
) -> None:
    """Keep open letters from every replay and from expiry."""
    from protos.relay.v1 import dead_letter_pb2

    def decide(stub: Any, letter_id: str) -> None:
        stub.Hold(dead_letter_pb2.HoldRequest(id=letter_id, note=note), timeout=ANSWER_TIMEOUT_S)

    which = letter_filter(ids, cause, None, method=method, code=code, since=since, until=until)
    must_narrow(which, every)
    _decide_all(which, ["OPEN"], decide, address, "held")


def release(
    ids: Ids = None,
    *,
    note: Annotated[str, typer.Option(help="Why.")] = "",
    cause: Causes = None,
    method: Method = "",
    code: CodeName = None,
    since: Since = None,
    until: Until = None,
    every: Every = False,
    address: AdminAddress = None,
) -> None:
    """Open held letters again."""
    from protos.relay.v1 import dead_letter_pb2

    def decide(stub: Any, letter_id: str) -> None:
        stub.Release(dead_letter_pb2.ReleaseRequest(id=letter_id, note=note), timeout=ANSWER_TIMEOUT_S)

    which = letter_filter(ids, cause, None, method=method, code=code, since=since, until=until)
    must_narrow(which, every)
    _decide_all(which, ["HELD"], decide, address, "released")


def discard(
    ids: Ids = None,
    *,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why the work need not be done.")],
    cause: Causes = None,
    method: Method = "",
    code: CodeName = None,
    since: Since = None,
    until: Until = None,
    every: Every = False,
    address: AdminAddress = None,
) -> None:
    """Decide that open letters' work need not be done. Their keys stay used.

    A held letter is discarded when it is named.
    """
    from protos.relay.v1 import dead_letter_pb2

    def decide(stub: Any, letter_id: str) -> None:
        stub.Discard(dead_letter_pb2.DiscardRequest(id=letter_id, reason=reason), timeout=ANSWER_TIMEOUT_S)

    if not reason.strip():
        fail("--reason: must say why the work need not be done", COULD_NOT_TELL)
    which = letter_filter(ids, cause, None, method=method, code=code, since=since, until=until)
    must_narrow(which, every)
    _decide_all(which, ["OPEN"], decide, address, "discarded")


def _decide_all(which: Any, states: list[str], decide: Decision, address: str | None, done: str) -> None:
    """Decide about each letter, go on after one that cannot be; exit code 1 when there was one."""
    from protos.relay.v1 import dead_letter_pb2

    failed = 0
    with service(address) as stub, progress_bar() as progress:
        ids: Sequence[str] = list(which.ids)
        if not ids:
            which.states.extend(dead_letter_pb2.LetterState.Value(f"LETTER_STATE_{one}") for one in states)
            ids = [letter.id for letter in pages(stub, which, ALL)]
            if not ids:
                typer.echo(f"no {' or '.join(states).lower()} letter matches", err=True)
        for letter_id in progress.track(ids, description=done):
            failed += not _decide_one(stub, letter_id, decide, done)
    if failed:
        raise typer.Exit(BROKEN)


def _decide_one(stub: Any, letter_id: str, decide: Decision, done: str) -> bool:
    import grpc

    try:
        decide(stub, letter_id)
    except grpc.RpcError as error:
        # What grpc raises is a call as well; its stubs do not say so.
        call: Any = error
        if could_not_tell(call):
            raise
        typer.echo(f"error: {call.code().name}: {call.details()}", err=True)
        return False
    typer.echo(f"{letter_id} {done}")
    return True
