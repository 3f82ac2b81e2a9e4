"""A power cut at any write loses nothing that was acknowledged. kill -9 cannot show this: the kernel keeps
what a dead process wrote."""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relay_service.core.idempotency import RecordState
from relay_service.core.job import JobState
from relay_service.stores.interface import StoreError
from relay_service.stores.sqlite import SqliteSettings, SqliteStore
from tests.stores.disks import VolatileDisk

SEEDS = range(24)
SHORT, LONG = (3, 900), (2500, 5000)
"""Writes until the cut: from within the first start to beyond the first checkpoint (1,000 pages)."""
DAY_S = 24 * 3600.0


@dataclass
class Acknowledged:
    """What callers were told."""

    claimed: dict[bytes, int] = field(default_factory=dict)
    finished: dict[bytes, bytes] = field(default_factory=dict)
    submitted: set[str] = field(default_factory=set)
    completed: set[str] = field(default_factory=set)
    buried: dict[str, str] = field(default_factory=dict)


async def load(store: SqliteStore, make: Any, rng: random.Random, told: Acknowledged) -> None:
    """Calls and jobs until the store fails; each acknowledgement is written down."""
    while True:
        key = rng.randbytes(8)
        claimed = await store.claim(make.claim(make.scope(key)))
        told.claimed[key] = claimed.record.fence
        if await store.finish(make.scope(key), claimed.record.fence, key * 50, DAY_S):
            told.finished[key] = key * 50
        ((job, _new),) = await store.submit([make.job(job_id=key.hex(), request=key * rng.randrange(1, 200))])
        told.submitted.add(job.id)
        for leased in await store.lease("worker", methods=None, limit=1, lease_s=DAY_S):
            if rng.random() < 0.5:
                await store.complete(leased.id, leased.fence, make.tried(), b"done", DAY_S)
                told.completed.add(leased.id)
            else:
                await store.bury(leased.id, leased.fence, make.tried(), make.burial(f"letter-{leased.id}"))
                told.buried[leased.id] = f"letter-{leased.id}"


async def cut(tmp_path: Path, make: Any, seed: int, synchronous: str) -> tuple[Acknowledged, Path]:
    """Load until the lights go out; what callers were told, and the file that is left."""
    rng = random.Random(seed)
    before, after = tmp_path / f"before-{seed}", tmp_path / f"after-{seed}"
    before.mkdir()
    after.mkdir()
    told = Acknowledged()
    with VolatileDisk(seed, writes_until_cut=rng.randrange(*LONG if seed % 8 == 7 else SHORT)) as disk:
        settings = SqliteSettings(str(before / "relay.db"), vfs=disk.name, synchronous=synchronous)
        store = SqliteStore(settings)
        results = await asyncio.gather(store.open(), return_exceptions=True)
        if results == [None]:
            results = await asyncio.gather(
                *(load(store, make, rng, told) for _ in range(8)), return_exceptions=True
            )
        assert all(isinstance(result, StoreError) for result in results), results
        assert disk.is_dark
        disk.what_is_left(after)
        await store.close()
    return told, after / "relay.db"


async def lost(told: Acknowledged, path: Path) -> list[str]:
    """Every acknowledgement that the file does not bear out."""
    store = SqliteStore(SqliteSettings(str(path)))
    try:
        await store.open()
    except StoreError as error:
        return [str(error)]
    try:
        return [complaint async for complaint in complaints(store, told)]
    finally:
        await store.close()


async def complaints(store: SqliteStore, told: Acknowledged) -> Any:
    from tests.stores.conftest import Make

    make = Make()
    for key, fence in told.claimed.items():
        record = await store.look_up(make.scope(key))
        if record is None or record.fence != fence:
            yield f"claim {key.hex()} is gone"
        elif key in told.finished and (record.state, record.answer) != (RecordState.DONE, told.finished[key]):
            yield f"answer {key.hex()} is gone"
    for job_id in told.submitted:
        job = await store.job(job_id)
        if job is None:
            yield f"job {job_id} is gone"
        elif job_id in told.completed and job.state is not JobState.COMPLETED:
            yield f"job {job_id} is {job.state}"
        elif job_id in told.buried and await store.letter(told.buried[job_id]) is None:
            yield f"letter of {job_id} is gone"


async def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path, make: Any) -> None:
    acknowledged = 0
    for seed in SEEDS:
        told, path = await cut(tmp_path, make, seed, "EXTRA")
        acknowledged += len(told.claimed) + len(told.submitted)
        assert await lost(told, path) == [], f"seed {seed}"
    assert acknowledged > 10 * len(SEEDS)


@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL", "FULL"])
async def test_the_same_cuts_lose_with_anything_less(tmp_path: Path, make: Any, synchronous: str) -> None:
    """That the test above can fail. FULL alone loses when the first journal's deletion is undone."""
    for seed in SEEDS:
        if await lost(*(await cut(tmp_path, make, seed, synchronous))):
            return
    pytest.fail(f"none of {len(SEEDS)} cuts lost anything with synchronous={synchronous}")
