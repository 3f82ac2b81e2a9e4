"""A failing schedule made smaller: what is left still fails, and nothing of it can be left out."""

import pytest

from chaos.faults.kinds import Flood
from chaos.runner.explore import minimized
from chaos.schedule import Schedule, TimedFault


def schedule_of(count):
    return Schedule(tuple(TimedFault(float(number), 1.0, Flood(2 + number)) for number in range(count)))


@pytest.mark.parametrize("guilty", [{3}, {0, 7}, {1, 2, 6}, set(range(8))])
async def test_exactly_the_guilty_faults_are_left(guilty):
    whole = schedule_of(8)
    culprits = {whole.faults[number] for number in guilty}

    async def fails(schedule):
        return culprits <= set(schedule.faults)

    assert set((await minimized(whole, fails)).faults) == culprits


async def test_a_schedule_whose_failure_does_not_repeat_stays_whole():
    async def never_again(_):
        return False

    assert await minimized(schedule_of(4), never_again) == schedule_of(4)


async def test_shrinking_ends_after_its_number_of_candidates():
    tried = []

    async def fails(schedule):
        tried.append(schedule)
        return False

    await minimized(schedule_of(16), fails, candidates_max=5)
    assert len(tried) == 5
