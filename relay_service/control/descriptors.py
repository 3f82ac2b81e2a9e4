"""What each upstream offers, learned by reflection and kept fresh."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from relay_service.control.channel import open_channel
from relay_service.control.descriptor_set import NO_DESCRIPTORS, DescriptorSet, resolve
from relay_service.control.reflection_client import (
    Learned,
    ReflectionError,
    ReflectionLimits,
    ReflectionNotOfferedError,
    UpstreamUnreachableError,
    learn,
)
from relay_service.core.policy import UpstreamTls
from relay_service.methods import MethodFacts

log = logging.getLogger(__name__)


class ReflectionState(Enum):
    """How well an upstream is known."""

    UNREACHED = "UNREACHED"
    """It could not be asked (yet, or any more); what was learned before is kept."""
    LEARNED = "LEARNED"
    NOT_OFFERED = "NOT_OFFERED"
    """It answers, but offers no reflection; nothing is known, which is no fault."""


@dataclass(frozen=True, slots=True)
class RefreshSettings:
    """When an upstream is asked again."""

    interval_s: float = 60.0
    """Between refreshes of an upstream that was reached."""
    on_demand_interval_s: float = 2.0
    """The least time between two refreshes that were asked for by someone."""
    retry_min_s: float = 0.2
    retry_max_s: float = 5.0
    """An unreached upstream is asked again after a time that doubles between these two, ± 20 %."""
    limits: ReflectionLimits = field(default_factory=ReflectionLimits)


class UpstreamDescriptors:
    """One upstream's services and methods.

    `start` and `stop` frame its life; in between, a task of its own asks the upstream and everything
    here can be read at any time without waiting. Look-ups never raise and never block.

    State: ``_known`` and ``_source`` (what was learned, and the bytes it was made from), ``state``,
    ``error``, ``_wanted`` (somebody asked for a refresh), ``_asked_once``.
    """

    def __init__(
        self,
        name: str,
        target: str,
        *,
        tls: UpstreamTls | None = None,
        settings: RefreshSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """``name`` as in the routes, ``target`` a gRPC target such as ``127.0.0.1:50052``."""
        self.name = name
        self.target = target
        self.state = ReflectionState.UNREACHED
        self.error = ""
        """Why the state is not LEARNED, for people; empty when it is."""
        self._tls = tls
        self._settings = settings or RefreshSettings()
        self._rng = rng or random.Random()
        self._known = NO_DESCRIPTORS
        self._source: Learned | None = None
        self._wanted = asyncio.Event()
        self._asked_once = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def known(self) -> DescriptorSet:
        """Everything learned; empty until then. An immutable value that is replaced, never changed."""
        return self._known

    def services(self) -> tuple[str, ...]:
        """Full names of the upstream's services, without those that the relay answers itself."""
        return self._known.services

    def faults(self) -> tuple[str, ...]:
        """What was wrong with the descriptors, for people; a bounded number of lines."""
        told = self._source.faults if self._source else ()
        return (*told, *self._known.faults)

    def facts(self, method: str) -> MethodFacts | None:
        """What is known of ``package.Service/Method``; None when nothing is.

        Asking for a method that a reflecting upstream has not told of makes it be asked again soon:
        it may have been replaced by a newer version.
        """
        facts = self._known.methods.get(method)
        if facts is None and self.state is ReflectionState.LEARNED:
            self.refresh_soon()
        return facts

    def refresh_soon(self) -> None:
        """Ask the upstream again (after a reconnect, say), but at most every ``on_demand_interval_s``."""
        self._wanted.set()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the event loop whenever services, methods or the state have changed."""
        self._listeners.append(callback)

    async def asked_once(self, timeout_s: float) -> bool:
        """Wait until the upstream was asked once, in vain or not; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._asked_once.wait()
        except TimeoutError:
            return False
        return True

    async def start(self) -> None:
        """Begin to ask. Returns at once: an upstream that is down holds nobody up."""
        self._task = asyncio.create_task(self._follow(), name=f"descriptors of {self.name}")

    async def stop(self) -> None:
        """Give up any conversation under way and close the channel. What was learned stays readable."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task], timeout=1.0)
        self._task = None

    async def _follow(self) -> None:
        retry_s = self._settings.retry_min_s
        while True:
            self._wanted.clear()
            await self._ask()
            if self.state is ReflectionState.UNREACHED:
                await asyncio.sleep(retry_s * self._rng.uniform(0.8, 1.2))
                retry_s = min(retry_s * 2, self._settings.retry_max_s)
            else:
                retry_s = self._settings.retry_min_s
                await self._until_due()

    async def _ask(self) -> None:
        """Over a channel of its own each time: that is once a minute, and its certificates are today's."""
        limits = self._settings.limits
        try:
            async with open_channel(
                self.target, receive_bytes_max=limits.size_bytes_max, tls=self._tls
            ) as channel:
                await self._learned(await learn(channel, limits))
        except ReflectionError as error:
            self._failed(error)
        except Exception as error:
            # A stranger's bytes must not end the task that would notice when they get better.
            log.exception("reading the descriptors of upstream %s failed", self.name)
            self._failed(ReflectionNotOfferedError(repr(error)))
        self._asked_once.set()

    async def _until_due(self) -> None:
        """Wait for the next regular refresh, or for one on demand."""
        on_demand_s = min(self._settings.on_demand_interval_s, self._settings.interval_s)
        await asyncio.sleep(on_demand_s)
        try:
            async with asyncio.timeout(self._settings.interval_s - on_demand_s):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _learned(self, learned: Learned) -> None:
        was, is_new = self.state, learned != self._source
        if is_new:
            # A large description takes a while to resolve, and calls are waiting for this loop.
            self._known = await asyncio.to_thread(resolve, learned.services, learned.files)
            self._source = learned
            self._log_learned()
        self.state, self.error = ReflectionState.LEARNED, ""
        if is_new or was is not self.state:
            self._tell()

    def _log_learned(self) -> None:
        log.info("upstream %s: %d services by reflection", self.name, len(self._known.services))
        if faults := self.faults():
            log.warning(
                "upstream %s: %d faults in its descriptors, first: %s", self.name, len(faults), faults[0]
            )

    def _failed(self, error: ReflectionError) -> None:
        was = self.state
        self.error = str(error)
        if isinstance(error, UpstreamUnreachableError):
            self.state = ReflectionState.UNREACHED
        else:
            # It answers and has nothing to tell: what was there before is not what is there now.
            self.state = ReflectionState.NOT_OFFERED
            self._known, self._source = NO_DESCRIPTORS, None
        if self.state is not was or not self._asked_once.is_set():
            # Once per change of state: an upstream may be away for hours.
            log.info("upstream %s: %s by reflection (%s)", self.name, self.state.value, self.error)
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            try:
                listener()
            except Exception:
                log.exception("a listener to the descriptors of upstream %s failed", self.name)


class ReflectedMethods:
    """The catalogue of methods that the relay decides by: what every upstream says of its own."""

    def __init__(self, upstreams: Sequence[UpstreamDescriptors]) -> None:
        self.follow(upstreams)

    def follow(self, upstreams: Sequence[UpstreamDescriptors]) -> None:
        """Take what these say from now on."""
        self._by_name = {upstream.name: upstream for upstream in upstreams}

    def facts(self, upstream: str, method: str) -> MethodFacts | None:
        """The facts of ``package.Service/Method``; None while they, or the upstream, are not known."""
        descriptors = self._by_name.get(upstream)
        return None if descriptors is None else descriptors.facts(method)
