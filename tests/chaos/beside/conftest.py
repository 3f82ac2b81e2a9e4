"""A history to watch into."""

import pytest

from chaos.history import HistoryWriter, new_run


@pytest.fixture
def watched(tmp_path):
    with HistoryWriter(tmp_path / "history.jsonl", new_run("beside", 1, "none")) as history:
        yield history
