"""Overload with nothing told: the relay finds the service's capacity, follows it down and up again."""

import pytest
from overload import Group, Overload

from relay_service.core.policy import AdmissionPolicy, LimitKind, LimitPolicy

WORKERS, SERVICE_S = 10, 0.02
DROP_AT_S, RETURN_AT_S, END_S = 1.5, 5.0, 8.0
SETTLING_S = 2.0
"""By then the limit must be the new one."""

SLOWER = {"service_s": 3 * SERVICE_S}


def world(seed: int, kind: LimitKind = LimitKind.GRADIENT) -> Overload:
    limit = LimitPolicy(kind=kind)
    made = Overload(
        seed, AdmissionPolicy(queue_capacity=200, limit=limit), workers=WORKERS, service_s=SERVICE_S
    )
    made.server.steady = True
    return made


def changed(server: object, **fields: float) -> None:
    for name, value in fields.items():
        setattr(server, name, value)


def goodput(callers: Group, since: float, until: float, capacity_per_s: float) -> float:
    return callers.ok_between(since, until) / ((until - since) * capacity_per_s)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", [LimitKind.AIMD, LimitKind.GRADIENT])
@pytest.mark.parametrize(("times", "least"), [(3, 0.95), (10, 0.9)])
def test_goodput_under_overload_is_the_capacity(seed: int, kind: LimitKind, times: int, least: float) -> None:
    run = world(seed, kind)
    callers = Group("callers", times * run.server.capacity_per_s, timeout_s=0.5)
    run.run(5.0, callers)
    found = goodput(callers, 0.0, 5.0, WORKERS / SERVICE_S)
    print(f"seed {seed}, {times}x: {found:.3f}, wasted {run.server.wasted / run.server.served:.4f}")
    assert found >= least, seed
    assert run.server.wasted < 0.03 * run.server.served, seed


def test_at_ten_times_the_load_the_limit_follows_a_drop_to_a_third_and_its_return() -> None:
    seed = 1
    run = world(seed)
    run.at(DROP_AT_S, lambda: changed(run.server, **SLOWER))
    run.at(RETURN_AT_S, lambda: changed(run.server, service_s=SERVICE_S))
    callers = Group("callers", 10 * run.server.capacity_per_s, timeout_s=0.5)
    run.run(END_S, callers)
    low = goodput(callers, DROP_AT_S + SETTLING_S, RETURN_AT_S, WORKERS / (3 * SERVICE_S))
    back = goodput(callers, RETURN_AT_S + SETTLING_S, END_S, WORKERS / SERVICE_S)
    print(f"seed {seed}: low {low:.3f}, back {back:.3f}")
    assert low >= 0.9
    assert back >= 0.9


def limits(run: Overload, until: float) -> list[int]:
    """Filled while the world runs: the limit, ten times a second."""
    seen: list[int] = []

    def look(_: object) -> None:
        seen.append(run.relay.admission.workers)
        if run.clock.now - run.epoch < until:
            run.clock.call_at(run.clock.now + 0.1, look, None)

    look(None)
    return seen


def test_an_upstream_that_answers_nothing_gets_the_floor_and_is_found_again() -> None:
    """Calls die at their deadlines; were these not losses, the limit would stay where it was."""
    seed = 5
    run = world(seed)
    run.at(3.0, lambda: changed(run.server, silent=True))
    run.at(10.0, lambda: changed(run.server, silent=False))
    seen = limits(run, 14.0)
    callers = Group("callers", 1.5 * run.server.capacity_per_s, timeout_s=0.5)
    run.run(14.0, callers)
    print(f"seed {seed}: {seen}")
    assert min(seen[60:100]) <= 5, seed
    assert goodput(callers, 12.0, 14.0, WORKERS / SERVICE_S) >= 0.9, seed


def test_without_overload_the_limit_refuses_nothing() -> None:
    seed = 6
    run = world(seed)
    callers = Group("callers", 0.6 * run.server.capacity_per_s, timeout_s=0.5)
    run.run(10.0, callers)
    print(f"seed {seed}: {callers.ended}")
    assert callers.ok_share > 0.995, seed
