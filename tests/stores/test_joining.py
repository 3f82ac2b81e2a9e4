"""Whoever joins others is served, at whatever moment it comes."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from relay_service.stores.postgres.joining import Joined

BOUND_S = 5.0


async def alone(operation: Any) -> Any:
    await asyncio.sleep(0)
    return operation


async def together(operations: Sequence[Any]) -> Sequence[Any]:
    await asyncio.sleep(0)
    return operations


@pytest.mark.parametrize("lanes", [1, 2])
async def test_who_comes_as_the_last_lane_ends_is_not_left_to_wait(lanes: int) -> None:
    """A caller that has its answer asks again before the loop has seen that the lane's task is over."""
    joined = Joined(alone=alone, together=together, lanes=lanes, batch_limit=1)

    async def ask(name: str, times: int) -> list[Any]:
        return [await joined.do(number, ((name,),)) for number in range(times)]

    others = [ask(f"another {lane}", 1) for lane in range(1, lanes)]
    async with asyncio.timeout(BOUND_S):
        answers = await asyncio.gather(ask("again and again", 3), *others)
    assert answers == [[0, 1, 2], *([[0]] * len(others))]
    await joined.idle(BOUND_S)
    assert len(joined) == 0
