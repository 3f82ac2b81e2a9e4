"""What a process takes of the machine's memory."""

import contextlib
from pathlib import Path

PEAK, NOW = "VmHWM", "VmRSS"


def memory_mb(pid: int | None, field: str) -> float | None:
    """A process's memory as Linux counts it (``VmRSS`` now, ``VmHWM`` at most); None elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None
