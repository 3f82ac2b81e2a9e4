"""The four acts, as data and as the small functions that play and judge them."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from chaos import invariants, model
from chaos.client import Client
from chaos.demo.stage import Evidence, PhasePlan, Stage
from chaos.faults import NetworkFault, Pulses, network_fault, pulsing
from chaos.findings import Finding
from chaos.plan import CHARGE, CHARGE_KEYED, PAYMENT_SERVICE, Arrivals, CallKind, Profile, Step, make_plan
from chaos.report import Measure
from chaos.traffic import NaiveRetry, run_closed_loop, run_open_loop
from protos.downstream.v1 import fault_pb2

CHARGE_METHOD = f"{PAYMENT_SERVICE}/Charge"
CALL_TIMEOUT_S = 8.0
"""Longer than three backoffs of the textbook policy, so that no deadline bends the theory."""
TEXTBOOK_ATTEMPTS = 4
BUDGET_ONLY = str(Path(__file__).with_name("budget-only.json"))
"""The preset ``default`` without its breaker: one thing changes at a time."""
BUDGET_RATIO = 0.2
BUDGET_BURST = 10
"""Of the policy `BUDGET_ONLY`."""


@dataclass(frozen=True, slots=True)
class ActResult:
    """What an act found."""

    phases: tuple[str, ...]
    findings: tuple[Finding, ...]
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True)
class Act:
    """One chapter of the tour."""

    name: str
    title: str
    story: str
    play: Callable[[Stage], Awaitable[ActResult]]


@dataclass(frozen=True, slots=True)
class FailingLoad:
    """Open-loop charges at a downstream that refuses a share of them before it does anything."""

    name: str
    title: str
    policy: str
    failure_probability: float
    rate_per_s: float
    duration_s: float
    traced_share: float = 0.03

    @property
    def planned_about(self) -> int:
        """The expected number of calls."""
        return round(self.rate_per_s * self.duration_s)

    @property
    def minimum(self) -> int:
        """Fewer calls prove nothing: half of what is expected."""
        return self.planned_about // 2


NO_PATTERNS = FailingLoad("no-patterns", "no patterns, 30 % failing", "passthrough", 0.3, 250, 5)
TEXTBOOK_30 = FailingLoad("textbook-30", "textbook retries, 30 % failing", "textbook", 0.3, 330, 15.8)
TEXTBOOK_80 = FailingLoad("textbook-80", "textbook retries, 80 % failing", "textbook", 0.8, 170, 7)
BUDGET_30 = FailingLoad("budget-30", "with a 20 % budget, 30 % failing", BUDGET_ONLY, 0.3, 250, 5)
BUDGET_80 = FailingLoad("budget-80", "with a 20 % budget, 80 % failing", BUDGET_ONLY, 0.8, 170, 4.5)

ANSWERS_ARE_SLOW = NetworkFault("slow-answers", "answers take 40 ms", "latency", {"latency": 40})
CONNECTIONS_RESET = Pulses(NetworkFault("resets", "connections reset", "reset_peer"), every_s=1.1, on_s=0.06)
PAYMENTS_MAX = 5000
PAYMENTS_FOR_S = 5.0
PAYMENT_WORKERS = 16
CLIENT_RETRY = NaiveRetry(tries_max=10, pause_s=0.1)
PAYMENTS_ABOUT = 1200
"""For the progress bar."""
PAYMENT_TIMEOUT_S = 3.0

SPIKE_CALLS = 200
SPIKE_RATE_PER_S = 2000
SPIKE_TIMEOUT_S = 3.0
SPIKE_SERVICE_MS = 20
SPIKE_WORKERS = 5
REFUSAL_FAST_S = 0.5


def failing(load: FailingLoad) -> fault_pb2.SetFaultsRequest:
    """UNAVAILABLE before the effect, with the load's probability."""
    failure = fault_pb2.Failure(
        code=grpc.StatusCode.UNAVAILABLE.value[0],
        message="the downstream fails on purpose",
        when=fault_pb2.Failure.WHEN_BEFORE_EFFECT,
    )
    fault = fault_pb2.Fault(
        name=load.name, methods=[CHARGE_METHOD], probability=load.failure_probability, failure=failure
    )
    return fault_pb2.SetFaultsRequest(faults=[fault])


def limited_capacity() -> fault_pb2.SetFaultsRequest:
    """As many workers as the relay's preset ``simple`` has, each busy 20 ms with a call: 250 calls/s."""
    service_time = Duration()
    service_time.FromTimedelta(timedelta(milliseconds=SPIKE_SERVICE_MS))
    capacity = fault_pb2.Capacity(workers=SPIKE_WORKERS, service_time=service_time, queue_size=SPIKE_CALLS)
    return fault_pb2.SetFaultsRequest(capacity=capacity)


async def play_failing_load(stage: Stage, load: FailingLoad) -> Evidence:
    """One phase of it."""
    profile = Profile((Step(load.rate_per_s, load.duration_s),))
    plan = make_plan(load.name, profile, (CHARGE,), stage.seed, traced_share=load.traced_share)

    async def drive(client: Client) -> int:
        return await run_open_loop(client, plan, load.name, timeout_s=CALL_TIMEOUT_S)

    fault_title = f"{load.failure_probability:.0%} of attempts refused"
    phase = PhasePlan(load.name, load.title, load.policy, failing(load), fault_title)
    return await stage.phase(phase, drive, load.planned_about)


def always_promised(*phases: Evidence) -> tuple[Finding, ...]:
    """What must hold for every call of an act: in time, accounted for, true to the ledger."""
    calls = [call for evidence in phases for call in evidence.calls]
    ledger = [entry for evidence in phases for entry in evidence.ledger]
    planned_count = sum(evidence.planned_count for evidence in phases)
    return (
        invariants.answered_in_time(calls),
        invariants.all_accounted_for(planned_count, invariants.final_tries(calls)),
        invariants.answers_match_ledger(calls, ledger),
    )


def about(load: FailingLoad, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings with the phase they are about in their statements."""
    return tuple(replace(each, statement=f"{load.title}: {each.statement}") for each in findings)


def measures_of(load: FailingLoad, success: Finding, attempts: Finding) -> tuple[Measure, ...]:
    """The two findings as rows of the table."""
    rows = (("success, " + load.title, "%", success), ("load, " + load.title, "x", attempts))
    return tuple(
        Measure(what, unit, finding.measured, finding.expected, finding.interval, finding.verdict)
        for what, unit, finding in rows
        if finding.measured is not None
    )


def judge_theory(
    load: FailingLoad, evidence: Evidence, attempts_max: int
) -> tuple[tuple[Finding, ...], tuple[Measure, ...]]:
    """Success and load against 1 - p^n and 1 + p + ... + p^(n-1)."""
    p, count = load.failure_probability, len(evidence.calls)
    success = invariants.success_as_predicted(evidence.calls, p, attempts_max, load.minimum)
    attempts = invariants.load_as_predicted(evidence.arrived, count, p, attempts_max, load.minimum)
    agreement = invariants.attempts_agree(evidence.calls, evidence.arrived)
    return about(load, (success, attempts, agreement)), measures_of(load, success, attempts)


def judge_budget(load: FailingLoad, evidence: Evidence) -> tuple[tuple[Finding, ...], tuple[Measure, ...]]:
    """The budget's bound is promised; success is shown beside what the bound leaves of it."""
    count = len(evidence.calls)
    spent = invariants.retries_within_budget(evidence.arrived, count, BUDGET_RATIO, BUDGET_BURST)
    measures: tuple[Measure, ...] = ()
    if count:
        p = load.failure_probability
        success = sum(call.ok for call in evidence.calls) / count
        unbounded = model.attempts_mean(p, TEXTBOOK_ATTEMPTS)
        allowed = 1 + BUDGET_RATIO + BUDGET_BURST / count
        # While the budget is what binds, attempts are bought to the last token and each succeeds with 1 - p.
        left = min(model.success_probability(p, TEXTBOOK_ATTEMPTS), (1 - p) * allowed)
        measures = (
            Measure(f"success, {load.title}", "%", success, left, _bought(evidence, p)),
            Measure(
                f"load, {load.title}",
                "x",
                evidence.arrived / count,
                min(unbounded, allowed),
                model.Interval(1.0, allowed),
                spent.verdict,
            ),
        )
    return about(load, (spent,)), measures


def _bought(evidence: Evidence, failure_probability: float) -> model.Interval:
    """The share of calls that the attempts made can have turned into successes: each succeeds by chance."""
    by_attempt = model.binomial_interval(max(1, evidence.arrived), 1 - failure_probability)
    attempts_per_call = evidence.arrived / len(evidence.calls)
    return model.Interval(by_attempt.low * attempts_per_call, by_attempt.high * attempts_per_call)


async def play_no_patterns(stage: Stage) -> ActResult:
    """Act 1."""
    evidence = await play_failing_load(stage, NO_PATTERNS)
    findings, measures = judge_theory(NO_PATTERNS, evidence, attempts_max=1)
    return ActResult((NO_PATTERNS.name,), (*findings, *always_promised(evidence)), measures)


async def play_retries(stage: Stage) -> ActResult:
    """Act 2."""
    findings: list[Finding] = []
    measures: list[Measure] = []
    phases: list[Evidence] = []
    for load in (TEXTBOOK_30, TEXTBOOK_80):
        phases.append(await play_failing_load(stage, load))
        found, measured = judge_theory(load, phases[-1], TEXTBOOK_ATTEMPTS)
        findings += found
        measures += measured
    for load in (BUDGET_30, BUDGET_80):
        phases.append(await play_failing_load(stage, load))
        found, measured = judge_budget(load, phases[-1])
        findings += found
        measures += measured
    findings += always_promised(*phases)
    return ActResult(tuple(phase.name for phase in phases), tuple(findings), tuple(measures))


async def play_payments(stage: Stage, name: str, title: str, kind: CallKind) -> Evidence:
    """Clients that retry by themselves, while answers are slow and connections are reset under them."""
    profile = Profile((Step(PAYMENTS_MAX, 1.0),), Arrivals.CONSTANT, calls_max=PAYMENTS_MAX)
    plan = make_plan(name, profile, (kind,), stage.seed, traced_share=0.2)
    proxy = await stage.stack.proxy()

    async def drive(client: Client) -> int:
        async with (
            network_fault(proxy, ANSWERS_ARE_SLOW, stage.history),
            pulsing(proxy, CONNECTIONS_RESET, stage.history),
        ):
            return await run_closed_loop(
                client,
                plan,
                name,
                workers=PAYMENT_WORKERS,
                for_s=PAYMENTS_FOR_S,
                timeout_s=PAYMENT_TIMEOUT_S,
                retry=CLIENT_RETRY,
            )

    phase = PhasePlan(name, title, "payments-demo", fault_pb2.SetFaultsRequest())
    return await stage.phase(phase, drive, PAYMENTS_ABOUT)


async def play_resets(stage: Stage) -> ActResult:
    """Act 3."""
    naive = await play_payments(stage, "resets-naive", "resets, no idempotency key", CHARGE)
    keyed = await play_payments(stage, "resets-keys", "resets, with keys", CHARGE_KEYED)
    doubled_naively = invariants.duplicates(naive.ledger)
    once = invariants.at_most_one_effect(keyed.ledger)
    findings = (
        invariants.fault_did_bite("without keys the client's own retries charge twice", doubled_naively),
        once,
        *always_promised(naive, keyed),
    )
    doubled = invariants.duplicates(keyed.ledger)
    measures = (
        Measure("charged twice, without a key", "payments", doubled_naively),
        Measure("charged twice, with keys", "payments", doubled, 0, model.Interval(0, 0), once.verdict),
    )
    return ActResult((naive.name, keyed.name), findings, measures)


async def play_spike(stage: Stage) -> ActResult:
    """Act 4."""
    name = "spike"
    profile = Profile(
        (Step(SPIKE_RATE_PER_S, SPIKE_CALLS / SPIKE_RATE_PER_S),), Arrivals.CONSTANT, calls_max=SPIKE_CALLS
    )
    plan = make_plan(name, profile, (CHARGE_KEYED,), stage.seed)

    async def drive(client: Client) -> int:
        return await run_open_loop(client, plan, name, timeout_s=SPIKE_TIMEOUT_S)

    phase = PhasePlan(
        name, f"a spike of {SPIKE_CALLS} calls", "simple", limited_capacity(), "capacity 250 calls/s"
    )
    evidence = await stage.phase(phase, drive, SPIKE_CALLS)
    findings = (
        invariants.refusals_are_useful(evidence.calls, REFUSAL_FAST_S),
        invariants.at_most_one_effect(evidence.ledger),
        *always_promised(evidence),
    )
    served = sum(call.ok for call in evidence.calls) / max(1, len(evidence.calls))
    return ActResult((name,), findings, (Measure("served of the spike, the rest shed", "%", served),))


ACTS = (
    Act(
        "no-patterns",
        "Nothing between you and a service that fails",
        "The relay only passes calls on (preset passthrough). Three of ten attempts are refused by "
        "the downstream, so seven of ten calls succeed.",
        play_no_patterns,
    ),
    Act(
        "retries",
        "Retries, and what they cost",
        "Four attempts with full jitter and no limit on retries (preset textbook): success is 1 - p^4, "
        "and the failing service pays for it with 1 + p + p^2 + p^3 times the load. Then a retry "
        "budget bounds that load and so gives up some success (preset default, its breaker off).",
        play_retries,
    ),
    Act(
        "resets",
        "Answers that are lost",
        "Toxiproxy delays every answer and resets the connections again and again, so payments are made "
        "whose answer never arrives. The client tries again by itself: without an idempotency key it pays "
        "twice, with one it does not.",
        play_resets,
    ),
    Act(
        "spike",
        "More than it can bear",
        "Two hundred calls at once for a downstream that does 250 a second, behind a queue of 100 "
        "(preset simple). What does not fit is told so at once; the rest is served in time; nothing is "
        "lost.",
        play_spike,
    ),
)
