"""A client for Toxiproxy's HTTP API, for the real server and the embedded one alike.

Blocking: from a coroutine call it through `asyncio.to_thread`. Clients of different servers live side by
side in one process, and a client may be used by several threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from toxiproxy.toxic import Toxic as PackageToxic

from chaos.toxiproxy import errors
from chaos.toxiproxy.transport import Transport, path

TIMEOUT_S: Final = 5.0

Stream = Literal["upstream", "downstream"]


@dataclass(frozen=True, slots=True)
class Toxic:
    """A toxic as the server last showed it. `toxicity` is the chance, per link, that it acts."""

    name: str
    type: str
    stream: str
    toxicity: float
    attributes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, shown: Mapping[str, Any]) -> Toxic:
        """Read a toxic of the API."""
        toxic = PackageToxic(**shown)  # type: ignore[no-untyped-call]  # the package has no types
        return cls(toxic.name, toxic.type, toxic.stream, toxic.toxicity, toxic.attributes)


@dataclass(frozen=True, slots=True)
class ProxySpec:
    """A proxy to be made: `listen` and `upstream` are `host:port`, port 0 takes a free one."""

    name: str
    listen: str
    upstream: str
    enabled: bool = True

    def to_json(self) -> dict[str, object]:
        """As the API takes it."""
        return {
            "name": self.name,
            "listen": self.listen,
            "upstream": self.upstream,
            "enabled": self.enabled,
        }


class Proxy:
    """A proxy of a server. Its attributes are what the server last said; `refresh` asks again.

    Every method sends one request and raises RequestError where it fails.
    """

    def __init__(self, transport: Transport, shown: Mapping[str, Any]) -> None:
        self._transport = transport
        self._see(shown)

    def __repr__(self) -> str:
        state = "enabled" if self.enabled else "disabled"
        return f"<Proxy {self.name}: {self.listen} -> {self.upstream}, {state}>"

    def refresh(self) -> None:
        """Read the attributes anew."""
        self._see(self._transport.json("get", self._path()))

    def enable(self) -> None:
        """Listen again."""
        self._update({"enabled": True})

    def disable(self) -> None:
        """Close the listener and every connection; new clients are refused. The toxics stay."""
        self._update({"enabled": False})

    def move(self, upstream: str) -> None:
        """Forward to another upstream from now on; this closes the live connections."""
        self._update({"upstream": upstream})

    def toxics(self) -> list[Toxic]:
        """The toxics: upstream ones first, each direction in the order added."""
        return [Toxic.from_json(shown) for shown in self._transport.json("get", self._path("toxics"))]

    def add_toxic(
        self,
        type: str,  # noqa: A002  the API's word, and the first thing a reader looks for
        *,
        stream: Stream = "downstream",
        name: str | None = None,
        toxicity: float = 1.0,
        **attributes: int,
    ) -> Toxic:
        """Add a toxic to the end of its direction's chain; it acts on live connections at once.

        Without a name it is called `type_stream`. Attributes are the API's: milliseconds for latency, jitter,
        timeout and the delay of slow_close, KB/s for rate, microseconds for the delay of slicer.
        """
        body = {
            "type": type,
            "stream": stream,
            "name": name or f"{type}_{stream}",
            "toxicity": toxicity,
            "attributes": attributes,
        }
        return Toxic.from_json(self._transport.json("post", self._path("toxics"), body))

    def update_toxic(self, name: str, *, toxicity: float | None = None, **attributes: int) -> Toxic:
        """Change some attributes of a toxic, its toxicity, or both; the rest stays."""
        body: dict[str, object] = {"attributes": attributes}
        if toxicity is not None:
            body["toxicity"] = toxicity
        return Toxic.from_json(self._transport.json("patch", self._path("toxics", name), body))

    def remove_toxic(self, name: str) -> None:
        """Take a toxic away, at once. Removing a `timeout` closes every connection."""
        self._transport.request("delete", self._path("toxics", name))

    @contextmanager
    def toxic(
        self,
        type: str,  # noqa: A002  as in add_toxic
        *,
        stream: Stream = "downstream",
        name: str | None = None,
        toxicity: float = 1.0,
        **attributes: int,
    ) -> Iterator[Toxic]:
        """Add a toxic for the length of a `with` block; one that is gone by then (a reset) is fine."""
        added = self.add_toxic(type, stream=stream, name=name, toxicity=toxicity, **attributes)
        try:
            yield added
        finally:
            with suppress(errors.NotFoundError):
                self.remove_toxic(added.name)

    def _path(self, *segments: str) -> str:
        return path("proxies", self.name, *segments)

    def _update(self, change: Mapping[str, object]) -> None:
        self._see(self._transport.json("patch", self._path(), change))

    def _see(self, shown: Mapping[str, Any]) -> None:
        self.name: str = shown["name"]
        self.listen: str = shown["listen"]
        self.upstream: str = shown["upstream"]
        self.enabled: bool = shown["enabled"]


class ToxiproxyClient:
    """A Toxiproxy server, by its URL (`http://host:port`).

    Every method sends one request, waits at most `timeout_s` to connect and again for the answer, and raises
    RequestError where it fails.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._transport = Transport(url, timeout_s)
        self.url = self._transport.url

    def __repr__(self) -> str:
        return f"<ToxiproxyClient {self.url}>"

    def version(self) -> str:
        """The version the server says it is."""
        answer = self._transport.json("get", "/version")
        if not isinstance(answer, dict) or "version" not in answer:
            raise errors.UnreachableError(f"GET {self.url}/version", f"no Toxiproxy: it said {answer!r}")
        return str(answer["version"])

    def server_header(self) -> str:
        """What the server's HTTP answers name as their maker; the real Toxiproxy names none."""
        return self._transport.request("get", "/version").headers.get("Server", "")

    def proxies(self) -> dict[str, Proxy]:
        """Every proxy, by name."""
        shown = self._transport.json("get", "/proxies")
        return {name: Proxy(self._transport, each) for name, each in shown.items()}

    def create(self, name: str, listen: str, upstream: str) -> Proxy:
        """Make a proxy that listens at once; `listen` with port 0 takes a free port, told by the answer."""
        body = ProxySpec(name, listen, upstream).to_json()
        return Proxy(self._transport, self._transport.json("post", "/proxies", body))

    def get(self, name: str) -> Proxy:
        """The proxy of that name."""
        return Proxy(self._transport, self._transport.json("get", path("proxies", name)))

    def delete(self, name: str) -> None:
        """Close a proxy and forget it with its toxics."""
        self._transport.request("delete", path("proxies", name))

    def populate(self, specs: Sequence[ProxySpec]) -> list[Proxy]:
        """Make sure these proxies exist: at the same addresses one stays, toxics and all."""
        answer = self._transport.json("post", "/populate", [spec.to_json() for spec in specs])
        return [Proxy(self._transport, shown) for shown in answer["proxies"] or []]

    def reset(self) -> None:
        """Enable every proxy and take away every toxic."""
        self._transport.request("post", "/reset")
