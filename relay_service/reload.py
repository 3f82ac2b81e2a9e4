"""Which policy is in force, and how another takes its place without a restart.

A new policy is read and judged first. One with errors changes nothing: it is refused in the words that a
start would use, and the old one stays. Signals and the looks at the file only say that a reload is wanted;
one task makes it, so a hundred signals cost one or two reloads.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from relay_service.config.candidate import Candidate, policy_version
from relay_service.config.problems import ConfigError
from relay_service.control.sources import PolicyStatus, ShuttingDownError
from relay_service.core.policy import RelayPolicy

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
"""What changes when a file is written or replaced: inode, size, time of change in ns."""


class PolicyKeeper:
    """Reloads the policy when it is asked to and tells which one is in force.

    ``load`` reads and judges a policy and may block; ``adopt`` puts it into force, and either does so
    whole or raises with nothing changed. ``wall_clock`` is for people only.

    State: the status; whether a reload is wanted; the lock that keeps reloads apart; whether it has ended.
    """

    def __init__(
        self,
        policy: RelayPolicy,
        load: Callable[[], Candidate],
        adopt: Callable[[RelayPolicy], Awaitable[None]],
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._load = load
        self._adopt = adopt
        self._wall_clock = wall_clock
        self._status = PolicyStatus(policy.name, policy_version(policy), wall_clock())
        self._wanted = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._ended = False

    @property
    def status(self) -> PolicyStatus:
        """The policy in force, and what became of those that were to take its place."""
        return self._status

    def want(self) -> None:
        """Have the policy reloaded soon; what comes of it is told by the log and the status."""
        self._wanted.set()

    def end(self) -> None:
        """Reload nothing more: the relay is going away."""
        self._ended = True

    async def reload(self) -> Candidate:
        """Read the policy again and put it into force.

        Raises `ConfigError` with everything that is wrong with it, and `ShuttingDownError`; the policy in
        force stays then.
        """
        async with self._one_at_a_time:
            if self._ended:
                raise ShuttingDownError
            try:
                candidate = await asyncio.to_thread(self._load)
                await self._adopt(candidate.policy)
            except ConfigError as error:
                self._refused(error)
                raise
            self._adopted(candidate)
            return candidate

    def _refused(self, error: ConfigError) -> None:
        status = self._status
        self._status = replace(
            status,
            refused=status.refused + 1,
            last_refusal=str(error),
            last_refusal_at_unix_s=self._wall_clock(),
        )
        log.error(
            "the new policy is refused, %s %s stays in force: %s",
            status.name,
            status.version,
            "; ".join(str(problem) for problem in error.problems),
        )

    def _adopted(self, candidate: Candidate) -> None:
        before = self._status
        name, version = candidate.policy.name, policy_version(candidate.policy)
        self._status = replace(
            before,
            name=name,
            version=version,
            loaded_at_unix_s=self._wall_clock(),
            reloads=before.reloads + 1,
        )
        log.info("policy %s %s is in force, it was %s %s", name, version, before.name, before.version)
        for finding in candidate.findings:
            log.warning("policy %s: %s: %s [%s]", name, finding.path, finding.text, finding.rule)

    async def follow(self) -> None:
        """Reload whenever it is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.reload()
            except ShuttingDownError:
                return
            except ConfigError:
                continue  # told where it was refused
            except Exception:
                log.exception("reloading the policy failed, the old one stays in force")

    async def watch(self, path: Path, interval_s: float) -> None:
        """Want a reload when the file has changed, until cancelled.

        A change counts once two looks agree about it: whoever writes the file may not be done yet.
        """
        loaded = seen = await asyncio.to_thread(_stamp, path)
        if await asyncio.to_thread(self._has_changed):
            self.want()
        while True:
            await asyncio.sleep(interval_s)
            stamp = await asyncio.to_thread(_stamp, path)
            if stamp is not None and stamp == seen and stamp != loaded:
                loaded = stamp
                self.want()
            seen = stamp

    def _has_changed(self) -> bool:
        """Whether the file says something else than what is in force: it may have been written meanwhile."""
        try:
            return policy_version(self._load().policy) != self._status.version
        except ConfigError:
            return True


def _stamp(path: Path) -> Stamp | None:
    """None while there is no file: someone is about to put another in its place."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
