"""How many jobs and dead letters there are, looked at now and then, and what that means for new ones."""

from dataclasses import dataclass, field

from relay_service.core.job import JobState
from relay_service.core.job_policy import JobPolicy
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.reason import Reason
from relay_service.stores.interface import UNSETTLED, Counts

UNFINISHED = frozenset({JobState.PENDING, JobState.RUNNING, JobState.PAUSED})


@dataclass(slots=True)
class Fullness:
    """The store's counts as of the last look, and what was accepted here since.

    Looking at them for every submission would cost each a query; so the bounds hold to within what all
    relays accept between two looks.
    """

    jobs: JobPolicy
    letters: LetterPolicy
    counts: Counts = field(default_factory=lambda: Counts({}, {}))
    accepted_since: int = 0

    def looked(self, counts: Counts) -> None:
        """The store was asked."""
        self.counts = counts
        self.accepted_since = 0

    @property
    def unfinished(self) -> int:
        """Jobs that have not ended."""
        return sum(self.counts.jobs.get(state, 0) for state in UNFINISHED) + self.accepted_since

    @property
    def unsettled(self) -> int:
        """Dead letters that somebody still has to decide about."""
        return sum(self.counts.letters.get(state, 0) for state in UNSETTLED)

    def refusal(self) -> Reason | None:
        """Why no more jobs are accepted; None when they are."""
        if self.unsettled >= self.letters.max_entries:
            return Reason.DEAD_LETTERS_FULL
        if self.unfinished >= self.jobs.max_unfinished:
            return Reason.JOBS_FULL
        return None
