"""The system under test: downstream, Toxiproxy before it, the relay before that; each a process of its own.

Where the relay's store is a PostgreSQL, that is one more process, and Toxiproxy stands before it too.

Started from the back to the front, so that each finds what it talks to, and stopped the other way round.
Members can be killed, paused and restarted one at a time; a restarted one keeps its addresses.
"""

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.postgres import url_of
from chaos.processes import ManagedProcess, ProcessError
from chaos.proxy_process import ProxyProcess
from chaos.store import SQLITE_FILE, PostgresServer, StoreEngine
from chaos.toxiproxy.client import Proxy
from chaos.toxiproxy.errors import ToxiproxyError

PROXY_NAME = "downstream"
"""The proxy between relay and downstream."""
STORE_PROXY_NAME = "store"
"""The proxy between relay and PostgreSQL."""
LEDGER_FILE = "ledger.sqlite"
FREE_PORT = "127.0.0.1:0"


class Member(Enum):
    """What the stack consists of, from back to front."""

    STORE = "store"
    """Only where it is a PostgreSQL."""
    DOWNSTREAM = "downstream"
    TOXIPROXY = "toxiproxy"
    RELAY = "relay"


@dataclass(frozen=True, slots=True)
class Addresses:
    """``host:port`` of every listener; port 0 takes a free one."""

    relay: str = FREE_PORT
    relay_admin: str = FREE_PORT
    relay_http: str = FREE_PORT
    downstream: str = FREE_PORT
    toxiproxy: str = FREE_PORT
    """Its HTTP API."""
    proxy: str = FREE_PORT
    """Where Toxiproxy listens for the relay."""


FREE_ADDRESSES = Addresses()
DEFAULT_ADDRESSES = Addresses(
    relay="127.0.0.1:50051",
    relay_admin="127.0.0.1:50055",
    relay_http="127.0.0.1:9464",
    downstream="127.0.0.1:50052",
    toxiproxy="127.0.0.1:8474",
    proxy="127.0.0.1:50053",
)


@dataclass(frozen=True, slots=True)
class StackConfig:
    """What to start."""

    run_dir: Path
    """Logs, ledger and trace files go there."""
    addresses: Addresses = FREE_ADDRESSES
    policy: str = "default"
    """The relay's: a preset's name or a file."""
    seed: int = 1
    sample_ratio: float = 1.0
    """Of the traces that no caller has decided on."""
    downstream_args: tuple[str, ...] = ()
    relay_args: tuple[str, ...] = ()
    relay_program: tuple[str, ...] = (sys.executable, "-m", "relay_service")
    """What is run as the relay; it takes the relay's verbs and flags."""
    relay_env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the relay alone."""
    store: StoreEngine | None = None
    """None: the relay is not told of one."""

    @property
    def trace_files(self) -> tuple[Path, Path]:
        """Where relay and downstream write their spans."""
        return self.run_dir / "relay.jsonl", self.run_dir / "downstream.jsonl"

    @property
    def store_file(self) -> Path:
        """Of a SQLite store."""
        return self.run_dir / SQLITE_FILE


class PortBusyError(RuntimeError):
    """Somebody else listens where a member should."""

    def __init__(self, name: str, address: str) -> None:
        port = address.rpartition(":")[2]
        super().__init__(
            f"port {port} ({name.replace('_', ' ')}) is taken by another process: "
            f"end it (`ss -ltnp 'sport = :{port}'` shows which it is), or use free ports (--free-ports)"
        )


class MemberDiedError(RuntimeError):
    """A member ended that nobody had stopped."""

    def __init__(self, member: Member, reason: ProcessError) -> None:
        self.member = member
        super().__init__(str(reason))


class Stack:
    """The running processes. Use it in ``async with``: whatever happens inside, none is left after it.

    State: the members, the addresses as far as they are known, the relay's policy, the store's proxy.
    """

    def __init__(self, config: StackConfig) -> None:
        self.config = config
        self.addresses = config.addresses
        self.policy = config.policy
        logs = config.run_dir / "logs"
        self.toxiproxy = ProxyProcess(PROXY_NAME, config.seed, logs)
        self._downstream = ManagedProcess("downstream", logs / "downstream.log")
        self._relay = ManagedProcess("relay", logs / "relay.log", env=config.relay_env)
        self._store = PostgresServer(logs / "store.log") if config.store is StoreEngine.POSTGRES else None
        self._store_proxy: Proxy | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """Those that this stack has, from back to front."""
        return tuple(member for member in Member if member is not Member.STORE or self._store is not None)

    @property
    def store_proxy(self) -> Proxy | None:
        """The proxy between relay and PostgreSQL; None without one. Its methods block."""
        return self._store_proxy

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all members. Raises `PortBusyError` or `ProcessError`; then nothing is left running."""
        for name, address in self._pinned():
            require_free(name, address)
        _remove_output_of_an_earlier_run(self.config)
        try:
            for member in self.members:
                await self._start(member)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all members, the front one first; every one is tried, also when another resists."""
        async with contextlib.AsyncExitStack() as last_first:
            if self._store is not None:
                last_first.push_async_callback(self._store.remove)
            for member in self.members:
                last_first.push_async_callback(self._process(member).stop)
                if member is Member.TOXIPROXY:
                    last_first.push_async_callback(self._remove_store_proxy)

    async def restart(self, member: Member, *, policy: str | None = None) -> None:
        """Stop a member (if it still runs) and start it at the same addresses; the relay perhaps with
        another policy from then on."""
        await self._process(member).stop()
        self.policy = policy or self.policy
        await self._start(member)

    async def kill(self, member: Member) -> None:
        """kill -9."""
        await self._process(member).kill()

    def pause(self, member: Member) -> None:
        """SIGSTOP: alive, connected, and silent."""
        self._process(member).pause()

    def resume(self, member: Member) -> None:
        """SIGCONT."""
        self._process(member).resume()

    async def proxy(self) -> Proxy:
        """The proxy between relay and downstream. Its methods block: use `asyncio.to_thread`."""
        return await self.toxiproxy.proxy()

    def pids(self) -> dict[str, int | None]:
        """Process ids by member; None for a Toxiproxy that is somebody else's."""
        return {member.value: self._process(member).pid for member in self.members}

    async def watch(self) -> MemberDiedError:
        """Wait until a member ends by itself and say which and why."""
        waits = {asyncio.create_task(self._process(member).wait()): member for member in self.members}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            member = waits[done.pop()]
            return MemberDiedError(member, self._process(member).died())
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _process(self, member: Member) -> ManagedProcess | ProxyProcess:
        match member:
            case Member.STORE:
                return self._postgres
            case Member.DOWNSTREAM:
                return self._downstream
            case Member.TOXIPROXY:
                return self.toxiproxy
            case Member.RELAY:
                return self._relay

    async def _start(self, member: Member) -> None:
        match member:
            case Member.STORE:
                await self._postgres.launch()
            case Member.DOWNSTREAM:
                ready = await self._downstream.start(self._downstream_command())
                self.addresses = replace(self.addresses, downstream=ready["listen"])
            case Member.TOXIPROXY:
                proxy = await self.toxiproxy.start(
                    self.addresses.toxiproxy, self.addresses.proxy, self.addresses.downstream
                )
                api = self.toxiproxy.server.url.removeprefix("http://")
                self.addresses = replace(self.addresses, toxiproxy=api, proxy=proxy.listen)
                await self._make_store_proxy()
            case Member.RELAY:
                ready = await self._relay.start(self._relay_command())
                self.addresses = replace(
                    self.addresses,
                    relay=ready["relay"],
                    relay_admin=ready["admin"],
                    relay_http=ready["http"],
                )

    @property
    def _postgres(self) -> PostgresServer:
        if self._store is None:
            raise RuntimeError("this stack's store is no process of its own")
        return self._store

    async def _make_store_proxy(self) -> None:
        if self._store is None:
            return
        listen = FREE_PORT if self._store_proxy is None else self._store_proxy.listen
        client = self.toxiproxy.client
        self._store_proxy = await asyncio.to_thread(
            client.create, STORE_PROXY_NAME, listen, self._store.address
        )

    async def _remove_store_proxy(self) -> None:
        """A Toxiproxy of somebody else must be left as it was found; ours may be gone already."""
        proxy, self._store_proxy = self._store_proxy, None
        if proxy is not None:
            with contextlib.suppress(ToxiproxyError):
                await asyncio.to_thread(self.toxiproxy.client.delete, STORE_PROXY_NAME)

    def _store_words(self) -> list[str]:
        match self.config.store:
            case StoreEngine.SQLITE:
                return ["--store", f"sqlite:{self.config.store_file}"]
            case StoreEngine.POSTGRES:
                assert self._store_proxy is not None  # noqa: S101 (made before the relay is started)
                return ["--store", url_of(self._store_proxy.listen)]
            case None:
                return []

    def _downstream_command(self) -> list[str]:
        config = self.config
        return [
            *(sys.executable, "-m", "downstream_service", "serve", "--ready-json"),
            *("--listen", self.addresses.downstream),
            *("--ledger", str(config.run_dir / LEDGER_FILE)),
            *("--trace-file", str(config.trace_files[1])),
            *("--seed", str(config.seed)),
            *config.downstream_args,
        ]

    def _relay_command(self) -> list[str]:
        config = self.config
        return [
            *(*config.relay_program, "serve", "--ready-json"),
            *("--listen", self.addresses.relay),
            *("--admin-listen", self.addresses.relay_admin),
            *("--http-listen", self.addresses.relay_http),
            *("--upstream", self.addresses.proxy),
            *("--policy", self.policy),
            *("--trace-file", str(config.trace_files[0])),
            *("--sample-ratio", str(config.sample_ratio)),
            *("--seed", str(config.seed)),
            *self._store_words(),
            *config.relay_args,
        ]

    def _pinned(self) -> Iterator[tuple[str, str]]:
        """The addresses whose port was chosen, by name, except what a joined Toxiproxy holds already."""
        for spec in fields(self.addresses):
            address = getattr(self.addresses, spec.name)
            theirs = self.toxiproxy.joined and spec.name in ("toxiproxy", "proxy")
            if not address.endswith(":0") and not theirs:
                yield spec.name, address


def require_free(name: str, address: str) -> None:
    """Raise `PortBusyError` when somebody listens at the address."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortBusyError(name, address) from None
            raise


def _remove_output_of_an_earlier_run(config: StackConfig) -> None:
    """Ledger, spans and logs are appended to, so what an earlier run left in the folder must go first."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    databases = (config.run_dir / LEDGER_FILE, config.store_file)
    logs = (config.run_dir / "logs").glob("*.log")
    for path in (*databases, *config.trace_files, *logs):
        for part in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            part.unlink(missing_ok=True)
