"""The relay changes nothing: each drawn call goes directly, through a bare grpc.aio proxy and through relays.

What the client saw of it and what the server saw of it must be the same on all ways, but for what the relay
documents: ``relay-*`` trailers, its hop count and trace context in the request, and the deadline that the
default policy gives to calls without one.
"""

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, Phase, example, given, seed, settings

from tests.conformance.peers import start_reference, start_relay
from tests.conformance.plans import Ending, Kind, Metadata, Plan, plans
from tests.conformance.programmable import Outcome, ProgrammableServer, Served, call, method_path

SEED = 20_240_229
DIRECT = "direct"
REFERENCE = "reference"
OURS_IN_REQUESTS = frozenset({"relay-attempt", "traceparent", "tracestate", "grpc-previous-rpc-attempts"})
ATTEMPT_TIMEOUT_S = 5.0
"""The default policy's, for unary methods."""
SLACK_S = 5.0
"""Between deadlines that were set as one, on a busy machine."""

_QUIET = {
    "deadline": None,
    "database": None,
    "derandomize": False,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
    "print_blob": True,
}


@dataclass(frozen=True)
class Ways:
    """The server and the channels that lead to it."""

    server: ProgrammableServer
    channels: dict[str, grpc.Channel]
    pool: ThreadPoolExecutor
    numbers: Iterator[int]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    directory: Path = tmp_path_factory.mktemp("peers")
    with contextlib.ExitStack() as undo:
        server = ProgrammableServer()
        undo.callback(server.stop)
        peers = [
            start_reference(server.address, directory, (method_path(Kind.UNARY),)),
            start_relay(server.address, directory, "passthrough"),
            start_relay(server.address, directory, "default"),
        ]
        for peer in peers:
            undo.callback(peer.stop)
        channels = {}
        for name, address in [(DIRECT, server.address), *((peer.name, peer.address) for peer in peers)]:
            options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
            channels[name] = undo.enter_context(grpc.insecure_channel(address, options))
        pool = undo.enter_context(ThreadPoolExecutor(len(channels)))
        yield Ways(server, channels, pool, itertools.count())


@pytest.mark.timeout(180)
@seed(SEED)
@settings(max_examples=150, **_QUIET)
@example(Plan(Kind.CHAT, requests=(1, 2, 3), responses=(3, 2, 1), lockstep=True))
@example(Plan(Kind.CHAT, requests=(), responses=(300_000,) * 3))
@example(Plan(Kind.UNARY, code=grpc.StatusCode.UNAVAILABLE, message="tried again, to no avail"))
@example(Plan(Kind.COLLECT, requests=(300_000,) * 4, requests_read=1, code=grpc.StatusCode.ABORTED))
@given(plan=plans())
def test_a_call_is_the_same_on_every_way(ways: Ways, plan: Plan) -> None:
    compare(ways, plan)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@seed(SEED + 1)
@settings(max_examples=5_000, **_QUIET)
@given(plan=plans())
def test_thousands_of_calls_are_the_same_on_every_way(ways: Ways, plan: Plan) -> None:
    compare(ways, plan)


@pytest.mark.xfail(
    reason="libnghttp2 refuses such a field (RFC 9113, 8.2.1), gRPC allows it; ngh2 cannot switch it off"
)
def test_a_message_may_begin_or_end_with_a_space(ways: Ways) -> None:
    compare(ways, Plan(Kind.UNARY, code=grpc.StatusCode.ABORTED, message=" why: "))


def compare(ways: Ways, plan: Plan) -> None:
    """Let the plan go all ways at once, and hold each against the direct one."""
    names = [name for name in ways.channels if name != REFERENCE or reference_can(plan)]
    results = dict(zip(names, ways.pool.map(lambda name: go(ways, name, plan), names), strict=True))
    outcome, served = results[DIRECT]
    assert outcome.code is expected_code(plan)
    for name in names[1:]:
        outcome_there, served_there = results[name]
        due = replace(outcome, headers=outcome_there.headers) if may_lose_headers(name, outcome) else outcome
        assert comparable(outcome_there, plan) == comparable(due, plan), name
        if plan.ending is Ending.DEADLINE and not (served and served_there):
            continue  # on a busy machine it may pass on the way
        assert served_there, f"{name}: never reached the server"
        for attempt in served_there:
            compare_served(name, attempt, served[0], plan)


def go(ways: Ways, name: str, plan: Plan) -> tuple[Outcome, list[Served]]:
    """One call one way. The server must hear of its end, whoever ended it."""
    call_id = f"{next(ways.numbers)}-{name}"
    ways.server.expect(call_id, plan)
    outcome = call(ways.channels[name], plan, call_id, ways.server)
    for attempt in (served := ways.server.served(call_id)):
        assert attempt.over.wait(SLACK_S), f"{name}: the server was left alone with the call"
    return outcome, served


def reference_can(plan: Plan) -> bool:
    """What grpc.aio keeps a proxy from doing: end a stream whose requests are still being written."""
    return not plan.ends_early


def may_lose_headers(name: str, outcome: Outcome) -> bool:
    """And this: it tells headers apart from an error that follows at once only when a message was between."""
    return name == REFERENCE and outcome.code is not grpc.StatusCode.OK and not outcome.responses


def expected_code(plan: Plan) -> grpc.StatusCode:
    match plan.ending:
        case Ending.CANCEL:
            return grpc.StatusCode.CANCELLED
        case Ending.DEADLINE:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        case Ending.STATUS:
            return plan.code


def comparable(outcome: Outcome, plan: Plan) -> Outcome:
    """The outcome without what the relay documents to add, and without what is a race on every way."""
    trailers = by_name(field for field in outcome.trailers if not field[0].startswith("relay-"))
    outcome = replace(outcome, headers=by_name(outcome.headers), trailers=trailers)
    if plan.ending is Ending.DEADLINE:
        # Client, server and proxies all watch the same deadline: whoever is first finds the words.
        return replace(outcome, message="", trailers=(), headers=(), responses=())
    if plan.ending is Ending.CANCEL and not outcome.responses:
        # The headers may still be on their way when the client gives up.
        return replace(outcome, headers=())
    return outcome


def compare_served(name: str, there: Served, direct: Served, plan: Plan) -> None:
    assert there.method == direct.method
    assert passed_on(there, name) == passed_on(direct, name), name
    if plan.ending is not Ending.DEADLINE:
        assert there.requests == direct.requests, name
    assert there.time_left_s is not None
    assert direct.time_left_s is not None
    due_s = direct.time_left_s
    if name == "relay-default" and plan.kind is Kind.UNARY:
        due_s = min(due_s, ATTEMPT_TIMEOUT_S)
    assert due_s - SLACK_S < there.time_left_s < due_s + SLACK_S, name


def passed_on(served: Served, name: str) -> Metadata:
    """Request metadata but for the call's id and what proxies document to change."""
    skipped = OURS_IN_REQUESTS | {"x-call-id"} | ({"user-agent"} if name == REFERENCE else set())
    return by_name(field for field in served.metadata if field[0] not in skipped)


def by_name(metadata: Iterator[tuple[str, str | bytes]] | Metadata) -> Metadata:
    """Sorted by name: gRPC keeps the order among the values of one name only."""
    return tuple(sorted(metadata, key=lambda pair: pair[0]))
