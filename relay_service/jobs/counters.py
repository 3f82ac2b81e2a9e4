"""What this relay's workers did, as plain integers for metrics and dashboards."""

from collections import Counter
from dataclasses import dataclass, field

from relay_service.core.job import Cause
from relay_service.core.letter_policy import Recovery


@dataclass(slots=True)
class JobCounters:
    """Since the start of the process; the states of all jobs are counted by the store."""

    submitted: int = 0
    """Accepted here, and new."""
    duplicates: int = 0
    """Submissions that found their key's first job."""
    leased: int = 0
    completed: int = 0
    retried: int = 0
    handed_back: int = 0
    """Not dispatched: the relay's own limits, or its shutdown."""
    buried: Counter[Cause] = field(default_factory=Counter)
    leases_lost: int = 0
    """Runs given up because the job was another's, cancelled, or took too long."""
    stale_writes: int = 0
    """Ends of runs that were no longer this relay's to write."""
    replayed: int = 0
    """Replays of dead letters begun here, by hand or by the policy ..."""
    resolved: int = 0
    """... and how those that ended here ended: done,"""
    reopened: int = 0
    """or open again."""
    recovered: Counter[Recovery] = field(default_factory=Counter)
    """Dead letters that the policy did something with."""
    batches: int = 0
    batched: int = 0
    """Jobs that went in them."""
    batches_split: int = 0

    @property
    def settled(self) -> int:
        """Jobs whose end was written here."""
        return self.completed + self.buried.total()
