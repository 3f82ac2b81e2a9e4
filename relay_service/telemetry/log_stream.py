"""A stream for log lines that never makes its writer wait."""

import io
import queue
import threading
from typing import TextIO

_END = None


class BackgroundStream(io.TextIOBase):
    """Passes what is written to ``target`` from a thread; drops and counts it when the queue is full.

    Standard error may be a pipe that no one reads. Writing to it directly would then stop the event
    loop, and with it every call, for the sake of a log line.
    """

    def __init__(self, target: TextIO, capacity_lines: int = 1000) -> None:
        super().__init__()
        self._target = target
        self._lines: queue.Queue[str | None] = queue.Queue(capacity_lines)
        self._thread = threading.Thread(target=self._run, name="log-stream", daemon=True)
        self._thread.start()
        self.dropped = 0
        """Lines lost because ``target`` did not take them in time."""

    def write(self, text: str) -> int:
        """Queue the text; never waits."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1
        return len(text)

    def isatty(self) -> bool:
        """Whether lines end on a terminal."""
        return self._target.isatty()

    def finish(self, timeout_s: float) -> None:
        """Write what is queued, within ``timeout_s``; what is written later may not appear."""
        try:
            self._lines.put(_END, timeout=timeout_s / 2)
        except queue.Full:
            return
        self._thread.join(timeout_s / 2)

    def _run(self) -> None:
        while (text := self._lines.get()) is not _END:
            try:
                self._target.write(text)
                if self._lines.empty():
                    self._target.flush()
            except (OSError, ValueError):  # the other end is closed: lines have nowhere to go
                self.dropped += 1
