"""The HTTP port: metrics for Prometheus, probes for an orchestrator, and a page for people."""

import secrets
from collections.abc import Callable, Sequence

from aiohttp import web

from relay_service.config.addresses import TcpAddress, UnixAddress, parse_address
from relay_service.control.binding import BindError, cause_of
from relay_service.control.dashboard import Dashboard
from relay_service.control.descriptors import UpstreamDescriptors
from relay_service.control.sources import HealthSource, StatsSource

REQUEST_BYTES_MAX = 1024
"""Every request here is a GET without a body."""

KEEPALIVE_S = 75.0
"""How long an idle connection is kept; longer than the usual scrape interval."""

STOP_WAIT_S = 1.0
"""How long requests under way may take to finish at a stop."""

MetricsSource = Callable[[str], tuple[str, bytes]]
"""From a request's ``Accept`` header to the content type and the body of the metrics page."""

_NO_STORE = {"Cache-Control": "no-store"}


class HttpServer:
    """``/metrics``, ``/healthz`` (alive), ``/readyz`` (takes calls) and the dashboard at ``/``.

    Plaintext and read-only; nothing is logged or traced per request.
    """

    def __init__(
        self,
        address: str,
        *,
        health: HealthSource,
        stats: StatsSource,
        upstreams: Sequence[UpstreamDescriptors],
        metrics: MetricsSource,
        version: str,
    ) -> None:
        """``address`` is ``host:port`` (port 0 takes a free one) or ``unix:path``."""
        self.address = address
        """After `start` with the port that was really taken."""
        self._health = health
        self._metrics = metrics
        self._dashboard = Dashboard(health=health, stats=stats, upstreams=upstreams, version=version)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen and serve. Raises `BindError`."""
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=STOP_WAIT_S,
        )
        await runner.setup()
        try:
            await self._listen(runner)
        except (OSError, ValueError) as error:
            await runner.cleanup()
            raise BindError("HTTP", self.address, cause_of(error)) from error
        self._runner = runner

    async def stop(self) -> None:
        """Close the port and every connection, within `STOP_WAIT_S` and a moment."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _listen(self, runner: web.AppRunner) -> None:
        match parse_address(self.address):
            case UnixAddress(path=path):
                await web.UnixSite(runner, path).start()
            case TcpAddress(host=host, port=port):
                await web.TCPSite(runner, host, port).start()
                self.address = str(TcpAddress(host, runner.addresses[0][1]))

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=REQUEST_BYTES_MAX)
        application.add_routes(
            [
                web.get("/", self._index),
                web.get("/metrics", self._scrape),
                web.get("/healthz", _alive),
                web.get("/readyz", self._ready),
            ]
        )
        return application

    async def _index(self, _request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; connect-src 'self'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
        )
        return web.Response(
            text=self._dashboard.render(nonce),
            content_type="text/html",
            headers={**_NO_STORE, "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"},
        )

    async def _scrape(self, request: web.Request) -> web.Response:
        content_type, body = self._metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={**_NO_STORE, "Content-Type": content_type})

    async def _ready(self, _request: web.Request) -> web.Response:
        health = self._health.health()
        return web.json_response(
            {
                "ready": health.serving,
                "draining": health.draining,
                "reasons": list(health.reasons),
                "upstreams": {
                    name: "ready" if up else "not ready" for name, up in health.upstreams_ready.items()
                },
            },
            status=200 if health.serving else 503,
            headers=_NO_STORE,
        )


async def _alive(_request: web.Request) -> web.Response:
    """The event loop turns, or this would not be answered."""
    return web.Response(text="ok\n", headers=_NO_STORE)
