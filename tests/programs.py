"""Programs of others that tests run: found beside this Python or on PATH, else the test is skipped."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def find_or_skip(name: str, how_to_have_it: str) -> str:
    """Where the program is."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"no {name} here: {how_to_have_it}, or put one on PATH")
    return found
