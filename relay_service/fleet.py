"""The upstreams of the policy in force: their connections, and what reflection tells of their methods.

Another policy takes over in three steps, so that no call is lost between two: `Fleet.prepare` connects and
asks what is new, while calls go on as before; `Fleet.switch` puts it into place at once; `Fleet.let_go`
closes what is left behind, once its last call is over.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from relay_service import tls
from relay_service.config.problems import ConfigError, Problem
from relay_service.control.descriptors import ReflectedMethods, UpstreamDescriptors
from relay_service.core.policy import UpstreamPolicy
from relay_service.destination import Destination
from relay_service.hedge_lane import HedgeLane
from relay_service.tls import RenewedContext, TlsError
from relay_service.upstream import Upstream

PREPARE_WAIT_S = 2.0
"""How long a start or a change of policy waits for new upstreams to be connected and to have told of their
methods; after that it goes on without, and calls of unknown methods are carried as streams."""

LET_GO_S = 600.0
"""A conversation with an upstream that is no longer there may go on for so long; then it is cut, so that
nothing is kept for ever."""


MakeUpstream = Callable[[str, UpstreamPolicy, ssl.SSLContext | None, Callable[[], None] | None], Upstream]


@dataclass(frozen=True, slots=True)
class Member:
    """One upstream."""

    policy: UpstreamPolicy
    certificates: RenewedContext | None
    """What it is called with by TLS; None in cleartext."""
    upstream: Upstream
    hedge_lane: HedgeLane
    """Opens nothing before the first hedge."""
    descriptors: UpstreamDescriptors

    async def close(self) -> None:
        """Close all connections, at once."""
        await asyncio.gather(self.upstream.close(0.0), self.hedge_lane.close(0.0))


class Fleet:
    """All upstreams there are.

    ``make`` makes the upstream of a name, a policy and a TLS context; it is to call its last argument at
    every new connection. State: the members by name, the same as views that others keep and read, and
    those that are being let go.
    """

    def __init__(self, make: MakeUpstream) -> None:
        self._make = make
        self._members: dict[str, Member] = {}
        self._leaving: dict[asyncio.Task[None], Member] = {}
        self.upstreams: dict[str, Upstream] = {}
        """By name; always the same object, whatever the policy."""
        self.hedge_lanes: dict[str, HedgeLane] = {}
        """Likewise."""
        self.descriptors: list[UpstreamDescriptors] = []
        """Likewise."""
        self.catalog = ReflectedMethods(self.descriptors)

    def take(self, wanted: Mapping[str, UpstreamPolicy]) -> None:
        """Make the first members; nothing is opened. Raises `TlsError`."""
        self.switch({name: self._member(name, policy) for name, policy in wanted.items()})

    def certificates(self) -> Iterator[RenewedContext]:
        """What upstreams are called with by TLS."""
        for member in self._members.values():
            if member.certificates is not None:
                yield member.certificates

    def open(self) -> None:
        """Begin to connect. The descriptors are started by the control plane, when it is there."""
        for upstream in self.upstreams.values():
            upstream.open()

    async def known(self) -> None:
        """Wait until every upstream was asked for its methods, at most `PREPARE_WAIT_S`."""
        await asyncio.gather(*(one.asked_once(PREPARE_WAIT_S) for one in self.descriptors))

    async def prepare(self, wanted: Mapping[str, UpstreamPolicy]) -> dict[str, Member]:
        """Members for a policy: those there are, as long as nothing about them changes, and new ones that
        are connected and known, or were given `PREPARE_WAIT_S` to be.

        Raises `ConfigError` when the certificates of one cannot be used; then nothing new is left.
        """
        here = {name: one for name, one in self._members.items() if one.policy == wanted.get(name)}
        new = {name: self._checked(name, policy) for name, policy in wanted.items() if name not in here}
        try:
            await asyncio.gather(*(_begin(member) for member in new.values()))
        except BaseException:
            await asyncio.gather(*(_end(member) for member in new.values()))
            raise
        return {name: here.get(name) or new[name] for name in wanted}

    def _checked(self, name: str, policy: UpstreamPolicy) -> Member:
        try:
            return self._member(name, policy)
        except TlsError as error:
            raise ConfigError([Problem(f"relay.upstreams.{name}.tls", "", "", str(error))]) from error

    def switch(self, members: dict[str, Member]) -> list[Member]:
        """Put ``members`` into place; the result are those that were there and are not among them."""
        left = [old for name, old in self._members.items() if members.get(name) is not old]
        self._members = members
        self.upstreams.clear()
        self.upstreams.update({name: member.upstream for name, member in members.items()})
        self.hedge_lanes.clear()
        self.hedge_lanes.update({name: member.hedge_lane for name, member in members.items()})
        self.descriptors[:] = [member.descriptors for member in members.values()]
        self.catalog.follow(self.descriptors)
        return left

    def let_go(self, member: Member, destination: Destination) -> None:
        """Close a member that is no longer in place as soon as the last call to it is over."""
        task = asyncio.create_task(_see_off(member, destination), name=f"drain {member.upstream.name}")
        self._leaving[task] = member
        task.add_done_callback(self._leaving.pop)

    @property
    def leaving(self) -> int:
        """Upstreams that only calls from before still use."""
        return len(self._leaving)

    async def close(self) -> None:
        """Close all connections, at once."""
        leaving = dict(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        await asyncio.gather(*(member.close() for member in (*leaving.values(), *self._members.values())))

    def _member(self, name: str, policy: UpstreamPolicy) -> Member:
        certificates = tls.calling(policy.tls) if policy.tls else None
        context = certificates.context if certificates else None
        descriptors = UpstreamDescriptors(name, policy.target, tls=policy.tls)
        # What comes back after an outage may be another version: its methods are asked for again.
        upstream = self._make(name, policy, context, descriptors.refresh_soon)
        lane = HedgeLane(self._make(name, policy, context, None))
        return Member(policy, certificates, upstream, lane, descriptors)


async def _begin(member: Member) -> None:
    member.upstream.open()
    await member.descriptors.start()
    await asyncio.gather(
        member.descriptors.asked_once(PREPARE_WAIT_S), member.upstream.wait_ready(PREPARE_WAIT_S)
    )


async def _see_off(member: Member, destination: Destination) -> None:
    await member.descriptors.stop()
    idle = asyncio.Event()
    destination.when_idle(idle.set)
    try:
        async with asyncio.timeout(LET_GO_S):
            await idle.wait()
    except TimeoutError:
        pass
    await member.close()


async def _end(member: Member) -> None:
    await member.descriptors.stop()
    await member.close()
