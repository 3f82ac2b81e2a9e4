"""All proxies of a server, by name, and the changes that touch more than one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from chaos.toxiproxy.embedded import api_error
from chaos.toxiproxy.embedded.api_error import ApiError
from chaos.toxiproxy.embedded.proxy import Proxy


@dataclass(frozen=True, slots=True)
class ProxySpec:
    """A proxy as a client asks for it."""

    name: str
    listen: str
    upstream: str
    enabled: bool


class Collection:
    """The proxies by name. Changes that wait (for names, for sockets to close) are made one by one."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._proxies: dict[str, Proxy] = {}
        self._changing = asyncio.Lock()

    def all(self) -> list[Proxy]:
        """Every proxy, by name."""
        return [self._proxies[name] for name in sorted(self._proxies)]

    def get(self, name: str) -> Proxy:
        """The proxy of that name. Raises ApiError."""
        if name not in self._proxies:
            raise api_error.proxy_not_found()
        return self._proxies[name]

    async def create(self, spec: ProxySpec) -> Proxy:
        """Add a proxy. Raises ApiError where the name is taken or the address cannot be had."""
        async with self._changing:
            if spec.name in self._proxies:
                raise api_error.proxy_exists()
            return await self._put(spec)

    async def change(self, name: str, listen: str, upstream: str, enabled: bool) -> Proxy:
        """Give a proxy other addresses, enable or disable it. Raises ApiError."""
        async with self._changing:
            proxy = self.get(name)
            await proxy.change(listen, upstream, enabled)
            return proxy

    async def delete(self, name: str) -> None:
        """Stop a proxy and forget it with its toxics. Raises ApiError."""
        async with self._changing:
            proxy = self.get(name)
            del self._proxies[name]
            await proxy.stop()

    async def populate(self, specs: list[ProxySpec]) -> tuple[list[Proxy], ApiError | None]:
        """Add proxies, replacing those at other addresses; one that does not differ stays, toxics and all.

        Stops at the first failure: what was done until then, and the failure.
        """
        done: list[Proxy] = []
        async with self._changing:
            for spec in specs:
                try:
                    done.append(await self._add_or_replace(spec))
                except ApiError as error:
                    return done, error
        return done, None

    async def reset(self) -> None:
        """Enable every proxy and take away every toxic, in the order of their names.

        Stops at the first that cannot listen: raises its ApiError, and those after it stay as they were.
        """
        async with self._changing:
            for proxy in self.all():
                await proxy.start()
                proxy.remove_all_toxics()

    async def stop(self) -> None:
        """Stop every proxy and forget them."""
        async with self._changing:
            proxies = self.all()
            self._proxies.clear()
            for proxy in proxies:
                await proxy.stop()

    async def _add_or_replace(self, spec: ProxySpec) -> Proxy:
        existing = self._proxies.get(spec.name)
        if existing is not None:
            if not await existing.differs(spec.listen, spec.upstream):
                return existing
            await existing.stop()
        return await self._put(spec)

    async def _put(self, spec: ProxySpec) -> Proxy:
        proxy = Proxy(spec.name, spec.listen, spec.upstream, self._seed)
        if spec.enabled:
            await proxy.start()
        self._proxies[spec.name] = proxy
        return proxy
