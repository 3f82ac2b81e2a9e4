"""Become another program that dies with its parent: ``python -I -S guard.py PARENT_PID PROGRAM ARG...``.

A lab that is killed with -9 cannot clean up after itself, so the kernel must: on Linux the process asks
for SIGKILL at its parent's death (``PR_SET_PDEATHSIG``, prctl(2)), which survives the exec that follows.
This is a program of its own because doing it in a ``preexec_fn`` means running Python between fork and
exec of a process that has gRPC's threads, which can deadlock.

The kernel's "parent" is the thread that forked: start guarded processes from a thread that lives as long
as they should. Elsewhere than on Linux this only execs.
"""

import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main(argv: list[str]) -> None:
    """Ask for the death signal, make sure the parent is still there, exec."""
    parent_pid, program = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before we asked
            os._exit(SIGKILL)
    os.execvp(program[0], program)  # noqa: S606 (no shell is the point)


if __name__ == "__main__":
    main(sys.argv[1:])
