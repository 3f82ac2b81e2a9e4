"""Become another program that dies with its parent: ``python -I -S guard.py PARENT_PID USER PROGRAM ARG...``.

USER is who to become on the way, ``-`` for nobody else.

A lab that is killed with -9 cannot clean up after itself, so the kernel must: on Linux the process asks
for SIGKILL at its parent's death (``PR_SET_PDEATHSIG``, prctl(2)), which survives the exec that follows.
This is a program of its own because doing it in a ``preexec_fn`` means running Python between fork and
exec of a process that has gRPC's threads, which can deadlock.

The kernel's "parent" is the thread that forked: start guarded processes from a thread that lives as long
as they should. Elsewhere than on Linux this only execs.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # not `typing`'s: every start of a process would pay for the import
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main(argv: list[str]) -> None:
    """Become the user, ask for the death signal, make sure the parent is still there, exec."""
    parent_pid, user, program = int(argv[0]), argv[1], argv[2:]
    ask = _death_signal()  # found before the change of user, who may not read our Python
    if user != "-":  # before asking: a change of user takes the death signal away
        _become(user)
    ask()
    if sys.platform == "linux" and os.getppid() != parent_pid:  # it died before we asked
        os._exit(SIGKILL)
    os.execvp(program[0], program)  # noqa: S606 (no shell is the point)


def _death_signal() -> "Callable[[], object]":
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def _become(user: str) -> None:
    import pwd

    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


if __name__ == "__main__":
    main(sys.argv[1:])
