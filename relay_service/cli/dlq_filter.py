"""What the verbs about dead letters share: which letters, and whom they ask."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_service.cli.admin_target import admin_target
from relay_service.cli.failures import COULD_NOT_TELL, fail
from relay_service.cli.work import ANSWER_TIMEOUT_S, PAGE_SIZE, chosen, code_number, connected, past

if TYPE_CHECKING:
    from protos.relay.v1 import dead_letter_pb2

BY = "relay dlq"
ALL = 100_000
"""More than a relay keeps."""

Ids = Annotated[list[str] | None, typer.Argument(help="Only these letters; all that match otherwise.")]
Causes = Annotated[list[str] | None, typer.Option("--cause", "-c", help="Only this cause; may be repeated.")]
States = Annotated[list[str] | None, typer.Option("--state", "-s", help="Only this state; may be repeated.")]
Method = Annotated[str, typer.Option(help="Only letters of package.Service/Method.")]
CodeName = Annotated[
    str | None, typer.Option("--code", help="Only letters whose last run ended so, e.g. UNAVAILABLE.")
]
Since = Annotated[
    str | None, typer.Option(help="Only letters that died since then: an age (2h) or a time (ISO 8601).")
]
Until = Annotated[str | None, typer.Option(help="Only letters that died before then, likewise.")]
Every = Annotated[bool, typer.Option("--all", help="Without ids or filter: all letters.")]
Relay = Annotated[
    str | None,
    typer.Option(help="The relay's own address (RELAY_LISTEN), which tells of the upstream's types."),
]


def letter_filter(
    ids: Sequence[str] | None,
    cause: list[str] | None = None,
    state: list[str] | None = None,
    *,
    method: str = "",
    code: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> "dead_letter_pb2.LetterFilter":
    """The filter that options ask for; ends the command when one means nothing."""
    from protos.relay.v1 import dead_letter_pb2

    return dead_letter_pb2.LetterFilter(
        ids=ids or [],
        causes=chosen(cause, dead_letter_pb2.Cause, "CAUSE_", "--cause"),
        states=chosen(state, dead_letter_pb2.LetterState, "LETTER_STATE_", "--state"),
        method=method,
        code=code_number(code),
        died_after=past(since, "--since"),
        died_before=past(until, "--until"),
    )


def must_narrow(which: "dead_letter_pb2.LetterFilter", every: bool) -> None:
    """What changes letters must be told which: nothing named is not everything meant."""
    from protos.relay.v1 import dead_letter_pb2

    if not every and which == dead_letter_pb2.LetterFilter():
        fail(
            "name letters, a --cause, a --method, a --code or a time (--since, --until), or say --all",
            COULD_NOT_TELL,
        )


def pages(stub: Any, which: Any, limit: int) -> "Iterator[dead_letter_pb2.DeadLetter]":
    """Letters of a filter, newest first, at most ``limit``."""
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


@contextmanager
def service(address: str | None) -> Iterator[Any]:
    """The relay's DeadLetterService."""
    from protos.relay.v1.dead_letter_pb2_grpc import DeadLetterServiceStub

    with connected(admin_target(address)) as channel:
        yield DeadLetterServiceStub(channel)
