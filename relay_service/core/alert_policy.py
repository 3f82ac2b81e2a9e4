"""When somebody has to be told that something is wrong, as a frozen value."""

from dataclasses import dataclass

from relay_service.core.job_policy import DAY_S, in_range


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """How long, how old, how much is too much. Each time is how long the trouble has to last."""

    store_away_s: float = 10.0
    upstream_away_s: float = 30.0
    """Nobody can be reached behind an upstream's name."""
    breaker_open_s: float = 60.0
    """Counted from its opening; probes that fail do not begin it anew."""
    oldest_ready_s: float = 300.0
    """A job has been ready for so long and nobody has taken it."""
    dead_letters_share: float = 0.5
    """Of ``deadLetters.maxEntries``. At the whole of it the alert is critical: no job is accepted."""
    error_share: float = 0.5
    """Of the calls that ended in the last ``window_s`` ..."""
    error_calls_min: int = 20
    """... when there were so many."""
    leases_lost_max: int = 10
    """So many jobs taken from this relay's workers in the last ``window_s``: they stall or are cut off."""
    window_s: float = 60.0
    repeat_s: float = 3600.0
    """What is still wrong is told again."""

    def __post_init__(self) -> None:
        for name in ("store_away_s", "upstream_away_s", "breaker_open_s", "oldest_ready_s"):
            in_range(f"alerts.{name}", getattr(self, name), 0, 30 * DAY_S)
        in_range("alerts.dead_letters_share", self.dead_letters_share, 0.001, 1)
        in_range("alerts.error_share", self.error_share, 0.001, 1)
        in_range("alerts.error_calls_min", self.error_calls_min, 1, 1_000_000)
        in_range("alerts.leases_lost_max", self.leases_lost_max, 1, 1_000_000)
        in_range("alerts.window_s", self.window_s, 1, 3600)
        in_range("alerts.repeat_s", self.repeat_s, 1, 30 * DAY_S)
