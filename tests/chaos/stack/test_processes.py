"""One managed process: readiness, its failures, and an end that is certain."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.processes import ManagedProcess, ProcessError, describe_exit, guarded

READY = "import json, os, signal, sys; print(json.dumps({'pid': os.getpid()}), flush=True)\n"

pytestmark = pytest.mark.usefixtures("no_tasks_left")


async def test_ready_line_is_returned_and_the_process_runs_until_stopped(tmp_path, script, is_alive):
    process = ManagedProcess("one", tmp_path / "one.log")
    ready = await process.start(script(READY + "signal.pause()"))
    assert ready == {"pid": process.pid}
    assert is_alive(process.pid)
    await process.stop()
    assert not is_alive(ready["pid"])
    assert not process.running


async def test_what_it_prints_later_is_in_the_log(tmp_path, script):
    process = ManagedProcess("talker", tmp_path / "talker.log")
    await process.start(script(READY + "print('on stdout', flush=True); print('on stderr', file=sys.stderr)"))
    await process.wait()
    await process.stop()
    log = (tmp_path / "talker.log").read_text()
    assert "on stdout" in log
    assert "on stderr" in log


async def test_death_before_ready_is_an_error_with_the_end_of_the_log(tmp_path, script):
    process = ManagedProcess("early", tmp_path / "early.log")
    with pytest.raises(ProcessError, match=r"early ended with exit status 3 before it was ready") as caught:
        await process.start(script("import sys; print('no such ledger', file=sys.stderr); sys.exit(3)"))
    assert "no such ledger" in str(caught.value)


async def test_a_process_that_is_never_ready_is_killed_at_the_bound(tmp_path, script, is_alive):
    process = ManagedProcess("mute", tmp_path / "mute.log")
    with pytest.raises(ProcessError, match=r"mute was not ready within 0.5 s"):
        await process.start(script("import signal; signal.pause()"), ready_timeout_s=0.5)
    assert not is_alive(process.pid)


async def test_anything_but_json_for_a_ready_line_is_an_error(tmp_path, script, is_alive):
    process = ManagedProcess("chatty", tmp_path / "chatty.log")
    with pytest.raises(ProcessError, match=r"chatty said b'hello\\n' where a JSON object was due"):
        await process.start(script("import signal; print('hello', flush=True); signal.pause()"))
    assert not is_alive(process.pid)


async def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path, script, is_alive):
    process = ManagedProcess("stubborn", tmp_path / "stubborn.log")
    await process.start(
        script(
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            + READY
            + "\nwhile True: signal.pause()"
        )
    )
    await process.stop(grace_s=0.2)
    assert not is_alive(process.pid)


async def test_a_paused_process_is_stopped_all_the_same(tmp_path, script, is_alive):
    process = ManagedProcess("paused", tmp_path / "paused.log")
    await process.start(script(READY + "signal.pause()"))
    process.pause()
    await process.stop()
    assert not is_alive(process.pid)


async def test_its_children_die_with_it(tmp_path, script, is_alive, until):
    """The whole group is killed, not only its leader."""
    process = ManagedProcess("family", tmp_path / "family.log")
    ready = await process.start(
        script(
            "import json, os, signal, subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
            "print(json.dumps({'child': child.pid}), flush=True)\n"
            "signal.pause()"
        )
    )
    await process.kill()
    until(lambda: not is_alive(ready["child"]), "the child is gone")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_a_guarded_process_dies_when_its_parent_is_killed(script, is_alive, until):
    parent = subprocess.Popen(
        script(
            "import signal, subprocess, sys\n"
            "from chaos.processes import guarded\n"
            "child = 'import os, signal; print(os.getpid(), flush=True); signal.pause()'\n"
            "subprocess.Popen(guarded([sys.executable, '-c', child]))\n"
            "signal.pause()"
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        child_pid = int(parent.stdout.readline())
        assert is_alive(child_pid)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(child_pid), "the guarded child is gone")


def test_a_guarded_command_keeps_the_arguments_and_the_process_id():
    show = "import os, sys; print(os.getpid(), sys.argv[1:])"
    with subprocess.Popen(
        guarded([sys.executable, "-c", show, "a b", "--c"]), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.read() == f"{child.pid} ['a b', '--c']\n"
    assert child.returncode == os.EX_OK


@pytest.mark.parametrize(
    ("returncode", "words"),
    [(0, "ended with exit status 0"), (-9, "was killed by SIGKILL"), (-99, "by signal 99")],
)
def test_exits_are_told_in_words(returncode, words):
    assert words in describe_exit(returncode)


def test_a_missing_log_does_not_hide_the_error():
    assert str(ProcessError("relay", "went away", Path("/nonexistent/relay.log"))) == "relay went away"
