"""A real relay loses its power under load: no job, letter or replay that anybody was told of is lost.

kill -9 cannot show this, for the kernel keeps what a dead process wrote.
"""

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from chaos.processes import ProcessError
from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import dead_letter_pb2, job_pb2

CALLERS = 8
OPEN = dead_letter_pb2.LETTER_STATE_OPEN
WRITES = (2000, 10_000)
"""Until the cut: after the store has been made, within the load."""


@dataclass
class Acknowledged:
    """What callers were told, and what they saw."""

    jobs: set[str] = field(default_factory=set)
    letters: set[str] = field(default_factory=set)
    replays: dict[str, str] = field(default_factory=dict)
    """By the new job, the letter that was edited."""


async def submit_for_ever(relay: Any, caller: int, told: Acknowledged) -> None:
    """Every third request is refused by the upstream, and a dead letter."""
    number = 0
    while True:
        name = f"{caller}-{number}"
        response, _ = await relay.submit(name, account=name, amount=-1 if number % 3 == 2 else 100)
        told.jobs.add(response.job.id)
        number += 1


async def replay_for_ever(relay: Any, told: Acknowledged) -> None:
    """Look for letters, and do other work in the place of every second one."""
    open_ones = dead_letter_pb2.LetterFilter(states=[OPEN])
    while True:
        request = dead_letter_pb2.ListLettersRequest(filter=open_ones, page_size=20)
        found = (await relay.letters.ListLetters(request, timeout=10)).letters
        told.letters.update(letter.id for letter in found)
        for letter in found[::2]:
            edited = dead_letter_pb2.EditAndReplayRequest(id=letter.id)
            account = f"edited-{letter.id}"
            edited.request.Pack(payment_pb2.ChargeRequest(account=account, amount_minor=1, currency="EUR"))
            job_id = (await relay.letters.EditAndReplay(edited, timeout=10)).job_id
            told.replays[job_id] = letter.id
        await asyncio.sleep(0)


async def until_the_cut(lab: Any, helpers: Any, seed: int, synchronous: str) -> Acknowledged:
    """Load until the lights go out; what the machine would find lies in ``left``."""
    left = lab.folder / "left"
    left.mkdir()
    cut = {
        "seed": seed,
        "writes": random.Random(seed).randrange(*WRITES),
        "left": str(left),
        "synchronous": synchronous,
    }
    relay = await lab.relay(
        helpers.policy(),
        program="tests.integration.jobs.relay_without_power",
        env={"POWER_CUT": json.dumps(cut)},
    )
    told = Acknowledged()
    callers = [submit_for_ever(relay, caller, told) for caller in range(CALLERS)]
    load = asyncio.gather(*callers, replay_for_ever(relay, told), return_exceptions=True)
    await asyncio.wait_for(relay.process.wait(), 90)
    ended = await asyncio.wait_for(load, 30)
    assert all(isinstance(error, grpc.aio.AioRpcError) for error in ended), ended
    print(f"seed {seed}: {len(told.jobs)} jobs, {len(told.letters)} letters, {len(told.replays)} replays")
    return told


async def lost(lab: Any, helpers: Any, told: Acknowledged) -> list[str]:
    """Start again on what is left; every acknowledgement that it does not bear out."""
    try:
        relay = await lab.relay(helpers.policy(), store=f"sqlite:{lab.folder / 'left' / 'relay.db'}")
    except ProcessError as error:
        if "before it was ready" in str(error):
            return [f"the store is refused: {error}"]
        raise
    jobs = {job.id: job for job in await relay.all_jobs()}
    complaints = [f"job {job_id} is gone" for job_id in (told.jobs | told.replays.keys()) - jobs.keys()]
    for letter_id in told.letters:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await relay.letters.GetLetter(dead_letter_pb2.GetLetterRequest(id=letter_id), timeout=10)
            continue
        complaints.append(f"letter {letter_id} is gone")
    if complaints:
        return complaints
    await helpers.all_ended(relay, len(jobs))
    effects = await lab.effects()
    done = [job for job in await relay.all_jobs() if job.state == job_pb2.JOB_STATE_COMPLETED]
    for job_id, letter_id in told.replays.items():
        if effects[f"edited-{letter_id}"] != 1:
            complaints.append(f"the replay {job_id} has {effects[f'edited-{letter_id}']} effects")
    twice = [account for account, count in effects.items() if count > 1]
    complaints += [f"{account} was charged twice" for account in twice]
    assert len(done) <= sum(effects.values())
    return complaints


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 12))])
async def test_a_power_cut_loses_nothing_that_anybody_was_told_of(lab: Any, helpers: Any, seed: int) -> None:
    told = await until_the_cut(lab, helpers, seed, "EXTRA")
    assert len(told.jobs) >= CALLERS
    assert told.letters
    assert told.replays
    assert await lost(lab, helpers, told) == []


async def test_the_same_cut_loses_without_syncs(lab: Any, helpers: Any) -> None:
    """That the test above can fail."""
    told = await until_the_cut(lab, helpers, 1, "OFF")
    assert len(told.jobs) >= CALLERS
    missing = await lost(lab, helpers, told)
    print(missing[:3])
    assert missing
