"""Accepting jobs: nothing is acknowledged before its commit."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from job_store import MemoryJobs

from relay_service.core.job import Job, Work
from relay_service.core.job_policy import JobPolicy
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.policy import RelayPolicy, UpstreamPolicy
from relay_service.core.reason import Reason
from relay_service.jobs.counters import JobCounters
from relay_service.jobs.fullness import Fullness
from relay_service.jobs.sending import Untraced
from relay_service.jobs.submitting import Order, SubmissionRefusedError, Submitter
from relay_service.stores.interface import Counts, StoreUnavailableError, Submission


class NoFacts:
    def facts(self, upstream: str, method: str) -> None:
        return None


class SlowCommits(MemoryJobs):
    """Commits when it is told to, or fails."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)
        self.commit = asyncio.Event()
        self.error: Exception | None = None

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Job, bool]]:
        await self.commit.wait()
        if self.error is not None:
            raise self.error
        return await super().submit(submissions)


def a_submitter(store: MemoryJobs, steps: list[str], fullness: Fullness | None = None) -> Submitter:
    policy = RelayPolicy("test", {"up": UpstreamPolicy(target="127.0.0.1:1")})
    numbers = iter(range(1000))
    return Submitter(
        store,
        lambda: policy,
        NoFacts(),
        jobs=policy.jobs,
        fullness=fullness or Fullness(policy.jobs, policy.dead_letters),
        counters=JobCounters(),
        new_id=lambda: f"job-{next(numbers)}",
        fault_point=steps.append,
        sender=Untraced(),
    )


def order(**work: Any) -> Order:
    return Order(Work(**{"tenant": "", "method": "S/M", "request": b"", "key": b"k"} | work))


async def test_nothing_is_acknowledged_before_its_commit() -> None:
    store, steps = SlowCommits(), []
    submitting = asyncio.create_task(a_submitter(store, steps).submit(order()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not submitting.done()
    assert steps == ["job-submitting"]
    store.commit.set()
    assert (await submitting).job.id in store.jobs_by_id
    assert steps == ["job-submitting", "job-submitted"]


async def test_a_commit_that_failed_is_refused() -> None:
    store = SlowCommits()
    store.error = StoreUnavailableError("gone")
    store.commit.set()
    with pytest.raises(SubmissionRefusedError) as refused:
        await a_submitter(store, []).submit(order())
    assert refused.value.reason is Reason.STORE_UNAVAILABLE


async def test_a_full_store_refuses_also_what_it_accepted_since_it_was_counted() -> None:
    store = SlowCommits()
    store.commit.set()
    fullness = Fullness(JobPolicy(max_unfinished=2), LetterPolicy())
    submitter = a_submitter(store, [], fullness)
    for key in (b"1", b"2"):
        await submitter.submit(order(key=key))
    with pytest.raises(SubmissionRefusedError) as refused:
        await submitter.submit(order(key=b"3"))
    assert refused.value.reason is Reason.JOBS_FULL
    fullness.looked(Counts({}, {}))
    await submitter.submit(order(key=b"3"))


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ({"method": "no method"}, Reason.JOB_INVALID),
        ({"order_key": "x" * 256}, Reason.JOB_INVALID),
        ({"priority": -101}, Reason.JOB_INVALID),
        ({"metadata": (("idempotency-key", b"x"),)}, Reason.JOB_INVALID),
        ({"metadata": (("grpc-timeout", b"1S"),)}, Reason.JOB_INVALID),
        ({"metadata": (("relay-batch", b"alone"),)}, Reason.JOB_INVALID),
        ({"metadata": (("x", b"\n"),)}, Reason.JOB_INVALID),
        ({"metadata": (("x", b"y" * 9000),)}, Reason.JOB_INVALID),
        ({"request": b"x" * (4 * 1024 * 1024 + 1)}, Reason.MESSAGE_TOO_LARGE),
        ({"key": b"\xff"}, Reason.IDEMPOTENCY_KEY_INVALID),
    ],
)
async def test_what_could_not_be_run_is_not_accepted(work: dict[str, Any], reason: Reason) -> None:
    store = SlowCommits()
    store.commit.set()
    with pytest.raises(SubmissionRefusedError) as refused:
        await a_submitter(store, []).submit(order(**work))
    assert refused.value.reason is reason
    assert not store.jobs_by_id
