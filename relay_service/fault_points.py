"""Named steps at which a test can kill or stall the relay exactly there.

Off in production: the composition root then hands out `nowhere`, and a step costs one call of a function
that does nothing.
"""

import os
import signal
from collections.abc import Callable

FaultPoint = Callable[[str], None]
"""Called with the name of the step just taken, e.g. ``claimed``."""


def nowhere(_step: str) -> None:
    """Nothing happens at any step."""


class InvalidFaultPointError(ValueError):
    """The description of a fault point is not one."""


_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class FaultAt:
    """Sends this process a signal the ``nth`` time a step is reached.

    ``description`` is ``STEP:kill|stop:NTH``, e.g. ``claimed:kill:3``. State: how often it was reached.
    """

    def __init__(self, description: str) -> None:
        try:
            self._step, action, nth = description.split(":")
            self._signal = _SIGNALS[action]
            self._left = int(nth)
        except (ValueError, KeyError):
            raise InvalidFaultPointError(
                f"a fault point is STEP:kill|stop:NTH, e.g. claimed:kill:3, not {description!r}"
            ) from None

    def __call__(self, step: str) -> None:
        """The step is reached."""
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._signal)
