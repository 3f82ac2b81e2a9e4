"""Looking for trouble: schedules drawn from one seed after another, and a failing one made smaller.

Shrinking is delta debugging (Zeller and Hildebrandt, 2002) on the list of faults: leave some out, run again,
keep what still fails. A run of real processes does not repeat itself exactly, so each candidate is run a
stated number of times and counts as failing when any of these runs is broken.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from chaos.findings import Verdict
from chaos.runner.output import Pictures
from chaos.runner.plan import SCHEDULE_FILE, Form, RunConfig
from chaos.runner.run import RunResult, run_scenario
from chaos.scenarios.model import Scenario
from chaos.schedule import Schedule

REPEATS = 2
CANDIDATES_MAX = 40
"""Shrinking ends there, with the smallest schedule found so far."""

Fails = Callable[[Schedule], Awaitable[bool]]


async def explore(scenario: Scenario, out_dir: Path, first_seed: int, form: Form) -> AsyncIterator[RunResult]:
    """Run the scenario with ``first_seed``, the next one, and so on, without end; stop by not going on."""
    seed = first_seed
    while True:
        config = RunConfig(scenario, out_dir / f"seed-{seed}", seed, form)
        yield await run_scenario(config, Pictures.UNLESS_HELD)
        seed += 1


async def shrunk(config: RunConfig, repeats: int = REPEATS) -> Schedule:
    """The smallest schedule found that still breaks a promise, written beside the run as its own file."""
    number = 0

    async def fails(schedule: Schedule) -> bool:
        nonlocal number
        number += 1
        for repeat in range(repeats):
            folder = config.out_dir / "shrinking" / f"{number}-{repeat}"
            candidate = replace(config, out_dir=folder, schedule=schedule)
            if (await run_scenario(candidate, Pictures.UNLESS_HELD)).verdict is Verdict.BROKEN:
                return True
        return False

    smallest = await minimized(config.plan.schedule, fails)
    (config.out_dir / f"smallest-{SCHEDULE_FILE}").write_text(smallest.text(), encoding="utf-8")
    return smallest


async def minimized(schedule: Schedule, fails: Fails, candidates_max: int = CANDIDATES_MAX) -> Schedule:
    """Delta debugging: a schedule that fails, from which no tried part could be left out.

    ``schedule`` itself is taken to fail. At most ``candidates_max`` candidates are tried.
    """
    pieces, tried = 2, 0
    while len(schedule.faults) > 1:
        for part in _parts(len(schedule.faults), pieces):
            if tried >= candidates_max:
                return schedule
            tried += 1
            candidate = schedule.without(part)
            if await fails(candidate):
                schedule, pieces = candidate, max(pieces - 1, 2)
                break
        else:
            if pieces >= len(schedule.faults):
                return schedule
            pieces = min(2 * pieces, len(schedule.faults))
    return schedule


def _parts(count: int, pieces: int) -> list[range]:
    """The numbers from 0 to ``count`` cut into so many runs of about equal length."""
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    return [range(low, high) for low, high in pairwise(edges) if low < high]
