"""A site for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sites import Site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """On SQLite, not started: one relay may use the file."""
    made = Site(tmp_path, f"sqlite:{tmp_path / 'relay.db'}")
    try:
        yield made
    finally:
        await made.stop()
