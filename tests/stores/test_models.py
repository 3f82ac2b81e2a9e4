"""Keys and jobs against models a page long: whatever order things come in, every engine does as the model."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw
import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from relay_service.core.idempotency import Decision, RecordState
from relay_service.core.job import Job, JobState
from relay_service.stores.interface import JobFilter, Store
from relay_service.stores.postgres import PostgresSettings, PostgresStore
from relay_service.stores.queue import AGE_S
from relay_service.stores.sqlite import SqliteSettings, SqliteStore
from relay_service.stores.sqlite.clock import StoreClock
from tests.stores.conftest import Make

T = TypeVar("T")
TIMES_OF = {
    "keys": ("lease_until", "expires_at"),
    "jobs": ("ready_at", "rank", "lease_until", "expires_at", "started_at"),
    "order_holds": ("until",),
}
LEASE_S = 250.0
STEP_S = 100.0
KEEP_S = 350.0


@dataclass
class World:
    """A store, its own event loop, and time that passes when told to."""

    runner: asyncio.Runner
    store: Store
    pass_time: Callable[[float], None]
    sql: Callable[[str], list[Any]]

    def do(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, 30)

        return self.runner.run(bounded())


@pytest.fixture
def sqlite_world(tmp_path: Path) -> Iterator[World]:
    path, passed = str(tmp_path / "relay.db"), [0.0]
    store = SqliteStore(SqliteSettings(path), StoreClock(lambda: 1e9, lambda: passed[0]))

    def sql(statement: str) -> list[Any]:
        connection = apsw.Connection(path)
        connection.set_busy_timeout(5000)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def pass_time(seconds: float) -> None:
        passed[0] += seconds

    with asyncio.Runner() as runner:
        runner.run(store.open())
        yield World(runner, store, pass_time, sql)
        runner.run(store.close())


@pytest.fixture
def postgres_world(postgres_server: Any) -> Iterator[World]:
    async def run(statement: str) -> list[Any]:
        connection = await asyncpg.connect(f"{postgres_server.url}&search_path=model")
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    def sql(statement: str) -> list[Any]:
        return runner.run(run(statement))

    def pass_time(seconds: float) -> None:
        """The server's clock cannot be moved, so everything else is."""
        for table, columns in TIMES_OF.items():
            moved = ", ".join(f"{column} = {column} - {seconds}" for column in columns)
            sql(f"UPDATE {table} SET {moved}")

    with asyncio.Runner() as runner:
        sql("CREATE SCHEMA model")
        store = PostgresStore(PostgresSettings(f"{postgres_server.url}&search_path=model"))
        runner.run(store.open())
        yield World(runner, store, pass_time, sql)
        runner.run(store.close())
        sql("DROP SCHEMA model CASCADE")


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest) -> World:
    return request.getfixturevalue(f"{request.param}_world")


_examples = itertools.count()


@dataclass
class Key:
    """What the model knows of a key."""

    state: RecordState
    payload: bytes
    fence: int
    until_s: float
    answer: bytes | None = None
    was_ambiguous: bool = False


class Keys(RuleBasedStateMachine):
    """One key at a time is claimed, finished, left, released, renewed; time passes; old ones are swept."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.make = Make()
        self.prefix = next(_examples)
        self.now_s = 0.0
        self.known: dict[str, Key] = {}
        self.fences = [0]

    names = st.sampled_from("ab")
    payloads = st.sampled_from([b"one", b"two"])

    def scope(self, name: str) -> Any:
        return self.make.scope(f"{self.prefix}-{name}".encode())

    def fence(self, name: str, stale: bool) -> int:
        """The key's fence, or one that was given out before."""
        key = self.known.get(name)
        current = key.fence if key else self.fences[-1]
        return max((f for f in self.fences if f < current), default=0) if stale else current

    @rule(name=names, payload=payloads, repeatable=st.booleans())
    def claim(self, name: str, payload: bytes, repeatable: bool) -> None:
        claimed = self.world.do(
            self.world.store.claim(
                self.make.claim(self.scope(name), request=payload, lease_s=LEASE_S, repeatable=repeatable)
            )
        )
        key = self.known.get(name)
        assert claimed.decision is self.expected(key, payload, repeatable=repeatable)
        if claimed.decision is Decision.EXECUTE:
            assert claimed.record.fence > max(self.fences)
            assert claimed.was_ambiguous == (key is not None)
            self.fences.append(claimed.record.fence)
            self.known[name] = Key(
                RecordState.IN_PROGRESS,
                payload,
                claimed.record.fence,
                self.now_s + LEASE_S,
                was_ambiguous=key is not None,
            )
        if claimed.decision is Decision.REPLAY:
            assert claimed.record.answer == key.answer

    def expected(self, key: Key | None, payload: bytes, *, repeatable: bool) -> Decision:
        if key is None:
            return Decision.EXECUTE
        if key.payload != payload:
            return Decision.KEY_REUSED
        if key.state is RecordState.DONE:
            return Decision.REPLAY if self.now_s < key.until_s else Decision.KEY_EXPIRED
        if key.state is RecordState.EXPIRED:
            return Decision.KEY_EXPIRED
        if key.state is RecordState.IN_PROGRESS and self.now_s < key.until_s:
            return Decision.WAIT
        return Decision.EXECUTE if repeatable else Decision.UNKNOWN

    @rule(name=names, stale=st.booleans(), answer=st.binary(max_size=3))
    def finish(self, name: str, stale: bool, answer: bytes) -> None:
        done = self.world.do(
            self.world.store.finish(self.scope(name), self.fence(name, stale), answer, KEEP_S)
        )
        key = self.known.get(name)
        if key is None or stale or key.state is RecordState.EXPIRED:
            assert not done
        elif key.state is RecordState.DONE:
            assert done == (answer == key.answer)
        else:
            assert done
            key.state, key.answer, key.until_s = RecordState.DONE, answer, self.now_s + KEEP_S

    @rule(name=names, stale=st.booleans())
    def leave(self, name: str, stale: bool) -> None:
        left = self.world.do(self.world.store.leave_ambiguous(self.scope(name), self.fence(name, stale)))
        key = self.known.get(name)
        assert left == (not stale and self.is_open(key))
        if left:
            key.state = RecordState.AMBIGUOUS

    @rule(name=names, stale=st.booleans())
    def release(self, name: str, stale: bool) -> None:
        released = self.world.do(self.world.store.release(self.scope(name), self.fence(name, stale)))
        key = self.known.get(name)
        assert released == (not stale and key is not None and key.state is RecordState.IN_PROGRESS)
        if released and key.was_ambiguous:
            key.state = RecordState.AMBIGUOUS
        elif released:
            del self.known[name]

    @rule(name=names, stale=st.booleans())
    def renew(self, name: str, stale: bool) -> None:
        self.world.do(
            self.world.store.renew("relay-1", [(self.scope(name), self.fence(name, stale))], LEASE_S)
        )
        key = self.known.get(name)
        if key is not None and not stale and key.state is RecordState.IN_PROGRESS:
            key.until_s = self.now_s + LEASE_S

    @rule()
    def time_passes(self) -> None:
        self.world.pass_time(STEP_S)
        self.now_s += STEP_S

    @rule()
    def sweep(self) -> None:
        swept = self.world.do(self.world.store.sweep_keys(tombstone_s=KEEP_S, limit=100))
        settled = (RecordState.DONE, RecordState.EXPIRED)
        due = [n for n, k in self.known.items() if k.state in settled and self.now_s >= k.until_s]
        assert swept == len(due)
        for name in due:
            key = self.known[name]
            if key.state is RecordState.EXPIRED:
                del self.known[name]
            else:
                key.state, key.answer, key.until_s = RecordState.EXPIRED, None, self.now_s + KEEP_S

    @invariant()
    def the_store_knows_what_the_model_knows(self) -> None:
        for name in "ab":
            record = self.world.do(self.world.store.look_up(self.scope(name)))
            key = self.known.get(name)
            assert (record is None) == (key is None)
            if record is not None:
                assert (record.state, record.fence, record.answer) == (key.state, key.fence, key.answer)

    def teardown(self) -> None:
        self.world.sql("DELETE FROM keys")

    @staticmethod
    def is_open(key: Key | None) -> bool:
        return key is not None and key.state in (RecordState.IN_PROGRESS, RecordState.AMBIGUOUS)


class Jobs(RuleBasedStateMachine):
    """Jobs in two order keys and none are submitted, leased, ended in every way, paused, and time passes."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.make = Make()
        self.prefix = next(_examples)
        self.jobs: dict[str, Job] = {}
        self.holds: dict[str, float] = {}

    @initialize()
    def empty(self) -> None:
        self.world.sql("DELETE FROM order_holds")

    def running(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state is JobState.RUNNING]

    def look(self) -> None:
        """What the store says of every job is what the model goes on with; `leased` checks who was next."""
        self.jobs = {job_id: self.world.do(self.world.store.job(job_id)) for job_id in self.jobs}

    @rule(order=st.sampled_from(["", "a", "b"]), priority=st.sampled_from([-50, 0, 50]), late=st.booleans())
    def submit(self, order: str, priority: int, late: bool) -> None:
        submission = self.make.job(
            job_id=f"{self.prefix}-{len(self.jobs):03}",
            order_key=order,
            priority=priority,
            delay_s=1.5 * STEP_S if late else 0.0,
            ttl_s=1e7,
        )
        ((job, is_new),) = self.world.do(self.world.store.submit([submission]))
        assert is_new
        self.jobs[job.id] = job

    @rule(limit=st.integers(1, 3))
    def leased(self, limit: int) -> None:
        expected = self.next_ones()[:limit]
        leased = self.world.do(self.world.store.lease("worker-1", methods=None, limit=limit, lease_s=LEASE_S))
        assert [job.id for job in leased] == expected
        for job in leased:
            assert job.fence > self.jobs[job.id].fence
        self.look()

    def next_ones(self) -> list[str]:
        now = self.world.store.now()
        ready = []
        first_of: dict[str, str] = {}
        for job in self.jobs.values():
            if job.finished_at:
                continue
            order = job.work.order_key
            first = first_of.setdefault(order, job.id) if order else job.id
            held = self.holds.get(order, 0) > now
            lapsed = job.state is JobState.RUNNING and job.lease_until <= now
            waiting = job.state is JobState.PENDING and job.ready_at <= now
            if first == job.id and (lapsed or waiting) and not held:
                ready.append(job)
        ready.sort(key=lambda job: job.ready_at - job.work.priority * AGE_S)
        return [job.id for job in ready]

    @precondition(running)
    @rule(
        data=st.data(),
        how=st.sampled_from(["complete", "retry", "late", "hand_back", "bury"]),
        stale=st.sampled_from([False, False, True]),
    )
    def end(self, data: Any, how: str, stale: bool) -> None:
        job = data.draw(st.sampled_from(self.running()))
        store, fence = self.world.store, job.fence - stale
        match how:
            case "complete":
                done = store.complete(job.id, fence, self.make.tried(), b"answer", KEEP_S)
            case "retry" | "late":
                done = store.retry(job.id, fence, self.make.tried(), STEP_S / 2 if how == "late" else 0.0)
            case "hand_back":
                done = store.hand_back(job.id, fence, 0.0)
            case _:
                done = store.bury(job.id, fence, None, self.make.burial(f"letter-{job.id}"))
        before = self.jobs
        assert self.world.do(done) == (not stale)
        self.look()
        if stale:
            assert self.jobs == before

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        job = data.draw(st.sampled_from(list(self.jobs.values())))
        if job.state is JobState.RUNNING and job.work.order_key:
            self.holds[job.work.order_key] = job.lease_until
        cancelled = self.world.do(self.world.store.cancel(job.id))
        assert cancelled.state is (job.state if job.finished_at else JobState.CANCELLED)
        self.look()

    @rule()
    def pause(self) -> None:
        pending = [job for job in self.jobs.values() if job.state is JobState.PENDING]
        assert self.world.do(self.world.store.pause(JobFilter())) == len(pending)
        self.look()

    @rule()
    def resume(self) -> None:
        paused = [job for job in self.jobs.values() if job.state is JobState.PAUSED]
        assert self.world.do(self.world.store.resume(JobFilter())) == len(paused)
        self.look()

    @rule()
    def time_passes(self) -> None:
        self.world.pass_time(STEP_S)
        if isinstance(self.world.store, PostgresStore):
            self.holds = {order: until - STEP_S for order, until in self.holds.items()}
        self.look()

    @invariant()
    def counts_are_real(self) -> None:
        kept = self.world.do(self.world.store.counts()).jobs
        real = dict.fromkeys(JobState, 0)
        for job in self.jobs.values():
            real[job.state] += 1
        assert kept == real

    def teardown(self) -> None:
        self.world.sql("DELETE FROM jobs")
        self.world.sql("DELETE FROM letters")


@pytest.mark.parametrize("machine", [Keys, Jobs])
def test_whatever_the_order_the_store_does_as_the_model(world: World, machine: Any) -> None:
    run_machine(
        lambda: machine(world),
        settings=settings(
            max_examples=15 if isinstance(world.store, SqliteStore) else 4,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.soak
@pytest.mark.parametrize("machine", [Keys, Jobs])
def test_whatever_the_order_for_long(world: World, machine: Any) -> None:
    run_machine(
        lambda: machine(world),
        settings=settings(
            max_examples=1000, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
