"""How many jobs a second this relay settles, over the last minute."""

from collections import deque

WINDOW_LOOKS = 60


class SettledRate:
    """Keeps what was counted at the last looks."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=WINDOW_LOOKS)

    def looked(self, now: float, settled: int) -> None:
        """``settled`` jobs so far, at a monotonic time."""
        self._looks.append((now, settled))

    @property
    def per_s(self) -> float:
        """0 before the second look."""
        if len(self._looks) < 2:
            return 0.0
        (began_at, before), (ended_at, after) = self._looks[0], self._looks[-1]
        return (after - before) / (ended_at - began_at) if ended_at > began_at else 0.0
