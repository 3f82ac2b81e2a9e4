"""When a silent connection is dead: the rules, without the clock and without the wire.

A blackholed connection still has a kernel that acknowledges bytes, so only an answer proves that a peer
lives. While streams are open, silence is questioned with a PING, and silence after that means death. But
servers count pings: grpc-go with its default settings answers the third since it last sent HEADERS or
DATA with GOAWAY ENHANCE_YOUR_CALM (too_many_pings), which would kill the slow and healthy calls the ping
was to protect (google.golang.org/grpc, internal/transport/http2_server.go, maxPingStrikes). So only two
are spent between signs of work; after those the connection merely gets no new streams.

A PING also queues behind whatever was sent before it, here and in every buffer on the way. Behind a large
upload on a slow link its answer is late without anybody being dead, so amid one the verdict takes longer;
new streams are kept off the connection meanwhile, so that nothing but the upload waits.
"""

from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessSettings:
    """A dead connection is left after ``silence_s + ping_timeout_s``."""

    silence_s: float = 0.6
    """Without a byte while streams are open; then a PING is sent."""
    ping_timeout_s: float = 0.6
    """From the PING to any byte at all; then the connection is dead."""
    pings_max: int = 2
    """Since the peer's last HEADERS or DATA."""
    upload_bytes: int = 256 * 1024
    """So many bytes sent since the peer was last heard, ..."""
    upload_recent_s: float = 10.0
    """... or by one stream within so long, are a large upload that may still be on its way."""
    upload_ping_timeout_s: float = 20.0
    """In place of ``ping_timeout_s`` amid one."""


class Step(Enum):
    """What a look at the connection asks for."""

    WAIT = auto()
    PING = auto()
    REST = auto()
    """Open no new streams on it: it is silent and may not be asked why."""
    DEAD = auto()


class Liveness:
    """State: pings spent since the last sign of work, when the last was sent, when its answer is too late."""

    __slots__ = ("_pinged_at", "_verdict_at", "pings_spent", "settings")

    def __init__(self, settings: LivenessSettings) -> None:
        self.settings = settings
        self.pings_spent = 0
        self._pinged_at: float | None = None
        self._verdict_at = 0.0

    def check(
        self, heard_at: float, silent_since: float, now: float, *, uploading: bool
    ) -> tuple[Step, float]:
        """What to do at ``now``, and when to look again.

        ``heard_at`` is when bytes last came; ``silent_since`` is that or, when later, when the peer was
        first asked for any.
        """
        settings = self.settings
        if self._pinged_at is not None:
            if heard_at < self._pinged_at:
                return self._unanswered(self._pinged_at, now)
            self._pinged_at = None
        question_at = silent_since + settings.silence_s
        if now < question_at:
            return Step.WAIT, question_at
        if self.pings_spent >= settings.pings_max:
            return Step.REST, now + settings.silence_s
        self.pings_spent += 1
        self._pinged_at = now
        timeout_s = settings.upload_ping_timeout_s if uploading else settings.ping_timeout_s
        self._verdict_at = now + timeout_s
        return Step.PING, now + settings.ping_timeout_s

    def on_work(self) -> None:
        """HEADERS or DATA came from the peer."""
        self.pings_spent = 0

    def _unanswered(self, pinged_at: float, now: float) -> tuple[Step, float]:
        if now >= self._verdict_at:
            return Step.DEAD, now
        late_at = pinged_at + self.settings.ping_timeout_s
        return (Step.WAIT, late_at) if now < late_at else (Step.REST, self._verdict_at)
