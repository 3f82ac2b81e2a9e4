"""A service the relay forwards to: its connections, and the attempts that wait for one.

A few connections are kept open from the start. Each attempt takes the least loaded of those that may take
one; while none can, it waits in a bounded line, and while the upstream is known to be away it fails at
once. Lost connections are replaced at once if they had worked for a while, else after a backoff with jitter.

State: the connections by what may be opened on them, the dials under way, the backoff, the waiting
attempts. One function, `Upstream._reconcile`, compares it with what is wanted and acts.
"""

import asyncio
import logging
import random
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from relay_service.ports import Attempt, AttemptSink, Headers, PoolStatus, TimerHandle, Timers
from relay_service.wire.client import ClientConnection, ClientState
from relay_service.wire.client_stream import ClientStream
from relay_service.wire.connection import ConnectionSettings
from relay_service.wire.dial import Target, dial
from relay_service.wire.guarded import guarded
from relay_service.wire.heads import RequestTemplate
from relay_service.wire.liveness import LivenessSettings
from relay_service.wire.pool import PoolCounters

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 1.0
"""From dropping the last connections to hearing of their end."""


_STANDING = (ClientState.READY, ClientState.RESTING, ClientState.RETIRED)
"""What a connection may be that had its handshake and is not lost."""


class UpstreamState(Enum):
    """What a new attempt would meet."""

    CONNECTING = "connecting"
    """It would wait."""
    READY = "ready"
    BACKING_OFF = "backing_off"
    """It would fail at once."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """Bounds of one upstream. The defaults recover from an outage within a second of its end."""

    connection: ConnectionSettings = field(default_factory=ConnectionSettings)
    liveness: LivenessSettings = field(default_factory=LivenessSettings)
    connections: int = 2
    connections_spare: int = 2
    """Further ones while some are silent or leaving."""
    connections_max: int = 16
    """All there may be. When those above all rest or leave, held open by streams of theirs, others take
    their place up to this, so that new attempts never depend on a connection that cannot be questioned."""
    waiting_max: int = 1_000
    """Attempts that wait for a connection, or for the upstream to allow another stream."""
    connect_timeout_s: float = 1.0
    backoff_initial_s: float = 0.1
    backoff_max_s: float = 0.5
    backoff_jitter: float = 0.2
    """Share of the backoff by which it is drawn shorter or longer."""
    patience_s: float = 1.0
    """An outage this short is waited out: attempts line up for the next connection. In a longer one they
    fail at once, so that callers hear of it and no worker is held."""
    proven_after_s: float = 1.0
    """A connection that lived so long is replaced without backoff when it is lost; one that answered a call
    before, after the initial backoff."""


SENT_WITH_MIN = 0.2
"""An attempt that waited for a connection is sent only while so much of its time is left."""


class Upstream:
    """Implements `relay_service.ports.UpstreamPort` over HTTP/2 connections to ``target``.

    ``target`` is ``host:port`` or ``unix:path``. `open` begins to connect and does not wait; `close` ends.
    ``rng`` draws the jitter; ``on_connected`` hears of every new connection. ``tls`` must offer ALPN ``h2``;
    ``server_name`` is whose certificate the upstream must show, the target's host when empty.
    """

    def __init__(
        self,
        name: str,
        target: str,
        timers: Timers,
        settings: UpstreamSettings | None = None,
        *,
        rng: random.Random,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        clock: Callable[[], float] = time.monotonic,
        on_connected: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.target = target
        self.counters = PoolCounters()
        self._target = Target.parse(target)
        self._timers = timers
        self._settings = settings or UpstreamSettings()
        self._rng = rng
        self._tls = tls
        self._server_name = server_name
        self._clock = clock
        self._template = RequestTemplate("https" if tls else "http", self._target.authority)
        self._live: dict[ClientConnection, float] = {}
        """All connections that had their handshake and are not lost, with the time of it."""
        self._usable: list[ClientConnection] = []
        """Those of them that are READY."""
        self._some_usable = asyncio.Event()
        self._dials: set[asyncio.Task[None]] = set()
        self._dialled = 0
        self._backoff_s = self._settings.backoff_initial_s
        self._backoff_timer: TimerHandle | None = None
        self._waiting: OrderedDict[ClientStream, float | None] = OrderedDict()
        """With the time that each had when it came."""
        self._closed = False
        self._on_connected = on_connected
        self._away_since: float | None = clock()
        """When the last connection went; None while there is one."""

    # -- UpstreamPort ------------------------------------------------------------------------------------

    def start(self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> Attempt:
        """Begin an attempt: its headers leave at once when a connection is ready, else as soon as one is."""
        deadline = None if timeout_s is None else self._clock() + timeout_s
        stream = ClientStream(self, method, metadata, deadline, sink)
        while (connection := self._choose()) is not None:
            if connection.open_stream(stream):
                return stream
        state = self.state
        if state in (UpstreamState.CONNECTING, UpstreamState.READY):
            if len(self._waiting) < self._settings.waiting_max:
                self._waiting[stream] = timeout_s
                return stream
            reason = f"{len(self._waiting)} attempts wait for upstream {self.name} already"
        else:
            reason = self._why_away(state)
        self.counters.attempts_unsent += 1
        asyncio.get_running_loop().call_soon(stream.on_lost, reason)
        return stream

    @property
    def state(self) -> UpstreamState:
        """What a new attempt would meet."""
        if self._closed:
            return UpstreamState.CLOSED
        if self._usable or any(connection.state is ClientState.RESTING for connection in self._live):
            return UpstreamState.READY
        if self._dials or self._is_brief():
            return UpstreamState.CONNECTING
        return UpstreamState.BACKING_OFF

    def _is_brief(self) -> bool:
        """Whether the outage, if there is one, may still be waited out."""
        return self._away_since is None or self._clock() - self._away_since < self._settings.patience_s

    @property
    def connections(self) -> int:
        """Connections that may take attempts now."""
        return len(self._usable)

    @property
    def streams(self) -> int:
        """Attempts under way on all connections."""
        return sum(len(connection.streams) for connection in self._live)

    def pool(self) -> PoolStatus:
        """The connections now, and what happened to them since the start."""
        states = Counter(connection.state.name for connection in self._live)
        counters = self.counters
        return PoolStatus(
            connections={
                "CONNECTING": len(self._dials),
                **{one.name: states[one.name] for one in _STANDING},
            },
            streams=self.streams,
            waiting=len(self._waiting),
            connects=counters.connects,
            connect_failures=counters.connect_failures,
            reconnects=counters.reconnects,
            disconnects=counters.disconnects,
            goaways=counters.goaways,
            pings=counters.pings,
            pings_answered=counters.pings_answered,
            ping_round_trip_s=counters.ping_round_trip_s,
            ping_round_trip_max_s=counters.ping_round_trip_max_s,
            zombies=counters.zombies,
            attempts_unsent=counters.attempts_unsent,
        )

    # -- life --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to connect. Needs a running loop; does not wait and does not fail."""
        self._settle()

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether a connection was there within ``timeout_s``."""
        try:
            await asyncio.wait_for(self._some_usable.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def close(self, grace_s: float) -> None:
        """Start nothing more; let streams end for ``grace_s``, then drop them (UNANSWERED)."""
        self._closed = True
        if self._backoff_timer is not None:
            self._backoff_timer.cancel()
            self._backoff_timer = None
        for task in self._dials:
            task.cancel()
        if self._dials:
            await asyncio.wait(self._dials, timeout=CLOSE_TIMEOUT_S)
        self._fail_waiting(f"upstream {self.name} is closed")
        for connection in list(self._live):
            connection.retire()
        if not await self._all_ended(grace_s):
            for connection in list(self._live):
                connection.abort("the drain's time is over")
            await self._all_ended(CLOSE_TIMEOUT_S)

    async def _all_ended(self, timeout_s: float) -> bool:
        ends = [connection.ended for connection in self._live]
        if ends:
            await asyncio.wait(ends, timeout=timeout_s)
        return not self._live

    # -- choosing ----------------------------------------------------------------------------------------

    def _choose(self) -> ClientConnection | None:
        """The least loaded connection with room. When all rest, the one heard of last: better than none."""
        best: ClientConnection | None = None
        load = 0
        for connection in self._usable:
            streams = len(connection.streams)
            if (best is None or streams < load) and streams < connection.streams_max:
                best, load = connection, streams
        if best is None and not self._usable and not self._dials and not self._closed:
            resting = [c for c in self._live if c.state is ClientState.RESTING and c.has_room]
            best = max(resting, key=lambda connection: connection.heard_at, default=None)
        return best

    def _serve_waiting(self) -> None:
        waiting = self._waiting
        while waiting:
            connection = self._choose()
            if connection is None:
                return
            stream, timeout_s = waiting.popitem(last=False)
            if self._has_waited_too_long(stream, timeout_s):
                self.counters.attempts_unsent += 1
                guarded(
                    stream.on_lost,
                    f"no connection to {self.target} could take it for nearly all the time it had",
                )
            elif not connection.open_stream(stream):
                waiting[stream] = timeout_s
                waiting.move_to_end(stream, last=False)

    def _has_waited_too_long(self, stream: ClientStream, timeout_s: float | None) -> bool:
        """Sent now, it would more likely than not be executed without its answer being heard."""
        if stream.deadline is None or timeout_s is None:
            return False
        return stream.deadline - self._clock() < SENT_WITH_MIN * timeout_s

    def _fail_waiting(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, OrderedDict()
        for stream in waiting:
            self.counters.attempts_unsent += 1
            guarded(stream.on_lost, reason)

    def _why_away(self, state: UpstreamState) -> str:
        if state is UpstreamState.CLOSED:
            return f"{self.target} is not connected to any more"
        return f"{self.target} is away: {self.counters.last_error or 'not connected'}"

    def leave(self, stream: ClientStream) -> None:
        """The attempt was cancelled while it waited."""
        self._waiting.pop(stream, None)

    # -- connections -------------------------------------------------------------------------------------

    def on_state(self, connection: ClientConnection) -> None:
        """A connection may be used, or may not be used any more."""
        if connection.state is ClientState.LOST:
            self._on_lost(connection)
        self._settle()

    def _settle(self) -> None:
        """After any change: bring connections and waiting attempts in line with what there is."""
        self._usable = [c for c in self._live if c.state is ClientState.READY]
        if self._usable:
            self._some_usable.set()
            self._away_since = None
        else:
            self._some_usable.clear()
            self._away_since = self._clock() if self._away_since is None else self._away_since
        self._reconcile()
        if self._waiting:
            self._serve_waiting()
        if self._waiting and self.state is UpstreamState.BACKING_OFF:
            self._fail_waiting(self._why_away(UpstreamState.BACKING_OFF))

    def on_slot_free(self, connection: ClientConnection) -> None:  # noqa: ARG002 - any connection may serve
        """A stream ended, or the peer allows more of them."""
        if self._waiting:
            self._serve_waiting()

    def _on_lost(self, connection: ClientConnection) -> None:
        ready_at = self._live.pop(connection, None)
        if ready_at is None:  # lost in its handshake; the dial tells
            return
        self.counters.disconnects += 1
        self.counters.last_error = connection.lost_reason
        proven = self._clock() - ready_at >= self._settings.proven_after_s
        if proven or connection.has_answered:
            # A wait that grew although it worked each time would come to last from one break to the next.
            self._backoff_s = self._settings.backoff_initial_s
        if not proven:
            self._back_off()

    def _reconcile(self) -> None:
        """Dial what is missing; retire what is too much."""
        if self._closed:
            return
        settings = self._settings
        if self._backoff_timer is None:
            for _ in range(self._dials_wanted()):
                task = asyncio.get_running_loop().create_task(self._dial(), name=f"dial {self.name}")
                self._dials.add(task)
                task.add_done_callback(self._dials.discard)
        if len(self._usable) > settings.connections:
            min(self._usable, key=lambda connection: len(connection.streams)).retire()
        elif self._usable and len(self._live) > settings.connections + settings.connections_spare:
            self._retire_resting()

    def _dials_wanted(self) -> int:
        settings = self._settings
        taken = len(self._live) + len(self._dials)
        missing = settings.connections - len(self._usable) - len(self._dials)
        wanted = min(missing, settings.connections + settings.connections_spare - taken)
        if wanted < 1 and not self._usable and not self._dials and taken < settings.connections_max:
            return 1
        return wanted

    def _retire_resting(self) -> None:
        """They have a successor: let them go with their last streams."""
        for connection in [c for c in self._live if c.state is ClientState.RESTING]:
            connection.retire()

    async def _dial(self) -> None:
        self._dialled += 1
        settings = self._settings
        try:
            connection = await dial(
                self._target,
                self._make_connection,
                settings.connect_timeout_s,
                self._tls,
                server_name=self._server_name,
                turn=self._dialled,
            )
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
            self._on_dial_failed(error)
            return
        self._dials.discard(_current_task())
        if connection.state is ClientState.LOST:  # between its handshake and now
            self._on_dial_failed(ConnectionError(connection.lost_reason))
            return
        self.counters.connects += 1
        self.counters.reconnects += self.counters.reconnects < self.counters.disconnects
        self._live[connection] = self._clock()
        self._settle()
        if self._on_connected is not None:
            guarded(self._on_connected)

    def _on_dial_failed(self, error: Exception) -> None:
        self._dials.discard(_current_task())
        self.counters.connect_failures += 1
        self.counters.last_error = f"cannot connect to {self.target}: {error}"
        self._back_off()
        self._settle()

    def _back_off(self) -> None:
        if self._backoff_timer is not None or self._closed:
            return
        settings = self._settings
        jitter = 1 + settings.backoff_jitter * (2 * self._rng.random() - 1)
        delay_s = self._backoff_s * jitter
        self._backoff_s = min(2 * self._backoff_s, settings.backoff_max_s)
        self._backoff_timer = self._timers.call_at(self._clock() + delay_s, self._on_backed_off, None)

    def _on_backed_off(self, _: None) -> None:
        self._backoff_timer = None
        self._reconcile()

    def _make_connection(self, peer: str) -> ClientConnection:
        return ClientConnection(
            self,
            self._template,
            peer,
            settings=self._settings.connection,
            liveness=self._settings.liveness,
            loop=asyncio.get_running_loop(),
            timers=self._timers,
            clock=self._clock,
        )


def _current_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in one
    return task
