"""Compile the protos beside themselves whenever the project is built or installed.

The include path maps ``protos/`` to itself, so a file's proto path equals its Python package and
the generated imports (``from protos.relay.v1 import relay_pb2``) need no rewriting.
"""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before the files of a wheel, an sdist or an editable install are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling's signature)
        compile_protos(Path(self.root))


def compile_protos(root: Path) -> None:
    """Write ``*_pb2.py``, ``*_pb2_grpc.py`` and their stubs beside every ``.proto`` under ``root/protos``."""
    from grpc_tools import protoc

    well_known = Path(protoc.__file__).parent / "_proto"
    sources = sorted(str(p.relative_to(root)) for p in (root / "protos").rglob("*.proto"))
    command = [
        "protoc",
        f"-Iprotos={root / 'protos'}",
        f"-I{well_known}",
        f"--python_out={root}",
        f"--grpc_python_out={root}",
        f"--mypy_out=quiet:{root}",
        f"--mypy_grpc_out=quiet:{root}",
        *(
            f"--plugin={name}={_beside_this_python(name)}"
            for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        ),
        *sources,
    ]
    if protoc.main(command) != 0:
        raise SystemExit("protoc failed; its messages are above")


def _beside_this_python(program: str) -> str:
    """Find a program of the build environment, which need not be on PATH when its venv is not activated."""
    found = shutil.which(
        program, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    )
    if found is None:
        raise SystemExit(f"{program} not found: install mypy-protobuf into this Python")
    return found


if __name__ == "__main__":
    compile_protos(Path(__file__).parent)
