"""Who may have the policy reloaded, how often, and what is said about it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from relay_service.config.candidate import Candidate
from relay_service.config.problems import ConfigError, Problem
from relay_service.control.sources import ShuttingDownError
from relay_service.core.policy import RelayPolicy, UpstreamPolicy
from relay_service.reload import PolicyKeeper

WAIT_S = 10.0


def named(name: str) -> RelayPolicy:
    return RelayPolicy(name, {"upstream": UpstreamPolicy("h:1")})


class Source:
    """Gives one policy after the other; ``adopting`` holds adoptions back while it is cleared."""

    def __init__(self) -> None:
        self.loads = 0
        self.adopted: list[str] = []
        self.running = 0
        self.adopting = asyncio.Event()
        self.adopting.set()
        self.error: Exception | None = None
        self.now: str | None = None
        """The policy's name; None counts the loads."""

    def load(self) -> Candidate:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return Candidate(named(self.now or f"policy {self.loads}"), ())

    async def adopt(self, policy: RelayPolicy) -> None:
        assert not self.running, "two at once"
        self.running += 1
        await self.adopting.wait()
        self.running -= 1
        self.adopted.append(policy.name)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def keeper(source: Source) -> PolicyKeeper:
    return PolicyKeeper(named("first"), source.load, source.adopt, wall_clock=lambda: 1_000.0 + source.loads)


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


async def test_reloads_come_one_after_the_other(keeper: PolicyKeeper, source: Source) -> None:
    source.adopting.clear()
    reloads = [asyncio.create_task(keeper.reload()) for _ in range(3)]
    await until(lambda: source.running)
    source.adopting.set()
    await asyncio.gather(*reloads)
    assert source.adopted == ["policy 1", "policy 2", "policy 3"]
    assert (keeper.status.name, keeper.status.reloads, keeper.status.loaded_at_unix_s) == (
        "policy 3",
        3,
        1003.0,
    )


async def test_a_hundred_signals_cost_two_reloads(keeper: PolicyKeeper, source: Source) -> None:
    source.adopting.clear()
    following = asyncio.create_task(keeper.follow())
    keeper.want()
    await until(lambda: source.running)
    for _ in range(100):
        keeper.want()
    source.adopting.set()
    await until(lambda: len(source.adopted) == 2)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert source.loads == 2


async def test_what_is_refused_or_fails_leaves_the_policy_and_the_next_one_is_tried(
    keeper: PolicyKeeper, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    following = asyncio.create_task(keeper.follow())
    source.error = ConfigError([Problem("p.json", "relay.maxHops", "got 0", "must be at least 1")])
    keeper.want()
    await until(lambda: keeper.status.refused == 1)
    assert keeper.status.last_refusal == "p.json: relay.maxHops: got 0; must be at least 1"
    assert keeper.status.last_refusal_at_unix_s == 1001.0
    source.error = RuntimeError("a bug")
    keeper.want()
    await until(lambda: "a bug" in caplog.text)
    assert (keeper.status.name, keeper.status.reloads) == ("first", 0)
    source.error = None
    keeper.want()
    await until(lambda: keeper.status.reloads == 1)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_after_the_end_nothing_is_reloaded(keeper: PolicyKeeper, source: Source) -> None:
    keeper.end()
    with pytest.raises(ShuttingDownError):
        await keeper.reload()
    keeper.want()
    await asyncio.wait_for(keeper.follow(), WAIT_S)
    assert source.loads == 0


async def test_a_file_that_is_touched_removed_or_half_written_is_looked_at_until_it_rests(
    keeper: PolicyKeeper, source: Source, tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    path.write_text("1")
    source.now = "first"
    following = asyncio.create_task(keeper.follow())
    watching = asyncio.create_task(keeper.watch(path, 0.01))
    await asyncio.sleep(0.05)
    path.unlink()
    await asyncio.sleep(0.05)
    assert source.adopted == [], "nothing has changed, and a file that is gone says nothing"
    path.write_text("22")
    await until(lambda: len(source.adopted) == 1)
    other = tmp_path / "other"
    other.write_text("33")
    other.replace(path)
    await until(lambda: len(source.adopted) == 2)
    for task in (following, watching):
        task.cancel()
    await asyncio.gather(following, watching, return_exceptions=True)


@pytest.mark.parametrize("fault", [None, ConfigError([Problem("p.json", "", "", "is not JSON")])])
async def test_a_file_written_between_the_start_and_the_first_look_is_reloaded(
    keeper: PolicyKeeper, source: Source, tmp_path: Path, fault: Exception | None
) -> None:
    source.error = fault
    watching = asyncio.create_task(keeper.watch(tmp_path / "policy.json", 60.0))
    following = asyncio.create_task(keeper.follow())
    await until(lambda: keeper.status.reloads + keeper.status.refused == 1)
    for task in (following, watching):
        task.cancel()
    await asyncio.gather(following, watching, return_exceptions=True)
