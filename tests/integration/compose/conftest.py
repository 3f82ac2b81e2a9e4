"""The deployment as data: the compose file, the Dockerfile, and the build context as the engine gets it."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.compose.deployment import Instruction, is_sent, read_dockerfile, read_dockerignore

ROOT = Path(__file__).parents[3]

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")
_MADE_BY_MAKE = {"out", "build", "dist"}


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """docker-compose.yml with anchors merged and every variable at its default."""
    text = (ROOT / "docker-compose.yml").read_text()
    return yaml.safe_load(_VARIABLE.sub(lambda match: match["default"] or "", text))


@pytest.fixture(scope="session")
def dockerfile() -> list[Instruction]:
    return list(read_dockerfile((ROOT / "Dockerfile").read_text()))


@pytest.fixture(scope="session")
def build_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engine would be sent: the files that .dockerignore lets through."""
    context = tmp_path_factory.mktemp("context")
    rules = read_dockerignore((ROOT / ".dockerignore").read_text())
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _MADE_BY_MAKE]
        for name in files:
            path = here / name
            if is_sent(path, rules):
                (context / here).mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, context / path)
    return context
