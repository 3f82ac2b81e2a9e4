"""What AdminService tells, as tables for people or as JSON lines for programs."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import grpc
import grpc.aio
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from protos.relay.v1.admin_pb2 import GetStatsRequest, MethodStats, Policy, Stats, WatchStatsRequest
from protos.relay.v1.admin_pb2_grpc import AdminServiceStub
from relay_service.times import seconds

ANSWER_TIMEOUT_S = 5.0
METHODS_SHOWN_MAX = 30
"""The busiest; a screen holds no more, and `--method` or `--json` shows the rest."""

Show = Callable[[Stats], None]


class NoStatsError(Exception):
    """Nobody told any numbers; the text says why."""


async def look(target: str, method_prefix: str) -> AsyncIterator[Stats]:
    """The numbers once. Raises `NoStatsError`."""
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            request = GetStatsRequest(method_prefix=method_prefix)
            response = await AdminServiceStub(channel).GetStats(request, timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _no_stats(error) from error
        yield response.stats


async def watch(target: str, method_prefix: str, interval_s: float) -> AsyncIterator[Stats]:
    """The numbers every ``interval_s`` until the relay goes. Raises `NoStatsError` when it does."""
    interval = Duration()
    interval.FromNanoseconds(round(interval_s * 1e9))
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            request = WatchStatsRequest(method_prefix=method_prefix, interval=interval)
            async for response in AdminServiceStub(channel).WatchStats(request):
                yield response.stats
        except grpc.aio.AioRpcError as error:
            raise _no_stats(error) from error


async def show_each(looks: AsyncIterator[Stats], show: AbstractContextManager[Show]) -> None:
    """Hand every look to ``show``."""
    with show as show_one:
        async for stats in looks:
            show_one(stats)


def lines() -> AbstractContextManager[Show]:
    """Show each look as one line of JSON."""
    return nullcontext(lambda stats: typer.echo(json.dumps(_as_json(stats))))


def tables() -> AbstractContextManager[Show]:
    """Show each look below the one before."""
    return nullcontext(lambda stats: Console().print(report(stats)))


@contextmanager
def live_tables() -> Iterator[Show]:
    """Show each look in the place of the one before."""
    with Live(screen=False, auto_refresh=False, vertical_overflow="visible") as live:
        yield lambda stats: live.update(report(stats), refresh=True)


def report(stats: Stats) -> RenderableType:
    """Everything about one look that fits on a screen."""
    parts: list[RenderableType] = [
        *_alerts(stats),
        _policy(stats.policy),
        _calls(stats),
        _queue(stats),
        _upstreams(stats),
    ]
    parts.append(_pools(stats))
    if any(upstream.bulkheads for upstream in stats.upstreams):
        parts.append(_bulkheads(stats))
    if stats.HasField("jobs"):
        parts.append(_jobs(stats))
    if any(upstream.breakers for upstream in stats.upstreams):
        parts.append(_breakers(stats))
    if any(upstream.throttles for upstream in stats.upstreams):
        parts.append(_throttles(stats))
    if any(upstream.HasField("hedging") for upstream in stats.upstreams):
        parts.append(_hedging(stats))
    if stats.queue.client_quotas:
        parts.append(_quotas(stats))
    if stats.HasField("keys"):
        parts.append(_keys(stats))
    if stats.methods:
        parts.append(_methods(stats))
    if stats.calls.by_reason:
        parts.append(_reasons(stats))
    return Group(*parts)


def _as_json(stats: Stats) -> object:
    return MessageToDict(stats, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _no_stats(error: grpc.aio.AioRpcError) -> NoStatsError:
    return NoStatsError(f"no numbers: {error.code().name}: {error.details()}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _alerts(stats: Stats) -> Iterator[str]:
    for alert in stats.alerts:
        age_s = alert.age.ToTimedelta().total_seconds()
        yield f"ALERT {alert.severity} {alert.alert}, for {age_s:.0f} s: {alert.message}"


def _policy(policy: Policy) -> str:
    line = f"Policy {policy.name} {policy.version}, reloaded {policy.reloads} times, refused {policy.refused}"
    return f"{line}\nLast refused: {policy.last_refusal}" if policy.last_refusal else line


def _calls(stats: Stats) -> Table:
    calls = stats.calls
    table = _table(
        f"Calls in {_time(stats.uptime)}", "received", "ok", "errors", "refused", "cancelled", "in flight"
    )
    numbers = (calls.received, calls.ok, calls.errors, calls.refused, calls.cancelled, calls.in_flight)
    table.add_row(*(str(number) for number in numbers))
    return table


def _queue(stats: Stats) -> Table:
    queue = stats.queue
    classes = {one.criticality: one.length for one in queue.classes if one.length}
    table = _table(
        "Limits", "queue", "workers", "streams", "started/s", "service", "displaced", "shed", "waiting"
    )
    table.add_row(
        f"{queue.length}/{queue.capacity}",
        f"{queue.workers_busy}/{queue.workers}",
        f"{queue.streams}/{queue.streams_max}",
        f"{queue.drain_per_second:.1f}",
        _time(queue.service_time),
        str(queue.displaced),
        f"{queue.standing_shed}{' (standing)' if queue.standing else ''}",
        ", ".join(f"{count} {name}" for name, count in classes.items()) or "nothing",
    )
    return table


def _upstreams(stats: Stats) -> Table:
    table = _table(
        "Upstreams",
        "name",
        "target",
        "state",
        "connections",
        "lost",
        "fallbacks",
        "retry tokens",
        "last error",
    )
    for upstream in stats.upstreams:
        budget = upstream.retry_budget
        table.add_row(
            upstream.name,
            upstream.target,
            upstream.state,
            str(upstream.connections),
            str(upstream.disconnects),
            str(upstream.fallbacks),
            f"{budget.tokens:.1f}/{budget.max_tokens:.0f}" if budget.max_tokens else "off",
            upstream.last_error,
        )
    return table


def _jobs(stats: Stats) -> Table:
    jobs = stats.jobs
    table = _table(
        "Durable jobs",
        *("in the store", "oldest ready", "dead letters", "unsettled by cause"),
        *("running here", "settled/s", "leases lost", "refusing"),
    )
    table.add_row(
        _counted(jobs.jobs),
        f"{jobs.oldest_ready.ToTimedelta().total_seconds():.1f} s",
        _counted(jobs.dead_letters),
        _counted({cause: backlog.count for cause, backlog in jobs.unsettled.items()}),
        str(jobs.running_here),
        f"{jobs.settled_per_second:.1f}",
        str(jobs.leases_lost),
        jobs.refusing or "no",
    )
    return table


def _counted(by_state: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(by_state.items()) if count) or "none"


def _pools(stats: Stats) -> Table:
    columns = (
        "for",
        "connections",
        "streams",
        "waiting",
        "reconnects",
        "failures",
        "GOAWAYs",
        "pings",
        "zombies",
    )
    table = _table("Connections", "upstream", *columns)
    for upstream in stats.upstreams:
        pools = {"calls": upstream.pool}
        if upstream.HasField("hedging"):
            pools["hedges"] = upstream.hedging.pool
        for lane, pool in pools.items():
            answered = f", {_time(pool.ping_round_trip)}" if pool.pings_answered else ""
            table.add_row(
                upstream.name,
                lane,
                _counted(pool.connections),
                str(pool.streams),
                str(pool.waiting),
                str(pool.reconnects),
                str(pool.connect_failures),
                str(pool.goaways),
                f"{pool.pings_answered}/{pool.pings}{answered}",
                str(pool.zombies),
            )
    return table


def _bulkheads(stats: Stats) -> Table:
    table = _table("Bulkheads", "upstream", "methods", "workers", "queue", "streams", "taken", "refused")
    for upstream in stats.upstreams:
        for bulkhead in upstream.bulkheads:
            queue = bulkhead.queue
            table.add_row(
                upstream.name,
                bulkhead.methods or "all others",
                f"{queue.workers_busy}/{queue.workers}",
                f"{queue.length}/{queue.capacity}",
                f"{queue.streams}/{queue.streams_max}",
                str(sum(one.taken for one in queue.classes)),
                str(sum(one.refused for one in queue.classes)),
            )
    return table


def _breakers(stats: Stats) -> Table:
    columns = ("upstream", "methods", "state", "let through", "failed", "slow", "opened", "refused", "why")
    table = _table("Breakers", *columns)
    for upstream in stats.upstreams:
        for breaker in upstream.breakers:
            table.add_row(
                upstream.name,
                breaker.methods or "all others",
                breaker.state,
                f"{breaker.share:.0%}",
                f"{breaker.failures}/{breaker.calls}",
                f"{breaker.slow}/{breaker.calls}",
                str(breaker.opened),
                str(breaker.refused),
                breaker.cause,
            )
    return table


def _throttles(stats: Stats) -> Table:
    table = _table("Adaptive throttle", "upstream", "class", "accepted", "held back now", "refused")
    for upstream in stats.upstreams:
        for throttle in upstream.throttles:
            table.add_row(
                upstream.name,
                throttle.criticality,
                f"{throttle.accepts}/{throttle.requests}",
                f"{throttle.rejection:.0%}",
                str(throttle.refused),
            )
    return table


def _hedging(stats: Stats) -> Table:
    table = _table("Hedging", "upstream", "connections", "started", "won", "cancelled", "held back")
    for upstream in stats.upstreams:
        hedging = upstream.hedging
        held_back = {why: count for why, count in sorted(hedging.held_back.items()) if count}
        table.add_row(
            upstream.name,
            str(hedging.connections),
            str(hedging.started),
            str(hedging.won),
            str(hedging.cancelled),
            ", ".join(f"{count} {why}" for why, count in held_back.items()) or "none",
        )
    return table


def _quotas(stats: Stats) -> Table:
    table = _table("Client quotas", "client", "clients", "granted", "refused", "without room")
    for quota in stats.queue.client_quotas:
        counts = (quota.clients, quota.granted, quota.refused, quota.overflowed)
        table.add_row(quota.client or "each other one", *(str(count) for count in counts))
    return table


def _keys(stats: Stats) -> Table:
    keys = stats.keys
    table = _table(
        "Idempotency keys",
        "under way",
        "waiting",
        "executed",
        "replayed",
        "coalesced",
        "ambiguous",
        "stale",
        "errors",
    )
    numbers = (
        keys.flights,
        keys.waiting,
        keys.decisions["execute"],
        keys.decisions["replay"],
        keys.coalesced,
        keys.settled["ambiguous"],
        keys.stale_writes,
        keys.store_errors,
    )
    table.add_row(*(str(number) for number in numbers))
    return table


def _methods(stats: Stats) -> Table:
    columns = ("method", "received", "ok", "attempts", "retries", "hedges", "p50", "p90", "p99")
    table = _table("Methods", *columns)
    for method in sorted(stats.methods, key=lambda m: (-m.received, m.method))[:METHODS_SHOWN_MAX]:
        table.add_row(method.method, *_method_numbers(method))
    if (left := len(stats.methods) - METHODS_SHOWN_MAX) > 0:
        table.add_row(f"… and {left} more")
    return table


def _method_numbers(method: MethodStats) -> tuple[str, ...]:
    counts = (method.received, method.ok, method.attempts, method.retries, method.hedges)
    latencies = (method.latency_p50, method.latency_p90, method.latency_p99)
    return (*(str(count) for count in counts), *(_time(latency) for latency in latencies))


def _reasons(stats: Stats) -> Table:
    table = _table("Reasons (`relay explain NAME`)", "reason", "calls")
    for reason, count in sorted(stats.calls.by_reason.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(reason, str(count))
    return table


def _time(duration: Duration) -> str:
    time_s = seconds(duration)
    return f"{time_s:.1f} s" if time_s >= 1 else f"{time_s * 1000:.1f} ms"
