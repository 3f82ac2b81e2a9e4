"""The store's clock: Unix seconds that never run backwards and do not follow a step of the wall clock."""

import time
from collections.abc import Callable

RESERVE_S = 2.0
"""How far ahead the high-water mark is written, so that not every commit has to write it."""


class StoreClock:
    """Anchored once: the wall clock at the start, or the high-water mark of the last run if that is later;
    from then on it advances with the monotonic clock alone. State: the anchor and the mark."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead_s = wall() - monotonic()
        self._mark = 0.0

    def anchor(self, high_water: float) -> None:
        """No time before this was missed: the file's mark says what an earlier run may have given out."""
        self._ahead_s = max(self._wall(), high_water) - self._monotonic()
        self._mark = high_water

    def now(self) -> float:
        """Unix seconds."""
        return self._monotonic() + self._ahead_s

    def mark_to_write(self, now: float) -> float | None:
        """The next high-water mark, when the last is used up: commit it with whatever ``now`` is given to."""
        return None if now < self._mark else now + RESERVE_S

    def marked(self, mark: float) -> None:
        """The mark is committed."""
        self._mark = mark
