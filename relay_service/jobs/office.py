"""Everything about jobs and dead letters that one relay has, made and run together."""

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from relay_service.core.job import Cause, JobState, LetterState
from relay_service.core.policy import RelayPolicy
from relay_service.core.reason import Reason
from relay_service.fault_points import FaultPoint
from relay_service.jobs.carrier import CallCarrier, JobCarrier
from relay_service.jobs.counters import JobCounters
from relay_service.jobs.fullness import Fullness
from relay_service.jobs.janitor import Janitor
from relay_service.jobs.letters import Letters
from relay_service.jobs.rate import SettledRate
from relay_service.jobs.recovery import AutomaticRecovery
from relay_service.jobs.replaying import Replayer
from relay_service.jobs.sending import Sender
from relay_service.jobs.submitting import Submitter
from relay_service.jobs.workers import MethodRules, Workers
from relay_service.methods import MethodCatalog
from relay_service.stores.interface import Backlog, Counts, Store


@dataclass(frozen=True, slots=True)
class JobsStatus:
    """One look at jobs and dead letters."""

    jobs: dict[JobState, int]
    """In the store, whichever relay accepted them; as of the last second."""
    letters: dict[LetterState, int]
    buried: dict[Cause, int]
    """By this relay."""
    running_here: int
    counters: JobCounters
    oldest_ready_s: float = 0.0
    """How long a job has been ready and has not been taken; as of the last second, as the next two."""
    unsettled: Mapping[Cause, Backlog] = field(default_factory=dict)
    settled_per_s: float = 0.0
    """By this relay, over the last minute."""
    letters_max: int = 0
    """With so many unsettled letters no job is accepted."""
    refusing: str = ""
    """Why no job is accepted; empty when they are."""


class JobsOffice:
    """Accepts jobs, runs them, and keeps what could not be done.

    `start`, then `drain` while the relay still makes calls.
    """

    def __init__(
        self,
        store: Store,
        relay: CallCarrier,
        in_force: Callable[[], RelayPolicy],
        catalog: MethodCatalog,
        *,
        worker: str,
        rng: Random,
        fault_point: FaultPoint,
        sender: Sender,
    ) -> None:
        """``in_force`` gives the policy by which jobs are judged now; what it says under ``jobs`` and
        ``dead_letters`` is taken once. ``worker`` names this relay among those that share the store."""
        policy = in_force()
        self.store = store
        self.counters = JobCounters()
        self.fullness = Fullness(policy.jobs, policy.dead_letters)
        new_id = _ids(store.now)
        self.submitter = Submitter(
            store,
            in_force,
            catalog,
            jobs=policy.jobs,
            fullness=self.fullness,
            counters=self.counters,
            new_id=new_id,
            fault_point=fault_point,
            sender=sender,
        )
        rules = _rules(in_force)
        self.workers = Workers(
            store,
            JobCarrier(relay, timeout_s=policy.jobs.progress_s, fault_point=fault_point),
            rules,
            jobs=policy.jobs,
            letters=policy.dead_letters,
            worker=worker,
            clock=store.now,
            now=relay.now,
            new_id=new_id,
            rng=rng,
            fault_point=fault_point,
            counters=self.counters,
        )
        self.letters = Letters(
            store,
            relay.safety,
            rules.retryable,
            jobs=policy.jobs,
            letters=policy.dead_letters,
            new_id=new_id,
            fault_point=fault_point,
            sender=sender,
            counters=self.counters,
        )
        self.replayer = Replayer(store, self.letters, self.workers.wake)
        self._janitor = Janitor(
            store,
            self.workers.settler,
            AutomaticRecovery(store, self.letters, policy.dead_letters, self.counters),
            policy=policy.jobs,
            wake=self.workers.wake,
            counted=self._counted,
        )
        self._now = relay.now
        self._rate = SettledRate()
        self._tidying: asyncio.Task[None] | None = None

    def _counted(self, counts: Counts) -> None:
        self.fullness.looked(counts)
        self._rate.looked(self._now(), self.counters.settled)

    async def start(self) -> None:
        """Begin to work. Raises `StoreUnavailableError` when the store cannot even be counted."""
        self._counted(await self.store.counts())
        self.workers.start()
        self._tidying = asyncio.create_task(self._janitor.work(), name="the store is tidied")

    async def drain(self, grace_s: float) -> None:
        """Begin nothing more and let what runs end, within ``grace_s`` and the time of a write."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
            self._tidying = None
        await self.workers.drain(grace_s)

    def status(self) -> JobsStatus:
        """How things stand; asks nobody."""
        counts = self.fullness.counts
        refusal: Reason | None = self.fullness.refusal()
        return JobsStatus(
            jobs=dict(counts.jobs),
            letters=dict(counts.letters),
            buried=dict(self.counters.buried),
            running_here=self.workers.running,
            counters=self.counters,
            oldest_ready_s=counts.oldest_ready_s,
            unsettled=counts.unsettled,
            settled_per_s=self._rate.per_s,
            letters_max=self.fullness.letters.max_entries,
            refusing=refusal.meaning if refusal else "",
        )


def _rules(in_force: Callable[[], RelayPolicy]) -> MethodRules:
    return MethodRules(
        batch=lambda method: in_force().method_policy(method).batch,
        retryable=lambda method: in_force().method_policy(method).retry.retryable_codes,
        policy_text=lambda method: _policy_text(in_force(), method),
    )


def _policy_text(policy: RelayPolicy, method: str) -> str:
    """What a dead letter says of the policy it died under."""
    rules = policy.method_policy(method)
    jobs = policy.jobs
    return json.dumps(
        {
            "policy": policy.name,
            "safety": rules.safety.value if rules.safety else None,
            "attemptTimeout_s": rules.attempt_timeout_s,
            "attemptsPerRun": rules.retry.max_attempts,
            "retryableStatusCodes": sorted(code.name for code in rules.retry.retryable_codes),
            "runs": jobs.retry.max_attempts,
            "initialBackoff_s": jobs.retry.initial_backoff_s,
            "maxBackoff_s": jobs.retry.max_backoff_s,
            "timeToLive_s": jobs.ttl_s,
        }
    )


def _ids(clock: Callable[[], float]) -> Callable[[], str]:
    """Ids that sort by their time, to the millisecond. Relays that share a store may be given one seed, so
    these are not drawn from it."""
    return lambda: f"{int(clock() * 1000):012x}{secrets.randbits(80):020x}"
