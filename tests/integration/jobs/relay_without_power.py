"""The relay's command on a disk that loses power at a given write: then the process is gone, and what a
machine that starts again would find lies in a folder.

``POWER_CUT`` is JSON: ``seed``, ``writes`` until the cut, ``left`` (the folder) and ``synchronous``.
"""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import apsw

from relay_service.cli import main
from relay_service.stores import sqlite
from tests.stores.disks import VolatileDisk


class Machine(VolatileDisk):
    """Ends with its power."""

    def __init__(self, cut: dict[str, Any]) -> None:
        super().__init__(cut["seed"], cut["writes"])
        self._folder = Path(cut["left"])

    def wrote(self, path: str, data: bytes, offset: int) -> None:
        try:
            super().wrote(path, data, offset)
        except apsw.IOError:
            self.what_is_left(self._folder)
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    wanted = json.loads(os.environ["POWER_CUT"])
    machine = Machine(wanted)
    settings = partial(sqlite.SqliteSettings, vfs=machine.name, synchronous=wanted["synchronous"])
    # The relay itself has no setting for either: who could choose would choose wrongly.
    with patch.object(sqlite, "SqliteSettings", settings):
        main()
