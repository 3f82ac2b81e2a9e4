"""The capacity model by itself, in virtual time: throughput, order, refusal, and callers that leave."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from downstream_service.capacity import Capacity, CapacityModel, QueueFullError

RunInVirtualTime = Callable[[Coroutine[Any, Any, Any]], Any]


class Workshop:
    """A capacity under test that writes down which work was begun, and when."""

    def __init__(self, model: CapacityModel | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.start_s = self.loop.time()
        self.capacity = Capacity(self.loop.time)
        self.capacity.configure(model)
        self.begun: list[tuple[str, float]] = []

    def work(self, name: str) -> asyncio.Task[str]:
        def begin() -> asyncio.Future[str]:
            self.begun.append((name, round(self.loop.time() - self.start_s, 6)))
            done = self.loop.create_future()
            done.set_result(name)
            return done

        return asyncio.create_task(self.capacity.run(begin))


async def let_start() -> None:
    """Give tasks just made their first step."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_workers_times_service_time_is_the_throughput(in_virtual_time: RunInVirtualTime) -> None:
    async def scenario() -> None:
        shop = Workshop(CapacityModel(workers=4, service_time_s=0.010, queue_size=1_000))
        await asyncio.gather(*(shop.work(str(i)) for i in range(400)))
        assert shop.loop.time() - shop.start_s == pytest.approx(1.0)

    in_virtual_time(scenario())


def test_waiting_work_is_begun_in_the_order_it_came(in_virtual_time: RunInVirtualTime) -> None:
    async def scenario() -> None:
        shop = Workshop(CapacityModel(workers=1, service_time_s=0.5, queue_size=10))
        await asyncio.gather(*(shop.work(name) for name in "abc"))
        assert shop.begun == [("a", 0.5), ("b", 1.0), ("c", 1.5)]

    in_virtual_time(scenario())


def test_a_timer_that_fires_late_does_not_lower_the_throughput(in_virtual_time: RunInVirtualTime) -> None:
    async def scenario() -> None:
        shop = Workshop(CapacityModel(workers=1, service_time_s=0.010, queue_size=100))
        late_s = 0.004
        call_later = shop.loop.call_later
        shop.loop.call_later = lambda delay_s, *rest: call_later(delay_s + late_s, *rest)  # type: ignore[method-assign]
        await asyncio.gather(*(shop.work(str(i)) for i in range(100)))
        assert shop.loop.time() - shop.start_s == pytest.approx(1.0 + late_s)

    in_virtual_time(scenario())


def test_work_beyond_the_queue_is_refused_at_once_and_counted(in_virtual_time: RunInVirtualTime) -> None:
    async def scenario() -> None:
        shop = Workshop(CapacityModel(workers=1, service_time_s=1.0, queue_size=2))
        tasks = [shop.work(name) for name in "abcd"]
        await let_start()
        assert shop.capacity.queued == 2
        with pytest.raises(QueueFullError):
            await tasks[3]
        assert shop.loop.time() == shop.start_s
        assert shop.capacity.refused == 1
        assert await asyncio.gather(*tasks[:3]) == ["a", "b", "c"]

    in_virtual_time(scenario())


def test_a_caller_that_leaves_while_waiting_takes_its_work_along(in_virtual_time: RunInVirtualTime) -> None:
    async def scenario() -> None:
        shop = Workshop(CapacityModel(workers=1, service_time_s=1.0, queue_size=10))
        tasks = [shop.work(name) for name in "abc"]
        await let_start()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert shop.begun == [("a", 1.0), ("c", 2.0)]
        assert shop.capacity.wasted == 0

    in_virtual_time(scenario())


def test_work_a_worker_has_begun_runs_on_and_is_wasted_when_its_caller_leaves(
    in_virtual_time: RunInVirtualTime,
) -> None:
    async def scenario() -> None:
        shop = Workshop(CapacityModel(workers=1, service_time_s=1.0, queue_size=10))
        gone, stays = shop.work("gone"), shop.work("stays")
        await asyncio.sleep(0.5)
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        await stays
        assert shop.begun == [("gone", 1.0), ("stays", 2.0)]
        assert shop.capacity.wasted == 1

    in_virtual_time(scenario())


def test_without_a_model_everything_begins_at_once(in_virtual_time: RunInVirtualTime) -> None:
    async def scenario() -> None:
        shop = Workshop(None)
        await asyncio.gather(*(shop.work(str(i)) for i in range(100)))
        assert {at_s for _, at_s in shop.begun} == {0.0}

    in_virtual_time(scenario())


def test_taking_the_model_away_begins_what_waits(in_virtual_time: RunInVirtualTime) -> None:
    async def scenario() -> None:
        shop = Workshop(CapacityModel(workers=1, service_time_s=100.0, queue_size=10))
        tasks = [shop.work(name) for name in "abc"]
        await asyncio.sleep(1.0)
        shop.capacity.configure(None)
        assert await asyncio.gather(*tasks[1:]) == ["b", "c"]
        assert [name for name, _ in shop.begun] == ["b", "c"]
        assert await tasks[0] == "a"

    in_virtual_time(scenario())


def test_slow_start_falls_in_a_line_from_the_factor_to_one() -> None:
    model = CapacityModel(1, service_time_s=0.1, queue_size=0, slow_start_s=10.0, slow_start_factor=5.0)
    assert [model.service_time_at(age_s) for age_s in (0.0, 5.0, 10.0, 11.0)] == pytest.approx(
        [0.5, 0.3, 0.1, 0.1]
    )


def test_a_failing_effect_fails_the_one_who_waits_for_it(in_virtual_time: RunInVirtualTime) -> None:
    def broken() -> asyncio.Future[None]:
        raise RuntimeError("no paper")

    async def scenario() -> None:
        shop = Workshop(CapacityModel(workers=1, service_time_s=1.0, queue_size=10))
        with pytest.raises(RuntimeError, match="no paper"):
            await shop.capacity.run(broken)
        assert await shop.work("next") == "next"

    in_virtual_time(scenario())
