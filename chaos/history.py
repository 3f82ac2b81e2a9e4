"""What a run did and saw, as append-only JSON lines: the only thing that verdicts and reports are made from.

Every line has a ``kind``: one ``run`` first, then ``call``, ``phase`` and ``fault`` as they end, ``load`` and
``relay`` as the downstream and the relay are looked at, ``charge`` for each entry of the ledger and ``job``
for each durable job that the relay knows in the end.
Times are seconds of the monotonic clock since the run began; ``run.began_unix_ns`` ties them to the wall
clock, and so to spans. A call whose outcome is not known stays ``unknown``: it is never rounded to a
failure, because it may have happened.
"""

import json
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Self, TypeVar, cast

FORMAT_VERSION = 1
IN_MEMORY_MAX = 100_000
"""Calls that a history read back holds in memory; beyond, they stay in the file."""


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
    criticality: str | None = None
    """The class it named."""
    client: str | None = None
    """The client it named."""
    messages: int | None = None
    """What a stream delivered; None for a unary call."""
    messages_due: int | None = None
    """What a sound stream delivers."""

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
    wasted: int = 0
    """Work whose caller was gone, or past its deadline, when the result came."""
    took_s: float = 0.0
    """How long the look took, by a way that no fault of the network is on."""
    cpu_waited_s: float = 0.0
    """How long, since the machine's start, some process has waited for a CPU; 0 where nobody tells."""


@dataclass(frozen=True, slots=True)
class RelaySample:
    """The relay's own statistics at a moment; counters are since its start."""

    at_s: float
    uptime_s: float
    received: int
    ok: int
    errors: int
    refused: int
    cancelled: int
    in_flight: int
    queue_length: int
    workers_busy: int
    workers: int
    """The limit, fixed or adaptive."""
    attempts: int
    retries: int
    breaker: str = ""
    """The state of the breaker that is furthest from closed; empty without one."""
    breakers_refused: int = 0
    budget_tokens: float = 0.0
    spans_dropped: int = 0
    hedges: int = 0
    """Started so far."""
    hedges_won: int = 0
    """Of those, answered before the attempt that they were beside."""
    hedges_unpaid: int = 0
    """Due, and not made because the budget was out."""
    spans_suppressed: int = 0
    """Failed calls of unsampled traces that got no span afterwards, because too many failed at once."""


def since_start(samples: Iterable[RelaySample], counter: str) -> int:
    """What a counter of the relay's came to over all its starts; each start begins at 0 again."""
    total, latest, uptime_s = 0, 0, 0.0
    for sample in samples:
        if sample.uptime_s < uptime_s:
            total, latest = total + latest, 0
        latest, uptime_s = max(latest, getattr(sample, counter)), sample.uptime_s
    return total + latest


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One charge that the downstream's ledger holds: the only witness of effects."""

    sequence: int
    charge_id: str
    operation: str
    """The note, which the lab's requests fill with the operation's name."""
    key: str | None = None
    at_unix_ns: int = 0
    """When it was done; 0 when that is not known."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A durable job as the relay tells of it in the end."""

    id: str
    operation: str
    """Its key, which the lab's submissions fill with the operation's name."""
    state: str
    """``pending``, ``running``, ``paused``, ``completed``, ``cancelled`` or ``dead``."""
    runs: int = 0
    lost_leases: int = 0


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
    """A whole history: the calls and the ledger in memory, or in their file when they are many."""

    head: RunHead
    calls: Collection[CallRecord] = ()
    phases: tuple[Phase, ...] = ()
    faults: tuple[FaultWindow, ...] = ()
    loads: tuple[LoadSample, ...] = ()
    relays: tuple[RelaySample, ...] = ()
    ledger: Collection[LedgerEntry] = ()
    jobs: tuple[JobRecord, ...] = ()

    def in_phase(self, name: str) -> tuple[CallRecord, ...]:
        """The calls of one phase."""
        return tuple(call for call in self.calls if call.phase == name)


Entry = RunHead | CallRecord | Phase | FaultWindow | LoadSample | RelaySample | LedgerEntry | JobRecord
_KINDS: dict[str, type[Entry]] = {
    "run": RunHead,
    "call": CallRecord,
    "phase": Phase,
    "fault": FaultWindow,
    "load": LoadSample,
    "relay": RelaySample,
    "charge": LedgerEntry,
    "job": JobRecord,
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
    recent_max: int | None = None
    """How many of the latest calls are at hand; None keeps all. A run judged from its file needs none."""
    _began_s: float = field(default_factory=time.monotonic)
    _calls: deque[CallRecord] = field(default_factory=deque)
    _ids: Iterator[int] = field(default_factory=lambda: count(1))
    _file: IO[str] | None = None

    def __enter__(self) -> Self:
        self._calls = deque(maxlen=self.recent_max)
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
        calls = tuple(self._calls)
        self._calls.clear()
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


def read_history(path: Path, in_memory_max: int = IN_MEMORY_MAX) -> History:
    """The history of a file. Raises `HistoryError` when the file is not one.

    With more than ``in_memory_max`` calls (or ledger entries) these stay in the file and are read anew
    by whoever goes through them, so a million of them need no more memory than a few.
    """
    calls = _Gathered[CallRecord]("call", path, in_memory_max)
    ledger = _Gathered[LedgerEntry]("charge", path, in_memory_max)
    rest: dict[type[Entry], list[Any]] = {entry_type: [] for entry_type in _NAMES}
    for entry in read_entries(path):
        match entry:
            case CallRecord():
                calls.add(entry)
            case LedgerEntry():
                ledger.add(entry)
            case _:
                rest[type(entry)].append(entry)
    heads = rest[RunHead]
    if len(heads) != 1:
        raise HistoryError(f"{path}: {len(heads)} run heads where one was due")
    return History(
        heads[0],
        calls=calls.collected(),
        phases=tuple(rest[Phase]),
        faults=tuple(rest[FaultWindow]),
        loads=tuple(rest[LoadSample]),
        relays=tuple(rest[RelaySample]),
        ledger=ledger.collected(),
        jobs=tuple(rest[JobRecord]),
    )


EntryT = TypeVar("EntryT", CallRecord, LedgerEntry)


class Stored(Collection[EntryT]):
    """The entries of one kind in a history file: as many passes as one likes, none of them kept."""

    def __init__(self, kind: str, path: Path, count: int) -> None:
        self._prefix = f'{{"kind":"{kind}",'
        self._path = path
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[EntryT]:
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                if line.startswith(self._prefix) and line.endswith("\n"):
                    yield cast("EntryT", decode(line))

    def __contains__(self, entry: object) -> bool:
        return any(each == entry for each in self)


class _Gathered(Generic[EntryT]):
    """Entries as they are read: held while they are few, only counted from then on."""

    def __init__(self, kind: str, path: Path, in_memory_max: int) -> None:
        self._kind = kind
        self._path = path
        self._in_memory_max = in_memory_max
        self._held: list[EntryT] = []
        self._count = 0

    def add(self, entry: EntryT) -> None:
        self._count += 1
        if self._count <= self._in_memory_max:
            self._held.append(entry)
        else:
            self._held.clear()

    def collected(self) -> Collection[EntryT]:
        if self._count <= self._in_memory_max:
            return tuple(self._held)
        return Stored(self._kind, self._path, self._count)
