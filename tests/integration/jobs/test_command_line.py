"""The verbs about jobs and dead letters, run outside the tests' process, as people run them.

In the tests' process every message type is known, in the command's own only the relay's: what it can show
and read must not depend on that.
"""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

CHARGE = "downstream.v1.PaymentService/Charge"
REFUSED = '{"account": "cli", "amountMinor": -1, "currency": "EUR"}'
GOOD = '{"account": "cli", "amountMinor": 7, "currency": "EUR"}'


@dataclass
class Ended:
    """What a command said."""

    exit_code: int
    out: str
    err: str

    @property
    def fields(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="module", autouse=True)
def commands() -> Iterator[None]:
    """The process that runs them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.jobs.command_line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _processes.append(process)
    try:
        yield
    finally:
        _processes.remove(process)
        process.communicate(timeout=10)


_processes: list["subprocess.Popen[str]"] = []


async def run(relay: Any, *arguments: str, stdin: str = "") -> Ended:
    environment = {
        "RELAY_LISTEN": relay.addresses["relay"],
        "RELAY_ADMIN_LISTEN": relay.addresses["admin"],
    }
    asked = json.dumps({"arguments": arguments, "stdin": stdin, "environment": environment})
    told = json.loads(await asyncio.to_thread(_answer, asked))
    assert not told.pop("crash"), told
    return Ended(**told)


def _answer(asked: str) -> str:
    (process,) = _processes
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{asked}\n")
    process.stdin.flush()
    return process.stdout.readline()


async def a_dead_letter(relay: Any, key: str) -> str:
    """The id of the letter that a job leaves whose request is refused."""
    job_id = (await run(relay, "submit", CHARGE, REFUSED, "--key", key)).out.strip()
    watched = await run(relay, "jobs", "watch", job_id)
    assert (watched.exit_code, watched.out.splitlines()[-1].split()[0]) == (1, "DEAD")
    found = re.search(r"dead letter (\w+)", watched.out)
    assert found, watched.out
    return found[1]


async def test_submissions_are_accepted_once_or_refused_in_words(one_relay: Any) -> None:
    relay = one_relay
    for arguments, stdin, exit_code, said in (
        ((CHARGE, GOOD, "--key", "ö"), "", 1, "is not ASCII"),
        ((CHARGE, '{"accounts": "x"}'), "", 2, "has no field named"),
        ((CHARGE, "{"), "", 2, "is not JSON"),
        ((CHARGE, "-"), f"{GOOD}\n{{", 2, "request 2: the request is not JSON"),
        ((CHARGE, "-"), "\n", 2, "no request on stdin"),
        (("downstream.v1.PaymentService/WatchCharges",), "", 2, "streaming method"),
        (("downstream.v1.PaymentService/Nothing",), "", 2, "it has Charge"),
        ((CHARGE, GOOD, "--delay", "9", "--ttl", "5"), "", 1, "would begin after 9 s and live for 5"),
        ((CHARGE, GOOD, "-H", "grpc-x: y"), "", 1, "must not name"),
        ((CHARGE, GOOD, "-H", "x"), "", 2, "must be name:value"),
        ((CHARGE, GOOD, "-a", "127.0.0.1:1"), "", 2, "cannot reach"),
    ):
        ended = await run(relay, "submit", *arguments, stdin=stdin)
        assert (ended.exit_code, ended.out) == (exit_code, ""), arguments
        assert said in ended.err
    assert await relay.all_jobs() == []

    first = await run(relay, "submit", CHARGE, GOOD, "--key", "one")
    again = await run(relay, "submit", CHARGE, GOOD, "--key", "one")
    assert (first.exit_code, again.exit_code, again.out) == (0, 0, first.out)
    assert "submitted before" in again.err
    assert (await run(relay, "submit", CHARGE, GOOD, "--key", "one", "--json")).fields[0]["existed"] is True

    # The keys of requests on stdin do not depend on how many there are.
    one = await run(relay, "submit", CHARGE, "-", "--key", "many", stdin=f"{GOOD}\n")
    two = await run(relay, "submit", CHARGE, "-", "--key", "many", stdin=f"{GOOD}\n\n{GOOD}\n")
    assert two.out.splitlines()[0] == one.out.strip()
    keys = {job.work.idempotency_key for job in await relay.all_jobs()}
    assert keys == {"one", "many-1", "many-2"}
    mixed = await run(relay, "submit", CHARGE, "-", "--key", "one", "--ttl", "1e9", stdin=f"{GOOD}\n{GOOD}")
    assert (mixed.exit_code, mixed.out) == (1, "")
    assert mixed.err.count("error: request") == 2


@pytest.fixture
async def one_relay(lab: Any, helpers: Any) -> Any:
    return await lab.relay(helpers.policy())


async def test_jobs_are_shown_and_steered(one_relay: Any) -> None:
    relay = one_relay
    later = ("--delay", "3600", "--order-key", "later", "--priority", "3")
    job_id = (await run(relay, "submit", CHARGE, GOOD, *later)).out.strip()
    shown = (await run(relay, "jobs", "show", job_id)).out
    assert "PENDING, 0 runs" in shown
    assert "--payloads shows it" in shown
    assert "amount" not in shown
    for as_json in ((), ("--json",)):
        whole = (await run(relay, "jobs", "show", job_id, "--payloads", *as_json)).out
        assert '"amount_minor": "7"' in whole
    for wrong in (("pause",), ("resume",), ("ls", "--state", "nothing"), ("ls", "--limit", "0")):
        assert (await run(relay, "jobs", *wrong)).exit_code == 2
    assert (await run(relay, "jobs", "pause", "--order-key", "later")).out == "1 paused\n"
    assert job_id in (await run(relay, "jobs", "ls", "--state", "paused")).out
    assert (await run(relay, "jobs", "resume", "--all", "--json")).fields == [{"resumed": "1"}]
    assert (await run(relay, "jobs", "cancel", job_id)).out == f"{job_id} CANCELLED\n"
    assert (await run(relay, "jobs", "watch", job_id)).exit_code == 1
    for verb in ("show", "watch", "cancel"):
        unknown = await run(relay, "jobs", verb, "nothing")
        assert (unknown.exit_code, "no job 'nothing'" in unknown.err) == (1, True)
    done = (await run(relay, "submit", CHARGE, GOOD)).out.strip()
    assert (await run(relay, "jobs", "watch", done)).exit_code == 0
    answered = (await run(relay, "jobs", "show", done, "--payloads", "--json")).fields[0]
    assert answered["response"]["charge"]["account"] == "cli"
    assert (await run(relay, "jobs", "cancel", done)).exit_code == 1
    cut = await run(relay, "jobs", "ls", "--limit", "1")
    assert "--limit shows more" in cut.err


async def test_letters_are_found_shown_without_their_payloads_unless_asked_and_replayed(
    one_relay: Any, lab: Any
) -> None:
    relay = one_relay
    letter_id = await a_dead_letter(relay, "k")
    assert "NON_RETRYABLE" in (await run(relay, "dlq", "groups")).out
    for found in (("--code", "invalid_argument"), ("--since", "1h"), ("--cause", "non_retryable")):
        assert letter_id in (await run(relay, "dlq", "ls", *found)).out
    for other in (("--code", "unavailable"), ("--until", "2020-01-01"), ("--state", "held")):
        assert letter_id not in (await run(relay, "dlq", "ls", *other)).out
    for wrong in (("--code", "99"), ("--since", "yesterday"), ("--cause", "old age")):
        assert (await run(relay, "dlq", "ls", *wrong)).exit_code == 2
    for verb in (("ls", "--json"), ("groups", "--json"), ("show", letter_id), ("show", letter_id, "--json")):
        assert 'amount_minor"' not in (await run(relay, "dlq", *verb)).out
    for as_json in ((), ("--json",)):
        whole = (await run(relay, "dlq", "show", letter_id, "--payloads", *as_json)).out
        assert '"amount_minor": "-1"' in whole
    log = (lab.folder / "relay-0.log").read_text()
    assert "NON_RETRYABLE" in log
    assert "cli" not in log

    letters = [letter_id, await a_dead_letter(relay, "k-2")]
    assert (await run(relay, "dlq", "replay")).exit_code == 2
    planned = await run(relay, "dlq", "replay", "--all", "--dry-run")
    assert (planned.exit_code, planned.out) == (0, "2 letters would be replayed: 2 NOT_EXECUTED\n")
    done = await run(relay, "dlq", "replay", "--all")
    assert done.exit_code == 1
    assert "2 letters: 0 executed, 0 had been executed, 1 failed, 1 not started, 0 unfinished" in done.out
    assert "the canary failed: INVALID_ARGUMENT" in done.out
    assert "forecast NOT_EXECUTED: 1 FAILED" in done.out
    assert (await run(relay, "dlq", "hold", letters[0], "--note", "ask")).out == f"{letters[0]} held\n"
    held = await run(relay, "dlq", "replay", "nothing", letters[0])
    assert held.exit_code == 1
    assert "no dead letter 'nothing'" in held.err
    assert f"{letters[0]} is HELD" in held.err


async def test_deciding_about_letters(one_relay: Any, lab: Any) -> None:
    relay = one_relay
    letters = [await a_dead_letter(relay, f"k-{number}") for number in range(3)]
    assert (await run(relay, "dlq", "discard", "--reason", "x")).exit_code == 2
    assert (await run(relay, "dlq", "discard", "--all", "--reason", " ")).exit_code == 2
    some = await run(relay, "dlq", "hold", "nothing", letters[0])
    assert (some.exit_code, some.out) == (1, f"{letters[0]} held\n")
    everything = await run(relay, "dlq", "discard", "--code", "invalid_argument", "--reason", "a test")
    assert sorted(everything.out.splitlines()) == sorted(f"{one} discarded" for one in letters[1:])
    over = await run(relay, "dlq", "edit", letters[1], GOOD)
    assert (over.exit_code, "is discarded and cannot be replayed" in over.err) == (1, True)
    assert (await run(relay, "dlq", "release", "--all")).out == f"{letters[0]} released\n"
    same_key = await run(relay, "dlq", "edit", letters[0], GOOD, "--key", "k-0")
    assert (same_key.exit_code, "must be a new one" in same_key.err) == (1, True)
    edited = await run(relay, "dlq", "edit", letters[0], GOOD, "--key", "k-0-better")
    assert (await run(relay, "jobs", "watch", edited.out.strip())).exit_code == 0
    assert (await run(relay, "idem", "show", "k-0", CHARGE)).out.split()[2] == "EXPIRED,"
    assert "RESOLVED" in (await run(relay, "dlq", "show", letters[0])).out
    assert await lab.effects() == {"cli": 1}


async def test_letters_move_to_another_store_byte_for_byte(lab: Any, helpers: Any, one_relay: Any) -> None:
    letter_id = await a_dead_letter(one_relay, "k")
    exported = (await run(one_relay, "dlq", "export")).out
    file = lab.folder / "letters.jsonl"
    file.write_text(exported)
    other = await lab.relay(helpers.policy(), store=f"sqlite:{lab.folder / 'other.db'}")
    assert (await run(other, "dlq", "import", str(file))).out == "1 imported, 0 here already\n"
    assert (await run(other, "dlq", "import", "-", stdin=exported)).out == "0 imported, 1 here already\n"
    before = (await run(one_relay, "dlq", "show", letter_id, "--payloads", "--json")).fields[0]
    after = (await run(other, "dlq", "show", letter_id, "--payloads", "--json")).fields[0]
    assert before.pop("expire_time") <= after.pop("expire_time")
    assert before == after
    edited = (await run(other, "dlq", "edit", letter_id, GOOD)).out.strip()
    assert (await run(other, "jobs", "watch", edited)).exit_code == 0
    for line in ("{", "{}", '{"work": {"method": "a.B/C", "request": {"base64": "%"}}}'):
        bad = await run(other, "dlq", "import", "-", stdin=f"{exported}{line}\n")
        assert (bad.exit_code, "line 2 is no dead letter" in bad.err) == (2, True)
    missing = await run(other, "dlq", "import", "-", stdin='{"work": {"request": {"base64": ""}}}')
    assert (missing.exit_code, "must have id, work.method" in missing.err) == (1, True)


async def test_a_relay_that_is_away_or_has_no_store_is_told_from_one_that_refuses(
    lab: Any, helpers: Any
) -> None:
    relay = await lab.relay(helpers.policy(deadLetters={"maxEntries": 1}))
    await a_dead_letter(relay, "k")

    async def refused() -> bool:
        return "dead letters" in (await run(relay, "submit", CHARGE, GOOD, "--key", "more")).err

    await helpers.eventually(refused)
    full = await run(relay, "submit", CHARGE, GOOD, "--key", "more")
    assert (full.exit_code, "Is the relay running" in full.err) == (1, False)
    for verb in (("jobs", "ls"), ("dlq", "ls"), ("dlq", "replay", "--all")):
        away = await run(relay, *verb, "-a", "127.0.0.1:1")
        assert (away.exit_code, "Is the relay running?" in away.err) == (2, True)
