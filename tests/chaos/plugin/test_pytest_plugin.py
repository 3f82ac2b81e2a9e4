"""The plugin in a pytest of its own: options, what it says, what it leaves; and the example project."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "orders"
TIMEOUT_S = 110
WITHOUT = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:xdist", "-p", "no:randomly")


def run_pytest(folder, *arguments, path=ROOT, **environ):
    """A pytest that finds only ``path`` and what is installed."""
    command = [sys.executable, "-m", "pytest", "-p", "chaos.pytest_plugin", *WITHOUT, *arguments]
    env = {**os.environ, "PYTHONPATH": str(path), **environ}
    env.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.fixture
def project(tmp_path):
    def write(source):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "test_it.py").write_text(textwrap.dedent(source))
        return tmp_path

    return write


def test_the_header_says_which_toxiproxy_and_which_seed(project):
    done = run_pytest(project("def test_it(): pass"), "--chaos-seed", "11", "--chaos-toxiproxy", "embedded")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chaos: seed 11, Toxiproxy: the embedded server" in done.stdout


def test_a_toxiproxy_that_cannot_be_meant_is_refused(project):
    done = run_pytest(project("def test_it(): pass"), "--chaos-toxiproxy", "8474")
    assert done.returncode == 4
    assert "must be auto, real, embedded or a URL, not '8474'" in done.stderr


def test_wanting_a_real_one_where_there_is_none_fails_and_says_so(project, tmp_path):
    folder = project("def test_it(chaos_toxiproxy): pass")
    nowhere = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": "/nowhere"}
    done = run_pytest(folder, "--chaos-toxiproxy", "real", **nowhere)
    assert done.returncode == 1
    assert "no toxiproxy-server on PATH" in done.stdout


def test_a_failed_test_tells_how_to_repeat_it_and_leaves_no_process(project):
    folder = project(
        """
        import sys

        SERVER = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))"

        def test_it(chaos_lab):
            service = chaos_lab.service([sys.executable, "-c", SERVER + "; s.accept()" * 99, "{port}"])
            with chaos_lab.proxied(service).latency(10):
                print("pids", service.pid, chaos_lab.toxiproxy.pid)
                raise AssertionError("on purpose")
        """
    )
    done = run_pytest(folder, "--chaos-seed", "12", "--chaos-toxiproxy", "embedded")
    assert done.returncode == 1
    assert "repeat: pytest 'test_it.py::test_it' --chaos-seed 12" in done.stdout
    assert "Toxiproxy: embedded" in done.stdout
    told = re.search(r"^pids (\d+) (\d+)$", done.stdout, re.MULTILINE)
    assert told, done.stdout
    for pid in told.groups():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as its users get it: a wheel, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture
def example(tmp_path):
    """A copy, because it writes its stubs beside its proto."""
    return shutil.copytree(EXAMPLE, tmp_path / "orders", ignore=shutil.ignore_patterns("generated"))


def test_the_wheel_holds_all_that_the_lab_reads_and_announces_the_plugin(installed):
    files = (
        "chaos/experiments/experiment.html.j2",
        "chaos/report/report.css",
        "chaos/demo/budget-only.json",
        "relay_service/presets/default.json",
        "protos/relay/v1/admin_pb2.py",
    )
    assert [name for name in files if not (installed / name).exists()] == []
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "[pytest11]\nchaos.pytest_plugin = chaos.pytest_plugin" in entry_points.read_text()


def test_the_example_holds_on_the_installed_package_alone(example, installed):
    probe = "import chaos, relay_service, protos; print(chaos.__file__, relay_service.__file__)"
    env = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, "-c", probe], cwd=example, env=env, capture_output=True, text=True, check=True
    )
    assert all(place.startswith(str(installed)) for place in found.stdout.split()), found.stdout
    done = run_pytest(example, "-q", path=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_example_fails_when_the_protection_is_switched_off(example, installed):
    done = run_pytest(example, "-q", "-k", "cut_under_them", path=installed, ORDERS_POLICY="passthrough")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "broken: at least 100% of the operations succeed" in done.stdout
