"""What the verbs about jobs and dead letters share: whom they ask, and how they show it."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail

if TYPE_CHECKING:
    import grpc

ANSWER_TIMEOUT_S = 30.0
PAGE_SIZE = 500
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
PIPE_WIDTH = 240
"""Of a table that no terminal shows: ids and methods stay whole."""

Address = Annotated[
    str | None, typer.Option("--address", "-a", help="The relay's address (RELAY_LISTEN) by default.")
]
AdminAddress = Annotated[
    str | None,
    typer.Option("--address", "-a", help="The relay's admin address (RELAY_ADMIN_LISTEN) by default."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one line for each.")]
Payloads = Annotated[bool, typer.Option("--payloads", help="Show requests and responses too.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="Show at most so many.")]


@contextmanager
def connected(target: str) -> "Iterator[grpc.Channel]":
    """A channel; what goes wrong on it ends the command in one line.

    Exit code 1 when the relay refused, 2 when nobody could be asked.
    """
    import grpc

    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            _tell(error, target)


def _tell(error: Any, target: str) -> None:
    """What grpc raises is a call as well; its stubs do not say so."""
    import grpc

    code, details = error.code(), error.details()
    if code is grpc.StatusCode.UNIMPLEMENTED and "NO_ROUTE" not in str(error.trailing_metadata()):
        fail(f"{target}: {details}. Was the relay started with --store?", COULD_NOT_TELL)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        fail(f"{target}: {code.name}: {details}. Is the relay running?", COULD_NOT_TELL)
    fail(f"{code.name}: {details}", BROKEN)


def as_line(message: Message) -> str:
    """A message as one line of JSON."""
    return json.dumps(
        MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows for people."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    is_terminal = Console().is_terminal
    Console(width=None if is_terminal else PIPE_WIDTH).print(table)


def progress_bar() -> Progress:
    """On stderr, so that what is printed can be piped; nothing where nobody looks."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def chosen(names: Sequence[str] | None, kind: Any, prefix: str, option: str) -> list[Any]:
    """Enum values by their names, in any case."""
    known = {name.removeprefix(prefix): number for name, number in kind.items() if number}
    try:
        return [known[name.upper()] for name in names or ()]
    except KeyError as error:
        fail(f"{option}: got {error.args[0]!r}; must be one of {', '.join(known)}", COULD_NOT_TELL)


def name_of(kind: Any, number: int, prefix: str) -> str:
    """``PENDING`` of ``JOB_STATE_PENDING``."""
    return str(kind.Name(number)).removeprefix(prefix)


def moment(time: Timestamp) -> str:
    """Local time to the second; empty for a time that is not there."""
    if time.seconds == 0:
        return ""
    return time.ToDatetime().astimezone().isoformat(sep=" ", timespec="seconds")[:19]
