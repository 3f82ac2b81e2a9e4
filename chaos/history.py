"""What a run did and saw, as append-only JSON lines: the only thing that verdicts and reports are made from.

Every line has a ``kind``: one ``run`` first, then ``call``, ``phase``, ``fault`` and ``load`` as they end,
and ``charge`` for each entry of the ledger.
Times are seconds of the monotonic clock since the run began; ``run.began_unix_ns`` ties them to the wall
clock, and so to spans. A call whose outcome is not known stays ``unknown``: it is never rounded to a
failure, because it may have happened.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

FORMAT_VERSION = 1


class Outcome(Enum):
    """What the caller may believe of a call's effect."""

    EXECUTED = "executed"
    NOT_EXECUTED = "not-executed"
    """Definitely: on the word of the relay, or because the call never left."""
    UNKNOWN = "unknown"
    """It may have happened."""
    UNSENT = "unsent"
    """The generator's own limit kept it back; nothing of it left."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call as its client saw it. A client's own retries are calls that share an ``operation``."""

    id: int
    phase: str
    operation: str
    """The business act this call is for; the ledger's entries carry it as their note."""
    method: str
    """``package.Service/Method``."""
    intended_s: float
    """When the plan wanted it sent. Latency counts from here, so a stalled generator hides nothing."""
    done_s: float
    code: str
    outcome: Outcome
    trace_id: str
    sent_s: float | None = None
    timeout_s: float | None = None
    """Its deadline, counted from ``sent_s``."""
    key: str | None = None
    client_try: int = 1
    message: str | None = None
    reason: str | None = None
    """The reason of the relay's ErrorInfo."""
    attempts: int | None = None
    origin: str | None = None
    decision: str | None = None
    pushback_ms: int | None = None
    idempotency: str | None = None
    traced: bool = False
    """Whether its spans were recorded."""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == "OK"

    @property
    def latency_s(self) -> float:
        """From the intended send time to the answer."""
        return self.done_s - self.intended_s


@dataclass(frozen=True, slots=True)
class Phase:
    """A named stretch of a run; calls point to it."""

    name: str
    title: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class FaultWindow:
    """A time in which something was broken on purpose."""

    name: str
    title: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The downstream's own counters at a moment, all since its start."""

    at_s: float
    calls: int
    effects: int
    refused: int
    in_flight: int
    queued: int


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One charge that the downstream's ledger holds: the only witness of effects."""

    sequence: int
    charge_id: str
    operation: str
    """The note, which the lab's requests fill with the operation's name."""
    key: str | None = None


@dataclass(frozen=True, slots=True)
class RunHead:
    """What a run was."""

    name: str
    seed: int
    toxiproxy: str
    """``real`` or ``embedded``."""
    began_unix_ns: int
    version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class History:
    """A whole history in memory."""

    head: RunHead
    calls: tuple[CallRecord, ...] = ()
    phases: tuple[Phase, ...] = ()
    faults: tuple[FaultWindow, ...] = ()
    loads: tuple[LoadSample, ...] = ()
    ledger: tuple[LedgerEntry, ...] = ()

    def in_phase(self, name: str) -> tuple[CallRecord, ...]:
        """The calls of one phase."""
        return tuple(call for call in self.calls if call.phase == name)


Entry = RunHead | CallRecord | Phase | FaultWindow | LoadSample | LedgerEntry
_KINDS: dict[str, type[Entry]] = {
    "run": RunHead,
    "call": CallRecord,
    "phase": Phase,
    "fault": FaultWindow,
    "load": LoadSample,
    "charge": LedgerEntry,
}
_NAMES = {entry_type: kind for kind, entry_type in _KINDS.items()}


class HistoryError(ValueError):
    """A history file cannot be read; the message names the file and the line."""


@dataclass(slots=True)
class HistoryWriter:
    """Appends entries to a file and keeps the calls of the current run at hand for its verdicts.

    State: the file, the moment the run began, the calls since `take`, the last call id.
    """

    path: Path
    head: RunHead
    _began_s: float = field(default_factory=time.monotonic)
    _calls: list[CallRecord] = field(default_factory=list)
    _ids: Iterator[int] = field(default_factory=lambda: count(1))
    _file: IO[str] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8")
        self.add(self.head)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began_s

    def next_call_id(self) -> int:
        """A number for the next call, unique in this history."""
        return next(self._ids)

    @property
    def recent(self) -> Sequence[CallRecord]:
        """The calls since the last `take`, for looking on while they come in."""
        return self._calls

    def add(self, entry: Entry) -> None:
        """Append one entry."""
        if self._file is None:
            raise ValueError("a history is written inside `with`")
        self._file.write(encode(entry) + "\n")
        if isinstance(entry, CallRecord):
            self._calls.append(entry)

    def take(self) -> tuple[CallRecord, ...]:
        """The calls added since the last `take`, which are then only in the file."""
        calls, self._calls = tuple(self._calls), []
        return calls


def new_run(name: str, seed: int, toxiproxy: str) -> RunHead:
    """The head of a run that begins now."""
    return RunHead(name, seed, toxiproxy, began_unix_ns=time.time_ns())


def encode(entry: Entry) -> str:
    """One line, without its end. Fields that are None or at their default are left out."""
    values: dict[str, Any] = {"kind": _NAMES[type(entry)]}
    for spec in fields(entry):
        value = getattr(entry, spec.name)
        if value == spec.default:
            continue
        if isinstance(value, float):
            value = round(value, 6)
        values[spec.name] = value.value if isinstance(value, Enum) else value
    return json.dumps(values, separators=(",", ":"))


def decode(line: str) -> Entry:
    """The entry that `encode` made the line from, with times rounded to microseconds.

    Raises `HistoryError` for anything else.
    """
    try:
        values = json.loads(line)
        entry_type = _KINDS[values.pop("kind")]
        if entry_type is CallRecord:
            values["outcome"] = Outcome(values["outcome"])
        return entry_type(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError(f"not a history entry: {line[:200]!r} ({error})") from error


def read_entries(path: Path) -> Iterator[Entry]:
    """Entry by entry, for histories too large to hold. A torn last line, left by a kill -9, ends it."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield decode(line)
            except HistoryError as error:
                raise HistoryError(f"{path}:{number}: {error}") from error


def read_history(path: Path) -> History:
    """The whole history. Raises `HistoryError` when the file is not one."""
    by_type: dict[type[Entry], list[Any]] = {entry_type: [] for entry_type in _NAMES}
    for entry in read_entries(path):
        by_type[type(entry)].append(entry)
    heads = by_type[RunHead]
    if len(heads) != 1:
        raise HistoryError(f"{path}: {len(heads)} run heads where one was due")
    rest = (CallRecord, Phase, FaultWindow, LoadSample, LedgerEntry)
    return History(heads[0], *(tuple(by_type[entry_type]) for entry_type in rest))
