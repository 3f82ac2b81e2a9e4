"""From the control plane's values to AdminService's messages: the only place where both are named."""

from collections.abc import Mapping, Sequence

from protos.relay.v1 import admin_pb2
from relay_service.control.descriptors import UpstreamDescriptors
from relay_service.control.sources import (
    AlertView,
    Health,
    HedgingStatus,
    PolicyStatus,
    QueueStatus,
    Stats,
    TelemetryStatus,
    UpstreamStatus,
)
from relay_service.core.breakers import BreakerView
from relay_service.core.budget import BudgetState
from relay_service.core.criticality import Criticality
from relay_service.core.throttle import ThrottleState
from relay_service.idempotency.counters import KeysState
from relay_service.jobs.office import JobsStatus
from relay_service.ports import CallersStatus, PoolStatus
from relay_service.telemetry.metrics import CallTotals, MethodStats
from relay_service.times import duration, timestamp

Descriptors = Mapping[str, UpstreamDescriptors]
"""By the upstream's name."""


def stats_message(stats: Stats, descriptors: Descriptors, method_prefix: str) -> admin_pb2.Stats:
    """One look at the relay; only methods whose full name starts with ``method_prefix``."""
    return admin_pb2.Stats(
        observe_time=timestamp(stats.observed_at_unix_s),
        uptime=duration(stats.uptime_s),
        calls=_calls(stats.calls),
        methods=[_method(one) for one in stats.methods if one.method.startswith(method_prefix)],
        queue=_queue(stats.queue),
        upstreams=_upstreams(stats.upstreams, descriptors),
        telemetry=_telemetry(stats.telemetry),
        jobs=_jobs(stats.jobs) if stats.jobs is not None else None,
        policy=policy_message(stats.policy),
        callers=_callers(stats.callers),
        keys=_keys(stats.keys) if stats.keys is not None else None,
        alerts=[_alert(view) for view in stats.alerts],
    )


def _alert(view: AlertView) -> admin_pb2.Alert:
    alert = view.alert
    return admin_pb2.Alert(
        alert=alert.kind.value,
        subject=alert.subject,
        severity=alert.severity.value,
        message=alert.message,
        age=duration(view.age_s),
    )


def policy_message(policy: PolicyStatus) -> admin_pb2.Policy:
    """The policy in force."""
    message = admin_pb2.Policy(
        name=policy.name,
        version=policy.version,
        load_time=timestamp(policy.loaded_at_unix_s),
        reloads=policy.reloads,
        refused=policy.refused,
        last_refusal=policy.last_refusal,
    )
    if policy.refused:
        message.last_refusal_time.CopyFrom(timestamp(policy.last_refusal_at_unix_s))
    return message


def health_message(
    health: Health, stats: Stats, descriptors: Descriptors, version: str
) -> admin_pb2.GetHealthResponse:
    """Health in detail."""
    return admin_pb2.GetHealthResponse(
        serving=health.serving,
        draining=health.draining,
        version=version,
        uptime=duration(stats.uptime_s),
        upstreams=_upstreams(stats.upstreams, descriptors),
        queue=_queue(stats.queue),
        reasons=health.reasons,
        refusing_jobs=health.refusing_jobs,
    )


def _calls(calls: CallTotals) -> admin_pb2.Calls:
    return admin_pb2.Calls(
        received=calls.received,
        ok=calls.ok,
        errors=calls.errors,
        refused=calls.refused,
        cancelled=calls.cancelled,
        in_flight=calls.in_flight,
        by_reason=calls.by_reason,
    )


def _callers(callers: CallersStatus) -> admin_pb2.Callers:
    return admin_pb2.Callers(
        connections=callers.connections,
        streams=callers.streams,
        accepted=callers.accepted,
        refused=callers.refused,
        refused_of_peer=callers.refused_of_peer,
        failed=callers.failed,
        last_failure=callers.last_failure,
        not_grpc=callers.not_grpc,
        malformed=callers.malformed,
        replies_given_up=callers.replies_given_up,
    )


def _method(method: MethodStats) -> admin_pb2.MethodStats:
    return admin_pb2.MethodStats(
        method=method.method,
        received=method.received,
        ok=method.ok,
        by_code=method.by_code,
        attempts=method.attempts,
        retries=method.retries,
        hedges=method.hedges,
        latency_p50=duration(method.latency.quantile_s(0.50)),
        latency_p90=duration(method.latency.quantile_s(0.90)),
        latency_p99=duration(method.latency.quantile_s(0.99)),
    )


def _queue(queue: QueueStatus) -> admin_pb2.Queue:
    return admin_pb2.Queue(
        length=queue.length,
        capacity=queue.capacity,
        workers_busy=queue.workers_busy,
        workers=queue.workers,
        streams=queue.streams,
        streams_max=queue.streams_max,
        drain_per_second=queue.drain_per_s,
        classes=[
            admin_pb2.QueuedClass(
                criticality=criticality.name,
                length=length,
                taken=queue.admission.taken.get(criticality, 0),
                refused=queue.admission.refused.get(criticality, 0),
            )
            for criticality, length in sorted(queue.admission.queued.items(), reverse=True)
        ],
        displaced=queue.admission.displaced,
        service_time=duration(queue.admission.service_s),
        baseline=duration(queue.admission.baseline_s),
        standing=queue.admission.standing,
        standing_shed=queue.admission.standing_shed,
        client_quotas=[
            admin_pb2.ClientQuota(
                client=quota.client,
                clients=quota.clients,
                granted=quota.granted,
                refused=quota.refused,
                overflowed=quota.overflowed,
            )
            for quota in queue.quotas
        ],
        capped=queue.capped,
    )


def _upstreams(upstreams: Sequence[UpstreamStatus], descriptors: Descriptors) -> list[admin_pb2.Upstream]:
    return [_upstream(upstream, descriptors.get(upstream.name)) for upstream in upstreams]


def _upstream(upstream: UpstreamStatus, descriptors: UpstreamDescriptors | None) -> admin_pb2.Upstream:
    message = admin_pb2.Upstream(
        name=upstream.name,
        target=upstream.target,
        state=upstream.state,
        connections=upstream.connections,
        streams=upstream.streams,
        connects=upstream.connects,
        disconnects=upstream.disconnects,
        last_error=upstream.last_error,
        retry_budget=_retry_budget(upstream.retry_budget),
        breakers=[_breaker(view) for view in upstream.breakers],
        fallbacks=upstream.fallbacks,
        throttles=[
            _throttle(criticality, state)
            for criticality, state in sorted(upstream.throttles.items(), reverse=True)
            if state.requests or state.refused
        ],
        pool=_pool(upstream.pool),
        bulkheads=[
            admin_pb2.Bulkhead(methods=one.methods, queue=_queue(one.queue)) for one in upstream.bulkheads
        ],
    )
    if upstream.hedging is not None:
        message.hedging.CopyFrom(_hedging(upstream.hedging))
    if descriptors is not None:
        message.reflection = descriptors.state.value
        message.services.extend(descriptors.services())
        message.descriptor_faults.extend(descriptors.faults())
    return message


def _pool(pool: PoolStatus) -> admin_pb2.Pool:
    return admin_pb2.Pool(
        connections=pool.connections,
        streams=pool.streams,
        waiting=pool.waiting,
        connects=pool.connects,
        connect_failures=pool.connect_failures,
        reconnects=pool.reconnects,
        disconnects=pool.disconnects,
        goaways=pool.goaways,
        pings=pool.pings,
        pings_answered=pool.pings_answered,
        ping_round_trip=duration(pool.ping_round_trip_s),
        ping_round_trip_max=duration(pool.ping_round_trip_max_s),
        zombies=pool.zombies,
        attempts_unsent=pool.attempts_unsent,
    )


def _keys(keys: KeysState) -> admin_pb2.Keys:
    counters = keys.counters
    return admin_pb2.Keys(
        flights=keys.flights,
        waiting=keys.waiting,
        leases=keys.leases,
        decisions={decision.value: count for decision, count in counters.decisions.items()},
        settled=counters.settled,
        coalesced=counters.coalesced,
        stale_writes=counters.stale,
        store_errors=counters.store_errors,
    )


def _retry_budget(budget: BudgetState) -> admin_pb2.RetryBudget:
    return admin_pb2.RetryBudget(
        tokens=budget.tokens, max_tokens=budget.max_tokens, granted=budget.granted, refused=budget.refused
    )


def _throttle(criticality: Criticality, state: ThrottleState) -> admin_pb2.Throttle:
    return admin_pb2.Throttle(
        criticality=criticality.name,
        requests=state.requests,
        accepts=state.accepts,
        rejection=state.rejection,
        refused=state.refused,
    )


def _breaker(view: BreakerView) -> admin_pb2.Breaker:
    status = view.status
    return admin_pb2.Breaker(
        methods=view.methods,
        state=status.state.name,
        share=status.share,
        cause=status.cause.name if status.cause else "",
        calls=status.calls,
        failures=status.failures,
        slow=status.slow,
        consecutive_failures=status.consecutive_failures,
        probes=status.probes,
        opened=status.opened,
        refused=status.refused,
        probes_lost=status.probes_lost,
        stuck=status.stuck,
        late=status.late,
    )


def _jobs(status: JobsStatus) -> admin_pb2.Jobs:
    counters = status.counters
    return admin_pb2.Jobs(
        jobs={state.name: count for state, count in status.jobs.items()},
        dead_letters={state.name: count for state, count in status.letters.items()},
        running_here=status.running_here,
        submitted=counters.submitted,
        duplicates=counters.duplicates,
        leased=counters.leased,
        completed=counters.completed,
        retried=counters.retried,
        handed_back=counters.handed_back,
        buried={cause.name: count for cause, count in counters.buried.items()},
        leases_lost=counters.leases_lost,
        stale_writes=counters.stale_writes,
        batches=counters.batches,
        batched=counters.batched,
        batches_split=counters.batches_split,
        refusing=status.refusing,
        oldest_ready=duration(status.oldest_ready_s),
        unsettled={
            cause.name: admin_pb2.LetterBacklog(count=one.count, oldest=duration(one.oldest_s))
            for cause, one in status.unsettled.items()
        },
        settled_per_second=status.settled_per_s,
        replayed=counters.replayed,
        resolved=counters.resolved,
        reopened=counters.reopened,
        recovered={action.name: count for action, count in counters.recovered.items()},
    )


def _hedging(hedging: HedgingStatus) -> admin_pb2.Hedging:
    state = hedging.state
    return admin_pb2.Hedging(
        connections=hedging.connections,
        started=state.started,
        won=state.won,
        cancelled=state.cancelled,
        held_back={why.name: count for why, count in state.held_back.items()},
        methods=[
            admin_pb2.HedgedMethod(
                method=learned.method, samples=learned.samples, quantile=duration(learned.quantile_s)
            )
            for learned in state.methods
        ],
        pool=_pool(hedging.pool),
    )


def _telemetry(telemetry: TelemetryStatus) -> admin_pb2.Telemetry:
    return admin_pb2.Telemetry(
        spans_exported=telemetry.spans_exported,
        spans_dropped=telemetry.spans_dropped,
        spans_afterwards_suppressed=telemetry.afterwards_suppressed,
    )
