"""What no single object of a policy file can see: names given twice, ends that do not meet."""

from collections.abc import Iterator, Sequence

from relay_service.config.durations import format_duration
from relay_service.config.problems import Problem, shown
from relay_service.config.schema import AdmissionBlock, MethodBlock, MethodConfig, PolicyFile

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
    yield from _limits(file)
    yield from _jobs(file)
    yield from _batches(file)
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


def admissions(file: PolicyFile) -> Iterator[tuple[str, AdmissionBlock]]:
    """Each admission that the file speaks of, shared or of a compartment, and where."""
    relay = file.relay
    blocks: list[tuple[str, AdmissionBlock | None]] = [
        ("relay.admission", relay.admission),
        ("relay.bulkhead", relay.bulkhead),
        *((f"relay.upstreams.{name}.bulkhead", one.bulkhead) for name, one in relay.upstreams.items()),
        *((f"relay.methods[{index}].bulkhead", one.bulkhead) for index, one in enumerate(relay.methods)),
    ]
    return ((path, block) for path, block in blocks if block is not None)


def _limits(file: PolicyFile) -> Iterator[Contradiction]:
    for path, block in admissions(file):
        limit = block.limit
        if limit is None:
            continue
        if limit.max < limit.min:
            yield f"{path}.limit.max", f"got {limit.max}", f"must be at least min, {limit.min}"
        elif not limit.min <= limit.initial <= limit.max:
            allowed = f"must be from min to max, {limit.min} to {limit.max}"
            yield f"{path}.limit.initial", f"got {limit.initial}", allowed


def _jobs(file: PolicyFile) -> Iterator[Contradiction]:
    jobs = file.relay.jobs
    if "max_backoff_s" in jobs.model_fields_set and jobs.max_backoff_s < jobs.initial_backoff_s:
        least = format_duration(jobs.initial_backoff_s)
        found = f'got "{format_duration(jobs.max_backoff_s)}"'
        yield "relay.jobs.maxBackoff", found, f'must be at least initialBackoff, "{least}"'


def _batches(file: PolicyFile) -> Iterator[Contradiction]:
    """An item of a batch is as safe to repeat as its key makes it."""
    for index, entry in enumerate(file.relay.methods):
        batch = entry.batch
        if batch is None:
            continue
        here = f"relay.methods[{index}].batch"
        if entry.safety == "KEYED" and batch.items.key_field is None:
            yield f"{here}.items.keyField", "", "is required where safety is KEYED"
        if batch.items.key_field is not None and batch.items.request_field is None:
            yield f"{here}.items.requestField", "", "is required beside keyField"
        if not all(name.method for name in entry.name):
            yield here, "", "needs an entry that names one method"


def _switches(file: PolicyFile) -> Iterator[Contradiction]:
    for index, switch in enumerate(file.relay.off):
        if switch in file.relay.off[:index]:
            yield f"relay.off[{index}]", f"got {shown(switch)}", "must be named once"
