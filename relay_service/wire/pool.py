"""What happened to the connections of one upstream, counted by them and by whoever keeps them."""

from dataclasses import dataclass


@dataclass(slots=True)
class PoolCounters:
    """All since the start; times in seconds."""

    connects: int = 0
    connect_failures: int = 0
    disconnects: int = 0
    """Connections lost, whoever ended them."""
    reconnects: int = 0
    """Connections made in place of lost ones."""
    attempts_unsent: int = 0
    """Failed at once: away, or the line was full."""
    goaways: int = 0
    """Connections that the upstream said it would close."""
    pings: int = 0
    pings_answered: int = 0
    ping_round_trip_s: float = 0.0
    """Of the last that was answered."""
    ping_round_trip_max_s: float = 0.0
    zombies: int = 0
    """Connections given up as dead: they stood, were silent, and did not answer a ping."""
    last_error: str = ""

    def ping_answered(self, round_trip_s: float) -> None:
        """One more, after so long."""
        self.pings_answered += 1
        self.ping_round_trip_s = round_trip_s
        self.ping_round_trip_max_s = max(self.ping_round_trip_max_s, round_trip_s)
