"""What the order of the queue and controlled delay are worth: goodput within deadlines, and work in vain.

`python -m pytest -s tests/simulation/test_standing_queue.py` prints the table that the decision log quotes.
"""

import pytest
from overload import Group, Overload

from relay_service.core.policy import AdmissionPolicy, QueueOrder, StandingShed

SEED, SECONDS, TIMEOUT_S = 31, 4.0, 0.5
FIFO, LIFO = QueueOrder.FIFO, QueueOrder.ADAPTIVE_LIFO
NONE, CODEL = StandingShed.NONE, StandingShed.CODEL


def measured(
    times: float, order: QueueOrder, shed: StandingShed, quantile: float | None
) -> tuple[float, float]:
    """Goodput over capacity, and the share of the service's work that came too late."""
    policy = AdmissionPolicy(
        queue_capacity=500, workers=10, queue_order=order, standing_shed=shed, feasibility_quantile=quantile
    )
    world = Overload(SEED, policy)
    world.server.steady = True
    callers = Group("callers", times * world.server.capacity_per_s, timeout_s=TIMEOUT_S)
    world.run(SECONDS, callers)
    goodput = callers.ok_between(1.0, SECONDS) / ((SECONDS - 1.0) * world.server.capacity_per_s)
    wasted = world.server.wasted / world.server.served
    print(
        f"seed {SEED}, {times}x, {order.value}, {shed.value}, feasibility {quantile}: "
        f"{goodput:.3f} {wasted:.4f}"
    )
    return goodput, wasted


@pytest.mark.parametrize("times", [3, 10])
def test_newest_first_wastes_nothing_and_loses_no_goodput(times: float) -> None:
    goodput, wasted = measured(times, LIFO, NONE, 0.9)
    in_order, wasted_in_order = measured(times, FIFO, NONE, 0.9)
    assert goodput >= in_order - 0.01
    assert goodput >= 0.95
    assert wasted < 0.002
    assert wasted <= wasted_in_order


@pytest.mark.parametrize("times", [3, 10])
def test_where_infeasible_work_is_not_refused_newest_first_saves_the_goodput(times: float) -> None:
    assert measured(times, LIFO, NONE, None)[0] >= 0.95
    assert measured(times, FIFO, NONE, None)[0] < 0.3


def test_controlled_delay_saves_it_in_a_mild_overload_only() -> None:
    """Shedding grows with the square root of what was shed: callers who do not slow down outrun it."""
    mild, wasted = measured(1.2, FIFO, CODEL, None)
    assert mild > measured(1.2, FIFO, NONE, None)[0] + 0.2
    assert measured(3, FIFO, CODEL, None)[0] < 0.3
    assert wasted < 0.3


def test_shedding_and_turning_the_queue_round_take_the_lowest_class_first() -> None:
    policy = AdmissionPolicy(
        queue_capacity=200,
        workers=10,
        standing_shed=CODEL,
        queue_order=LIFO,
        sheddable_share=1.0,
        feasibility_quantile=None,
    )
    world = Overload(SEED, policy)
    rate = 0.7 * world.server.capacity_per_s
    high = Group("high", rate, timeout_s=5.0, metadata=((b"relay-criticality", b"CRITICAL_PLUS"),))
    low = Group("low", rate, timeout_s=5.0, metadata=((b"relay-criticality", b"SHEDDABLE"),))
    world.run(6.0, high, low)
    print(f"seed {SEED}: {high.ended} {low.ended}")
    assert high.ended == {"OK": high.offered}, SEED
    assert low.ended["QUEUE_STANDING"] > 20, SEED
