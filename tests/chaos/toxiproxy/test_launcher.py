"""Finding, starting, losing and stopping a Toxiproxy; the command line on top of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chaos.toxiproxy.client import ToxiproxyClient
from chaos.toxiproxy.errors import DiedError, GoMissingError, InstallError, LaunchError
from chaos.toxiproxy.install import cache_dir, install
from chaos.toxiproxy.launcher import Binary, Embedded, Running, Toxiproxy, find, launch
from tests.chaos.toxiproxy.conftest import choice_of

BOUND_S = 15.0


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_order_is_url_then_path_then_cache_then_embedded(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert find(environ, tmp_path) == Embedded()
    cached = executable(tmp_path / "cache/resilient-relay/toxiproxy/toxiproxy-server", "")
    assert find(environ, tmp_path) == Binary(cached)
    on_path = executable(tmp_path / "bin/toxiproxy-server", "")
    assert find(environ, tmp_path) == Binary(on_path)
    url = "http://127.0.0.1:8474"
    assert find({**environ, "TOXIPROXY_URL": url}, tmp_path) == Running(url)


def test_inside_a_checkout_the_cache_is_the_checkouts(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "resilient-relay"\n')
    deep = tmp_path / "docs" / "how-to"
    deep.mkdir(parents=True)
    assert cache_dir({}, deep) == tmp_path / ".cache" / "toxiproxy"
    (tmp_path / "pyproject.toml").write_text("not toml [")
    assert cache_dir({"XDG_CACHE_HOME": "/x"}, deep) == Path("/x/resilient-relay/toxiproxy")


def test_a_launched_one_is_ready_says_what_it_is_and_is_gone_after_stop(
    server: Toxiproxy, tmp_path: Path
) -> None:
    choice = choice_of(server.kind)
    with launch(choice, log_dir=tmp_path) as toxiproxy:
        assert toxiproxy.kind == server.kind
        assert toxiproxy.version == toxiproxy.client().version()
        assert toxiproxy.pid is not None
        assert alive(toxiproxy.pid)
        assert toxiproxy.log_path is not None
        assert toxiproxy.log_path.read_text()
        toxiproxy.check()
    assert not alive(toxiproxy.pid)
    toxiproxy.stop()  # once more does no harm


def test_one_that_died_is_reported_with_its_exit_code_and_log(tmp_path: Path) -> None:
    with launch(Embedded(), log_dir=tmp_path) as toxiproxy:
        assert toxiproxy.pid is not None
        os.kill(toxiproxy.pid, signal.SIGKILL)
        toxiproxy._process.wait(BOUND_S)
        with pytest.raises(
            DiedError, match=r"has ended with exit code -9; its log, .* ends:\nembedded Toxiproxy at"
        ):
            toxiproxy.check()


def test_a_running_one_is_joined_told_apart_and_left_alone(server: Toxiproxy) -> None:
    with launch(Running(server.url)) as joined:
        assert (joined.kind, joined.url, joined.pid) == (server.kind, server.url, None)
    joined.stop()
    server.check()


def test_a_running_one_that_is_not_there_is_said(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(LaunchError, match=f"TOXIPROXY_URL is {url} and no Toxiproxy answers there"):
            launch(Running(url))


def test_a_busy_port_is_an_error_that_says_so_and_leaves_no_process(
    server: Toxiproxy, tmp_path: Path
) -> None:
    before = children()
    choice = choice_of(server.kind)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        wanted = rf"(?s)could not listen at http://127.0.0.1:{port};.*address already in use"
        with pytest.raises(LaunchError, match=wanted):
            launch(choice, port=port, log_dir=tmp_path)
    assert children() == before


def children() -> set[int]:
    """The processes this one has started and not reaped."""
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return set()
    return {int(pid) for pid in text.split()}


def test_a_url_that_is_none_or_another_server_is_said(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"TOXIPROXY_URL is nonsense://x .* not the address of a Toxiproxy"):
        launch(Running("nonsense://x"))


def test_one_that_never_gets_ready_is_given_up_and_killed(tmp_path: Path) -> None:
    stubborn = executable(
        tmp_path / "toxiproxy-server", f"echo $$ > {tmp_path}/pid; trap '' TERM; sleep 60 & wait; wait"
    )
    started_s = time.monotonic()
    with pytest.raises(LaunchError, match=r"no Toxiproxy answered at .* within 0.5 s"):
        launch(Binary(stubborn), log_dir=tmp_path, ready_timeout_s=0.5)
    assert time.monotonic() - started_s < BOUND_S
    assert not alive(int((tmp_path / "pid").read_text()))


def test_one_that_ends_at_once_is_reported_with_what_it_said(tmp_path: Path) -> None:
    broken = executable(tmp_path / "toxiproxy-server", "echo cannot run here; exit 3")
    with pytest.raises(LaunchError, match=r"exit code 3 before it was ready; (?s:.*)cannot run here"):
        launch(Binary(broken), log_dir=tmp_path)


def test_a_binary_that_cannot_be_run_is_a_launch_error(tmp_path: Path) -> None:
    broken = tmp_path / "toxiproxy-server"
    broken.write_bytes(b"\x00not a program")
    broken.chmod(0o755)
    with pytest.raises(
        LaunchError, match=r"(?s)before it was ready;.*(Exec format|not a program|cannot execute)"
    ):
        launch(Binary(broken), log_dir=tmp_path)


def test_installing_without_go_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(GoMissingError, match=r"no `go` is on PATH.*install Go.*embedded server"):
        install(tmp_path, {"PATH": str(tmp_path)})


def test_installing_puts_the_binary_in_place_whole(tmp_path: Path) -> None:
    fake_go = (
        f'echo "$@" > {tmp_path}/args; printf "#!/bin/sh\\n" > "$GOBIN/server"; chmod +x "$GOBIN/server"'
    )
    executable(tmp_path / "bin/go", fake_go)
    environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    path = install(tmp_path / "cache", environ)
    assert path == tmp_path / "cache/toxiproxy-server"
    assert os.access(path, os.X_OK)
    assert [entry.name for entry in path.parent.iterdir()] == ["toxiproxy-server"]
    assert "github.com/Shopify/toxiproxy/v2/cmd/server@v2.12.0" in (tmp_path / "args").read_text()


def test_an_install_that_fails_says_what_go_said_and_leaves_nothing(tmp_path: Path) -> None:
    executable(tmp_path / "bin/go", "echo 'dial tcp: no route to host' >&2; exit 1")
    with pytest.raises(InstallError, match="exit code 1:\ndial tcp: no route to host"):
        install(tmp_path / "cache", {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"})
    assert list((tmp_path / "cache").iterdir()) == []


def command(*args: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chaos.toxiproxy", *args],
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def test_which_prints_json_and_fails_where_the_url_is_dead() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        dead = command("which", environ={"TOXIPROXY_URL": url})
    assert dead.returncode == 1
    assert dead.stderr.startswith("error: TOXIPROXY_URL is")
    found = command("which", "--json", environ={"TOXIPROXY_URL": ""})
    assert found.returncode == 0
    assert json.loads(found.stdout)["kind"] in {"real", "embedded"}


def test_install_without_go_could_not_tell(tmp_path: Path) -> None:
    done = command("install", environ={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "no `go` is on PATH" in done.stderr


def test_serve_prints_one_line_of_json_when_ready_and_ends_cleanly_on_sigterm() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "chaos.toxiproxy", "serve", "--port", "0", "--seed", "7", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        ready = json.loads(process.stdout.readline())
        assert ready["seed"] == 7
        assert ToxiproxyClient(ready["url"]).version() == "2.12.0"
        process.terminate()
        assert process.wait(BOUND_S) == 0


def test_serve_on_a_busy_port_is_an_error_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        done = command("serve", "--port", str(busy.getsockname()[1]))
    assert done.returncode == 1
    assert "address already in use" in done.stderr
