"""What no single object of a policy file can see: names given twice, ends that do not meet."""

from collections.abc import Iterator, Sequence

from relay_service.config.durations import format_duration
from relay_service.config.problems import Problem, shown
from relay_service.config.schema import MethodBlock, MethodConfig, PolicyFile

Contradiction = tuple[str, str, str]
"""JSON path, what was found, what is allowed."""


def contradictions(file: PolicyFile, where: str) -> Iterator[Problem]:
    """Everything in the file ``where`` that contradicts something else in it."""
    for path, found, allowed in _all(file):
        yield Problem(where, path, found, allowed)


def _all(file: PolicyFile) -> Iterator[Contradiction]:
    yield from _names("methodConfig", file.method_config)
    yield from _names("relay.methods", file.relay.methods)
    yield from _backoffs(file)
    yield from _retried_and_hedged(file)
    yield from _routes(file)
    yield from _reconnects(file)
    yield from _limit(file)
    yield from _switches(file)


def _names(path: str, entries: Sequence[MethodConfig | MethodBlock]) -> Iterator[Contradiction]:
    seen: dict[str, str] = {}
    for index, entry in enumerate(entries):
        for position, name in enumerate(entry.name):
            here = f"{path}[{index}].name[{position}]"
            if name.method and not name.service:
                yield here, f"got method {shown(name.method)}", "must name the service too"
            elif name.pattern in seen:
                yield (
                    here,
                    f"got {shown(name.pattern)}",
                    f"must be named once; {seen[name.pattern]} names it too",
                )
            seen.setdefault(name.pattern, here)


def _backoffs(file: PolicyFile) -> Iterator[Contradiction]:
    for index, entry in enumerate(file.method_config):
        retry = entry.retry_policy
        if retry and retry.max_backoff_s < retry.initial_backoff_s:
            least = format_duration(retry.initial_backoff_s)
            found = f'got "{format_duration(retry.max_backoff_s)}"'
            yield (
                f"methodConfig[{index}].retryPolicy.maxBackoff",
                found,
                f'must be at least initialBackoff, "{least}"',
            )


def _retried_and_hedged(file: PolicyFile) -> Iterator[Contradiction]:
    for index, entry in enumerate(file.method_config):
        if entry.retry_policy is not None and entry.hedging_policy is not None:
            allowed = (
                "must not stand beside retryPolicy: gRPC takes one of the two (gRFC A6); "
                "hedging in relay.methods goes with retries"
            )
            yield f"methodConfig[{index}].hedgingPolicy", "got both", allowed


def _routes(file: PolicyFile) -> Iterator[Contradiction]:
    seen: set[tuple[str | None, str | None]] = set()
    for index, route in enumerate(file.relay.routes):
        here = f"relay.routes[{index}]"
        if route.method and not route.service:
            yield here, f"got method {shown(route.method)}", "must name the service too"
        if (route.service, route.method) in seen:
            yield here, f"got {shown(f'{route.service}/{route.method}')}", "must be routed once"
        seen.add((route.service, route.method))


def _reconnects(file: PolicyFile) -> Iterator[Contradiction]:
    for name, upstream in file.relay.upstreams.items():
        if upstream.reconnect_backoff_max_s < upstream.reconnect_backoff_min_s:
            least = format_duration(upstream.reconnect_backoff_min_s)
            found = f'got "{format_duration(upstream.reconnect_backoff_max_s)}"'
            path = f"relay.upstreams.{name}.reconnectBackoffMax"
            yield path, found, f'must be at least reconnectBackoffMin, "{least}"'


def _limit(file: PolicyFile) -> Iterator[Contradiction]:
    limit = file.relay.admission.limit
    if limit is None:
        return
    if limit.max < limit.min:
        yield "relay.admission.limit.max", f"got {limit.max}", f"must be at least min, {limit.min}"
    elif not limit.min <= limit.initial <= limit.max:
        allowed = f"must be from min to max, {limit.min} to {limit.max}"
        yield "relay.admission.limit.initial", f"got {limit.initial}", allowed


def _switches(file: PolicyFile) -> Iterator[Contradiction]:
    for index, switch in enumerate(file.relay.off):
        if switch in file.relay.off[:index]:
            yield f"relay.off[{index}]", f"got {shown(switch)}", "must be named once"
