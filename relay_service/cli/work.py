"""What the verbs about jobs and dead letters share: whom they ask, and how they show it."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from relay_service.cli.failures import BROKEN, COULD_NOT_TELL, fail
from relay_service.core.status import Code

if TYPE_CHECKING:
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool

ANSWER_TIMEOUT_S = 30.0
PAGE_SIZE = 500
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
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
    if code is grpc.StatusCode.UNIMPLEMENTED and not is_refusal(error):
        fail(f"{target}: it offers no such service. Was the relay started with --store?", COULD_NOT_TELL)
    if could_not_tell(error):
        fail(f"{target}: {code.name}: {details}. Is the relay running?", COULD_NOT_TELL)
    fail(f"{code.name}: {details}", BROKEN)


def is_refusal(error: Any) -> bool:
    """Whether a relay said so itself: its refusals are typed, a broken connection has no details."""
    return any(name == "grpc-status-details-bin" for name, _ in error.trailing_metadata() or ())


def could_not_tell(error: Any) -> bool:
    """Whether nobody answered: the relay may or may not have done what it was asked."""
    import grpc

    silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    return error.code() in silent and not is_refusal(error)


def as_line(message: Message, known: "DescriptorPool | None" = None) -> str:
    """A message as one line of JSON, payloads by their fields where ``known`` has their types."""
    from relay_service.cli.payloads import as_fields

    return json.dumps(as_fields(message, known), ensure_ascii=False)


def types_at(target: str) -> "DescriptorPool | None":
    """The types that the relay at ``target`` tells of; None when it tells of none."""
    import asyncio

    from relay_service.cli import caller

    return asyncio.run(caller.types_at(target))


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


def told_more(count: int, limit: int) -> None:
    """A listing that was cut says so, on stderr."""
    if count >= limit:
        typer.echo(f"the first {limit}; --limit shows more", err=True)


def counted(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def code_name(number: int) -> str:
    """``UNAVAILABLE`` of 14."""
    return Code(number).name if number in set(Code) else str(number)


def code_number(name: str | None) -> int | None:
    """14 of ``unavailable`` or ``14``; ends the command when it is no code of gRPC."""
    if name is None:
        return None
    if name.upper() in Code.__members__:
        return int(Code[name.upper()])
    if name.isdecimal() and int(name) in set(Code):
        return int(name)
    return fail(f"--code: got {name!r}; must be one of {', '.join(Code.__members__)}", COULD_NOT_TELL)


def past(text: str | None, option: str) -> Timestamp | None:
    """A time given as an age (``90s``, ``2h``, ``7d``) or in ISO 8601, local unless it says otherwise."""
    if text is None:
        return None
    if (age := _AGE.fullmatch(text)) is not None:
        when = datetime.now(tz=UTC) - timedelta(seconds=float(age[1]) * _UNIT_S[age[2]])
    else:
        try:
            when = datetime.fromisoformat(text).astimezone(UTC)
        except ValueError:
            fail(f"{option}: got {text!r}; must be an age as 90s, 5m, 2h, 7d or a time", COULD_NOT_TELL)
    time = Timestamp()
    time.FromDatetime(when)
    return time


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
