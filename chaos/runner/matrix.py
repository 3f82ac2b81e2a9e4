"""Many runs, each a process of its own, a few at a time: nothing of one can disturb another's loop."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.processes import guarded
from chaos.runner.output import SUMMARY_FILE

STOP_GRACE_S = 15.0
"""A run that is told to end undoes its faults and stops its processes first."""
RUN_TIMEOUT_S = 180.0
"""No run takes that long, but for traffic it was asked for; one that does is ended and could not tell."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: its scenario and seed, the words after ``relay-chaos run``, and its folder."""

    scenario: str
    seed: int
    words: tuple[str, ...]
    out_dir: Path
    asked_s: float = 0.0
    """How long its traffic was asked to last; 0 where that is left to the scenario."""


async def run_all(jobs: Sequence[Job], side_by_side: int) -> AsyncIterator[tuple[Job, dict[str, Any]]]:
    """Each job with its summary, in the order in which they end.

    A run that leaves no summary is reported as ``could_not_tell`` with its last words. Closing the iterator
    (Ctrl-C, an error) ends the runs that are under way.
    """
    turns = asyncio.Semaphore(side_by_side)
    tasks = [asyncio.create_task(_run(job, turns)) for job in jobs]
    try:
        for ended in asyncio.as_completed(tasks):
            yield await ended
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(job: Job, turns: asyncio.Semaphore) -> tuple[Job, dict[str, Any]]:
    async with turns:
        (job.out_dir / SUMMARY_FILE).unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *guarded([sys.executable, "-m", "chaos", "run", *job.words]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        timeout_s = RUN_TIMEOUT_S + job.asked_s
        try:
            async with asyncio.timeout(timeout_s):
                _, stderr = await process.communicate()
            last_words = stderr.decode(errors="replace").strip()[-1000:]
        except TimeoutError:
            last_words = f"it did not end within {timeout_s:g} s"
        finally:
            await _end(process)
    return job, _summary(job, last_words)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_GRACE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _summary(job: Job, last_words: str) -> dict[str, Any]:
    try:
        text = (job.out_dir / SUMMARY_FILE).read_text(encoding="utf-8")
        summary: dict[str, Any] = json.loads(text)
        return summary
    except (OSError, ValueError):
        lab = {
            "id": "lab",
            "statement": "the lab could do what the run asked for",
            "verdict": "could_not_tell",
            "detail": last_words or "it left no summary",
            "offenders": 0,
            "offending_traces": [],
        }
        return {
            "scenario": job.scenario,
            "seed": job.seed,
            "toxiproxy": "unknown",
            "mutant": None,
            "verdict": "could_not_tell",
            "invariants": [lab],
            "measures": {},
            "expected": {},
            "replay": " ".join(["relay-chaos", "run", *job.words]),
        }
