"""The composition root: makes the relay's parts, starts them, and stops them in order."""

import asyncio
import contextlib
import gc
import logging
import random
import signal
import ssl
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, cast

from relay_service import tls
from relay_service.config.addresses import TcpAddress, UnixAddress, parse_address
from relay_service.config.candidate import candidate_of
from relay_service.config.document import preset_names
from relay_service.config.problems import ConfigError, Problem
from relay_service.config.settings import Settings
from relay_service.control.binding import BindError, cause_of
from relay_service.control.http import HttpServer
from relay_service.control.lookout import Lookout
from relay_service.control.names import FORWARDED_SERVICES
from relay_service.control.server import ControlPlane, ControlSettings, WorkServices
from relay_service.core.breakers import BreakerView
from relay_service.core.bulkheads import admissions_of
from relay_service.core.criticality import Criticality
from relay_service.core.hedge import HedgingState
from relay_service.core.policy import RelayPolicy, UpstreamPolicy
from relay_service.core.throttle import ThrottleState
from relay_service.envelope import EnvelopeOpener
from relay_service.fault_points import FaultAt, nowhere
from relay_service.fleet import Fleet
from relay_service.idempotency.keys import KeysSetup
from relay_service.jobs.office import JobsOffice
from relay_service.methods import MethodFacts
from relay_service.overview import Overview
from relay_service.relay import Relay
from relay_service.reload import PolicyKeeper
from relay_service.stores.interface import Store
from relay_service.stores.opening import engine_from
from relay_service.telemetry.adaptive_throttle import ThrottleCollector
from relay_service.telemetry.alerts import AlertDesk, AlertsCollector
from relay_service.telemetry.breaker_log import BreakerLog
from relay_service.telemetry.breakers import BreakerCollector
from relay_service.telemetry.bulkheads import BulkheadCollector
from relay_service.telemetry.callers import CallersCollector
from relay_service.telemetry.criticality import CapsCollector
from relay_service.telemetry.exposition import AdmissionCollector
from relay_service.telemetry.fallbacks import FallbackCollector
from relay_service.telemetry.hedging import HedgingCollector
from relay_service.telemetry.jobs import JobsCollector
from relay_service.telemetry.keys import KeysCollector, StoreTimes
from relay_service.telemetry.log_stream import BackgroundStream
from relay_service.telemetry.logs import configure_logging
from relay_service.telemetry.observer import Telemetry
from relay_service.telemetry.policy import PolicyCollector
from relay_service.telemetry.pools import PoolCollector, PoolView
from relay_service.telemetry.quotas import QuotaCollector
from relay_service.telemetry.settings import TelemetrySettings
from relay_service.telemetry.webhook import Webhook
from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream, UpstreamSettings
from relay_service.wire.connection import ConnectionSettings
from relay_service.wire.h2 import Limits
from relay_service.wire.listener import Listener, ListenerSettings
from relay_service.wire.liveness import LivenessSettings

HEALTH_NOTICE_S = 0.25
"""Between saying NOT_SERVING and turning callers away, so that load balancers can hear it."""

GOAWAY_NOTICE_S = 1.0
"""Calls that crossed our GOAWAY on their way are still taken for so long."""

CONTROL_GRACE_S = 1.0

CERTIFICATE_LOOK_S = 10.0
"""How often the files of certificates are looked at."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the relay really listens."""

    relay: str
    admin: str
    http: str


async def serve(settings: Settings, policy: RelayPolicy, on_ready: Callable[[Addresses], None]) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal ends the drain.

    Raises `BindError` (an address is not to be had) or a telemetry error, with nothing left running.
    """
    log_stream = BackgroundStream(sys.stderr)
    configure_logging(cast("TextIO", log_stream), level=getattr(logging, settings.log_level.upper()))
    try:
        async with running(settings, policy) as app:
            _calm_the_collector()
            on_ready(app.addresses)
            await app.stop_asked.wait()
            await app.drain()
    finally:
        log_stream.finish(timeout_s=1.0)


class App:
    """The relay's parts, made and not yet started."""

    def __init__(self, settings: Settings, policy: RelayPolicy) -> None:
        loop = asyncio.get_running_loop()
        rng = random.Random(settings.seed)
        self._settings = settings
        self._policy = policy
        self.stop_asked = asyncio.Event()
        """Set by SIGTERM, SIGINT or AdminService's Drain."""
        self._hurry = asyncio.Event()
        self._grace_s = settings.shutdown_grace_s
        self._listening_tls = _listening_tls(settings)
        self.timers = TimerWheel(loop)
        self.telemetry = Telemetry(_telemetry_settings(settings), rng=random.Random(rng.getrandbits(64)))
        self.fleet = Fleet(partial(self._upstream, rng))
        self.fleet.take(policy.upstreams)
        self._instance = uuid.uuid4().hex
        self.store = _store(settings, policy)
        self._fault_point = FaultAt(settings.fault_point) if settings.fault_point is not None else nowhere
        self.store_times = StoreTimes()
        self._own_services: dict[str, Upstream] = {}
        self.relay = Relay(
            policy,
            self.fleet.upstreams,
            self.fleet.catalog,
            self.telemetry,
            self.timers,
            now=time.monotonic,
            rng=rng,
            own_services=self._own_services,
            hedge_upstreams=self.fleet.hedge_lanes,
            keys=self._keys(),
        )
        if self.relay.keys is not None:
            self.telemetry.registry.register(KeysCollector(self.relay.keys.state, self.store_times))
        self.jobs = self._office(rng)
        if self.jobs is not None:
            self.telemetry.registry.register(JobsCollector(self.jobs.status))
        self.telemetry.registry.register(AdmissionCollector(self.relay.admission.state))
        self.telemetry.registry.register(CapsCollector(lambda: self.relay.capped))
        self.telemetry.registry.register(BulkheadCollector(lambda: self.relay.bulkheads or ()))
        self.telemetry.registry.register(PoolCollector(self._pools))
        self.telemetry.registry.register(BreakerCollector(self._breakers))
        self.telemetry.registry.register(ThrottleCollector(self._throttles))
        self.telemetry.registry.register(FallbackCollector(lambda: self.relay.fallbacks))
        self.telemetry.registry.register(HedgingCollector(self._hedging))
        self.keeper = PolicyKeeper(policy, partial(candidate_of, settings), self.adopt)
        self.telemetry.registry.register(PolicyCollector(lambda: self.keeper.status))
        opener = EnvelopeOpener(self.relay, self.fleet.catalog)
        self.listener = Listener(opener.on_call, self.timers, _listener_settings(policy))
        self.telemetry.registry.register(CallersCollector(self.listener.status))
        self.overview = Overview(
            self.relay,
            self.fleet.upstreams,
            self.telemetry,
            time.monotonic,
            callers=self.listener.status,
            policy=lambda: self.keeper.status,
            hedge_lanes=self.fleet.hedge_lanes,
            jobs=self.jobs.status if self.jobs is not None else None,
            alerts=lambda: self._lookout.firing(),  # noqa: PLW0108 (it looks at what is made here, and is made later)
        )
        self.telemetry.registry.register(QuotaCollector(self.overview.quotas))
        self._webhook = Webhook(settings.alert_webhook) if settings.alert_webhook is not None else None
        self._lookout = Lookout(
            self.overview,
            self.store,
            lambda: self.relay.policy.alerts,
            AlertDesk(self._webhook, self.telemetry.instance_id),
            now=time.monotonic,
        )
        self.telemetry.registry.register(AlertsCollector(self._lookout.firing, self._webhook))
        self.control = ControlPlane(
            ControlSettings(admin_address=settings.admin_listen),
            health=self.overview,
            stats=self.overview,
            upstreams=self.fleet.descriptors,
            drain=self.stop,
            reload=self.keeper.reload,
            version=version("resilient-relay"),
            work=self._work_services(),
            store=self.store,
        )
        self.http = HttpServer(
            settings.http_listen,
            health=self.overview,
            stats=self.overview,
            upstreams=self.fleet.descriptors,
            metrics=self.telemetry.prometheus_text,
            version=version("resilient-relay"),
        )
        self._relay_address = ""

    def _upstream(
        self,
        rng: random.Random,
        name: str,
        policy: UpstreamPolicy,
        context: ssl.SSLContext | None = None,
        on_connected: Callable[[], None] | None = None,
    ) -> Upstream:
        return Upstream(
            name,
            policy.target,
            self.timers,
            _upstream_settings(policy),
            rng=random.Random(rng.getrandbits(64)),
            tls=context,
            server_name=policy.tls.server_name if policy.tls else "",
            on_connected=on_connected,
        )

    def _keys(self) -> KeysSetup | None:
        if self.store is None:
            return None
        return KeysSetup(self.store, self._instance, self._fault_point, self.store_times.took)

    def _office(self, rng: random.Random) -> JobsOffice | None:
        if self.store is None:
            return None
        return JobsOffice(
            self.store,
            self.relay,
            lambda: self.relay.policy,
            self.fleet.catalog,
            worker=self._instance,
            rng=rng,
            fault_point=self._fault_point,
            sender=self.telemetry.job_sender(),
        )

    def _work_services(self) -> WorkServices | None:
        if self.jobs is None:
            return None

        def facts(method: str) -> MethodFacts | None:
            upstream = self.relay.policy.route(method)
            return self.fleet.catalog.facts(upstream, method) if upstream else None

        return WorkServices(self.jobs, facts)

    def _renew_certificates(self, _: None = None) -> None:
        for renewed in (self._listening_tls, *self.fleet.certificates()):
            if renewed is not None and renewed.renew():
                log.info("certificates were renewed")
        self.timers.call_at(time.monotonic() + CERTIFICATE_LOOK_S, self._renew_certificates, None)

    def _breakers(self) -> Iterator[BreakerView]:
        return self.relay.breakers.views(time.monotonic())

    def _pools(self) -> Iterator[PoolView]:
        for name, upstream in self.fleet.upstreams.items():
            yield PoolView(name, "calls", upstream.pool())
            if self.relay.policy.hedges:
                yield PoolView(name, "hedges", self.fleet.hedge_lanes[name].pool())

    def _throttles(self) -> Mapping[str, Mapping[Criticality, ThrottleState]]:
        now = time.monotonic()
        return {name: throttles.states(now) for name, throttles in self.relay.throttles.items()}

    def _hedging(self) -> dict[str, HedgingState]:
        hedging = self.relay.hedging if self.relay.policy.hedges else {}
        return {name: one.state() for name, one in hedging.items()}

    @property
    def addresses(self) -> Addresses:
        """Where it listens; complete once it runs."""
        return Addresses(self._relay_address, self.control.admin_address, self.http.address)

    async def start(self, undo: contextlib.AsyncExitStack) -> None:
        """Start back to front, the callers' address last; ``undo`` learns how to stop what was started.

        From the first moment on a signal means: stop in order.
        """
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.keeper.want)
        undo.callback(self.timers.close)
        self.telemetry.start()
        undo.push_async_callback(asyncio.to_thread, self.telemetry.shutdown)
        if self.store is not None:
            if self._settings.store is None:
                self._settings.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self.store.open()
            undo.push_async_callback(self.store.close)
            log.info("keys are kept in %s: %s", self.store.durability.name, self.store.durability.meaning)
        if self.relay.keys is not None:
            self.relay.keys.open()
            undo.push_async_callback(self.relay.keys.close)
        self.fleet.open()
        undo.push_async_callback(self.fleet.close)
        await self.control.start()
        undo.push_async_callback(self.control.stop, CONTROL_GRACE_S)
        control = self._upstream(random.Random(), "control", UpstreamPolicy(self.control.private_address))
        control.open()
        undo.push_async_callback(control.close, 0.0)
        self._own_services.update(dict.fromkeys(FORWARDED_SERVICES, control))
        await self.http.start()
        undo.push_async_callback(self.http.stop)
        await self.fleet.known()
        self._renew_certificates()
        if self.jobs is not None:
            await self.jobs.start()
            undo.push_async_callback(self.jobs.drain, 0.0)
        self._relay_address = await self._listen(self._settings.listen)
        undo.push_async_callback(self.listener.close, 0.0)
        await undo.enter_async_context(_in_background(self._background()))

    def _background(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What goes on beside the calls."""
        yield BreakerLog(self._breakers).follow()
        yield self._lookout.follow()
        if self._webhook is not None:
            yield self._webhook.deliver()
        yield self.keeper.follow()
        path = Path(self._settings.policy)
        if self._settings.policy_poll_s and self._settings.policy not in preset_names():
            yield self.keeper.watch(path, self._settings.policy_poll_s)

    async def adopt(self, policy: RelayPolicy) -> None:
        """Put a policy into force: new upstreams are ready first, then everything changes between two
        calls, then what is not needed any more goes when its last call has gone.

        Raises `ConfigError` for what only a restart can change, and for certificates that cannot be used.
        """
        if problems := list(_needs_restart(self.relay.policy, policy, has_store=self.store is not None)):
            raise ConfigError(problems)
        members = await self.fleet.prepare(policy.upstreams)
        left = self.relay.adopt(
            policy,
            {name: member.upstream for name, member in members.items()},
            {name: member.hedge_lane for name, member in members.items()},
        )
        by_port = {destination.port: destination for destination in left}
        for member in self.fleet.switch(members):
            self.fleet.let_go(member, by_port[member.upstream])
        self.listener.adopt(_listener_settings(policy))
        self.control.health_changed()

    async def _listen(self, address: str) -> str:
        context = self._listening_tls.context if self._listening_tls else None
        try:
            match parse_address(address):
                case TcpAddress(host, port):
                    return await self.listener.start(host, port, context)
                case UnixAddress(path):
                    return await self.listener.start_unix(path, context)
        except OSError as error:
            raise BindError("relay", address, cause_of(error)) from error

    def stop(self, grace_s: float | None = None) -> None:
        """Begin to drain; asked a second time, end the drain at once."""
        if self.stop_asked.is_set():
            self._hurry.set()
        if grace_s is not None:
            self._grace_s = grace_s
        self.stop_asked.set()

    async def drain(self) -> None:
        """Let callers go elsewhere and finish what they are owed, within the grace.

        Health says NOT_SERVING first; then connections get their GOAWAY while calls that crossed it are
        still taken; then new calls are refused; then what has not ended is dropped.
        """
        self.keeper.end()
        self.overview.draining = True
        self.control.drain()
        no_more_jobs = asyncio.create_task(self._drain_jobs())
        await self._unless_hurried(asyncio.sleep(HEALTH_NOTICE_S))
        closing = asyncio.create_task(self.listener.close(self._grace_s))
        await self._unless_hurried(asyncio.wait([closing], timeout=GOAWAY_NOTICE_S))
        self.relay.drain()
        await self._unless_hurried(asyncio.wait([closing, no_more_jobs]))
        if self.relay.keys is not None:  # keyed work outlives its callers, by the time to settle at most
            await self._unless_hurried(self.relay.keys.idle(self._grace_s))
        if not closing.done():
            log.warning("the drain was cut short with %d calls in flight", self.relay.in_flight)
            closing.cancel()
            await asyncio.wait([closing])
        no_more_jobs.cancel()
        await asyncio.gather(no_more_jobs, return_exceptions=True)

    async def _drain_jobs(self) -> None:
        """Lease nothing more and let what runs end; what was not dispatched is somebody else's at once."""
        if self.jobs is not None:
            await self.jobs.drain(self._grace_s)

    async def _unless_hurried(self, wait: Coroutine[Any, Any, object]) -> None:
        """Wait, unless we are or will be told to hurry."""
        waits = [asyncio.create_task(wait), asyncio.create_task(self._hurry.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


@contextlib.asynccontextmanager
async def running(settings: Settings, policy: RelayPolicy) -> AsyncIterator[App]:
    """A relay that takes calls inside the ``async with`` and leaves nothing behind after it."""
    async with contextlib.AsyncExitStack() as undo:
        app = App(settings, policy)
        await app.start(undo)
        yield app


@contextlib.asynccontextmanager
async def _in_background(work: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _calm_the_collector() -> None:
    """Keep the garbage collector from stopping all calls for tens of milliseconds.

    What was made for the start lives to the end, so it need not be looked at again. With 128 calls at a
    time that took p99 from 57 ms to 20 ms.
    """
    gc.collect()
    gc.freeze()


def _store(settings: Settings, policy: RelayPolicy) -> Store | None:
    """The store that is set or that the policy needs; made and not yet opened."""
    url = settings.store_url(needed=policy.keeps_keys)
    return engine_from(url) if url is not None else None


def _needs_restart(old: RelayPolicy, new: RelayPolicy, *, has_store: bool) -> Iterator[Problem]:
    """What is under way is bound to these: leases that are held, jobs that run."""
    fixed = {
        "relay.keys": (old.keys, new.keys),
        "relay.jobs": (old.jobs, new.jobs),
        "relay.deadLetters": (old.dead_letters, new.dead_letters),
    }
    for path, (before, after) in fixed.items():
        if before != after:
            yield Problem(
                "the new policy", path, "", "cannot be changed by a reload: restart the relay for it"
            )
    if new.keeps_keys and not has_store:
        path = "relay.methods[].idempotency"
        yield Problem(
            "the new policy", path, "", "needs a store, and this relay was started without: restart it"
        )


def _listening_tls(settings: Settings) -> tls.RenewedContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return tls.listening(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _telemetry_settings(settings: Settings) -> TelemetrySettings:
    return TelemetrySettings(
        service_version=version("resilient-relay"),
        listen_address=settings.listen,
        otlp_endpoint=settings.otlp_endpoint,
        trace_file=settings.trace_file,
        sample_ratio=settings.sample_ratio,
    )


def _upstream_settings(policy: UpstreamPolicy) -> UpstreamSettings:
    return UpstreamSettings(
        liveness=LivenessSettings(silence_s=policy.silence_s, ping_timeout_s=policy.ping_timeout_s),
        connections=policy.connections,
        connect_timeout_s=policy.connect_timeout_s,
        backoff_initial_s=policy.reconnect_backoff_min_s,
        backoff_max_s=policy.reconnect_backoff_max_s,
        patience_s=policy.patience_s,
    )


def _listener_settings(policy: RelayPolicy) -> ListenerSettings:
    """More streams than could ever be taken, so that overload is refused here, where it can be told why."""
    streams_max = 1 + sum(
        2 * (admission.queue_capacity + admission.workers_max) + admission.max_streams
        for admission in admissions_of(policy)
    )
    limits = Limits(streams_max=max(Limits().streams_max, streams_max))
    return ListenerSettings(
        connection=ConnectionSettings(limits=limits, handshake_timeout_s=5.0),
        connections_max=policy.callers.connections,
        connections_per_peer_max=policy.callers.connections_per_peer,
    )
