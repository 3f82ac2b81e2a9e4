"""The Dockerfile builds what it says from what it is sent, as far as can be told without an engine."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integration.compose.deployment import Instruction, copies

BUILD, FINAL = 0, 1
PIN = re.compile(r"^([\w.-]+)==([^ ;\\]+)", re.MULTILINE)


def arguments(dockerfile: list[Instruction], name: str, stage: int) -> list[str]:
    return [i.argument for i in dockerfile if i.stage == stage and i.name == name]


@pytest.mark.parametrize("stage", [BUILD, FINAL])
def test_whatever_is_copied_is_sent_to_the_engine(dockerfile, build_context, stage):
    sources = [source for sources, _ in copies(dockerfile, stage) for source in sources]
    assert sources
    assert [source for source in sources if not (build_context / source).exists()] == []


def test_nothing_generated_and_nothing_private_is_sent(build_context):
    sent = {str(path.relative_to(build_context)) for path in build_context.rglob("*") if path.is_file()}
    assert not [path for path in sent if re.search(r"_pb2|__pycache__|\.git/|\.venv|^tests/|^out/", path)]
    assert "pyproject.toml" in sent


def test_the_image_runs_without_rights_and_without_a_shell(dockerfile):
    (user,) = arguments(dockerfile, "USER", FINAL)
    assert int(user.split(":")[0]) > 0
    assert arguments(dockerfile, "STOPSIGNAL", FINAL) == ["SIGTERM"]
    for name in ("CMD", "ENTRYPOINT"):
        for argument in arguments(dockerfile, name, FINAL):
            assert json.loads(argument), argument
    (health,) = arguments(dockerfile, "HEALTHCHECK", FINAL)
    assert json.loads(health.partition("CMD")[2])[0] == "python"


def test_every_install_is_checked_by_hash_or_has_no_index(dockerfile):
    installs = [
        i.argument for i in dockerfile if i.name == "RUN" and "install" in i.argument and "pip" in i.argument
    ]
    assert len(installs) == 3
    assert all('"--require-hashes"' in line or '"--no-index"' in line for line in installs)


def test_ports_exposed_are_the_ones_listened_on(dockerfile):
    (environment,) = arguments(dockerfile, "ENV", FINAL)
    listening = set(re.findall(r"LISTEN=0\.0\.0\.0:(\d+)", environment))
    (exposed,) = arguments(dockerfile, "EXPOSE", FINAL)
    assert set(exposed.split()) == listening
    assert "RELAY_ADMIN_LISTEN" not in environment


def test_the_runtime_lock_is_a_part_of_the_lock_that_is_tested(root):
    tested = dict(PIN.findall((root / "requirements.lock").read_text()))
    runtime = dict(PIN.findall((root / "requirements-runtime.lock").read_text()))
    assert runtime
    assert {name: version for name, version in runtime.items() if tested.get(name) != version} == {}
    assert not {"pytest", "ruff", "mypy", "hatchling"} & set(runtime)


def test_the_runtime_lock_has_every_dependency_of_the_project(root):
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in project["dependencies"]}
    locked = {
        name.lower().replace("_", "-")
        for name, _ in PIN.findall((root / "requirements-runtime.lock").read_text())
    }
    assert names <= locked


@pytest.fixture(scope="module")
def wheel(dockerfile, build_context, tmp_path_factory) -> Path:
    """Built as in the build stage, from the copied files alone."""
    source = tmp_path_factory.mktemp("src")
    for sources, destination in copies(dockerfile, BUILD):
        for name in sources:
            target = source / destination / (name if destination in {".", "./"} else "")
            if (build_context / name).is_dir():
                shutil.copytree(build_context / name, target, dirs_exist_ok=True)
            else:
                shutil.copy2(build_context / name, target)
    (command,) = (json.loads(i.argument) for i in dockerfile if i.name == "RUN" and '"wheel"' in i.argument)
    assert command[0] == "pip"
    out = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", *(str(out) if word == "/wheels" else word for word in command)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("resilient_relay-*.whl")
    return built


def test_the_wheel_has_generated_protos_presets_and_templates(wheel, root):
    inside = set(zipfile.ZipFile(wheel).namelist())
    protos = [path.relative_to(root) for path in (root / "protos").rglob("*.proto")]
    assert protos
    for proto in protos:
        stem = str(proto.with_suffix(""))
        assert {f"{stem}_pb2.py", f"{stem}_pb2_grpc.py", f"{stem}_pb2.pyi"} <= inside
    data = [
        str(path.relative_to(root))
        for package in ("relay_service", "downstream_service", "chaos")
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    ]
    assert any(path.startswith("relay_service/presets/") for path in data)
    assert [path for path in data if path not in inside] == []
    assert not [path for path in inside if path.startswith(("tests/", "deploy/"))]


def test_the_installed_wheel_runs_by_itself(wheel, tmp_path):
    target = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=60, capture_output=True)
    assert {path.name for path in (target / "bin").iterdir()} >= {"relay", "relay-downstream", "relay-chaos"}
    # `-P` and another directory keep the work tree off the path; the target precedes the editable install.
    program = (
        "import relay_service, downstream_service, protos.relay.v1.relay_pb2 as relay_pb2\n"
        "print(relay_service.__file__, downstream_service.__file__, relay_pb2.__file__, sep='\\n')"
    )
    environment = {"PYTHONPATH": str(target), "HOME": str(tmp_path)}
    python = [sys.executable, "-P"]
    where = subprocess.check_output(
        [*python, "-c", program], cwd=tmp_path, env=environment, text=True, timeout=30
    )
    assert [path for path in where.split() if not path.startswith(str(target))] == []
    lint = [*python, "-m", "relay_service", "lint", "default"]
    done = subprocess.run(
        lint, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
