"""The HTTP port: metrics, probes, and the page for people."""

import asyncio
import socket

import aiohttp
import pytest

from relay_service.control.binding import BindError
from relay_service.control.dashboard import milliseconds, period, shares
from relay_service.control.http import HttpServer
from relay_service.telemetry.metrics import CallTotals

METRICS = b"# HELP relay_calls_total \xc3\xa9\nrelay_calls_total 1.0\n"


@pytest.fixture
async def serve(relay_state):
    running = []

    async def start(
        address: str = "127.0.0.1:0",
        metrics=lambda _accept: ("text/plain; version=0.0.4", METRICS),
        upstreams=(),
    ):
        server = HttpServer(
            address,
            health=relay_state,
            stats=relay_state,
            upstreams=upstreams,
            metrics=metrics,
            version="1.2.3",
        )
        running.append(server)
        await server.start()
        return server

    yield start
    await asyncio.gather(*(server.stop() for server in running))


@pytest.fixture
async def get():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:

        async def request(server: HttpServer, path: str, **headers: str):
            async with session.get(f"http://{server.address}{path}", headers=headers) as answer:
                await answer.read()
                return answer

        yield request


async def test_metrics_are_handed_through_in_the_format_asked_for(serve, get) -> None:
    accepted = []

    def metrics(accept: str) -> tuple[str, bytes]:
        accepted.append(accept)
        return "text/plain; version=0.0.4; charset=utf-8", METRICS

    answer = await get(await serve(metrics=metrics), "/metrics", Accept="application/openmetrics-text")
    assert answer.status == 200
    assert await answer.text() == METRICS.decode()
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert accepted == ["application/openmetrics-text"]


async def test_a_relay_that_is_not_ready_is_alive(serve, get, relay_state) -> None:
    server = await serve()
    relay_state.ready["payments"] = False
    assert (await get(server, "/healthz")).status == 200
    assert (await get(server, "/readyz")).status == 503


async def test_readiness_says_why(serve, get, relay_state) -> None:
    server = await serve()
    answer = await get(server, "/readyz")
    assert answer.status == 200
    assert await answer.json() == {
        "ready": True,
        "draining": False,
        "reasons": [],
        "upstreams": {"payments": "ready"},
    }
    relay_state.draining = True
    answer = await get(server, "/readyz")
    assert answer.status == 503
    assert (await answer.json())["reasons"] == ["the relay is draining"]


async def test_the_page_shows_every_section_and_needs_nothing_from_elsewhere(
    serve, get, relay_state, upstreams, learners
) -> None:
    upstream = await upstreams.with_payments()
    relay_state.with_upstream("payments", upstream.target)
    answer = await get(await serve(upstreams=[await learners.start(upstream.target)]), "/")
    page = await answer.text()
    assert answer.status == 200
    for shown in (
        "Serving",
        "QUEUE_FULL",
        "3 of 100",
        "5 of 5",
        "LEARNED, services: 1",
        "a.B/C",
        "UNAVAILABLE 3",
        "up 1 min 1 s",
        "7.5 of 10",
        "of them SHEDDABLE",
        "HALF_OPEN",
        "28 of 29",
        "12,345",
        "lease ran out",
        "BUDGET 8",
        "42.5 ms",
        "1 READY, 2 RESTING",
        "11 of 10",
        "12.5 ms",
        "a.B/Slow",
        "9 of 10",
    ):
        assert shown in page, shown
    for link in ("/metrics", "/healthz", "/readyz"):
        assert f'href="{link}"' in page
    assert "http://" not in page
    assert "https://" not in page


async def test_what_strangers_name_cannot_become_markup(serve, get, relay_state) -> None:
    relay_state.with_upstream("<b>", "127.0.0.1:1", last_error="<script>alert(1)</script>")
    answer = await get(await serve(), "/")
    page = await answer.text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "script-src 'nonce-" in answer.headers["Content-Security-Policy"]


async def test_each_page_has_a_nonce_of_its_own(serve, get) -> None:
    server = await serve()
    policies = {(await get(server, "/")).headers["Content-Security-Policy"] for _ in range(2)}
    assert len(policies) == 2


async def test_the_page_of_a_relay_that_has_done_nothing_is_whole(serve, get, relay_state) -> None:
    relay_state.calls = CallTotals(0, 0, 0, 0, 0, 0, {})
    relay_state.ready.clear()
    page = await (await get(await serve(), "/")).text()
    assert "no upstream is configured" in page
    assert "none configured" in page
    assert "none in the policy" in page
    assert "refused nothing" in page


async def test_an_unknown_path_is_not_found(serve, get) -> None:
    assert (await get(await serve(), "/nothing")).status == 404


async def test_a_busy_port_is_a_clear_error(serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port} .HTTP.: address already in use"):
            await serve(f"127.0.0.1:{port}")


async def test_an_address_that_is_none_is_a_clear_error(serve) -> None:
    with pytest.raises(BindError, match="must be host:port"):
        await serve("here")


async def test_a_stop_does_not_wait_for_clients_that_stay(serve, get) -> None:
    server = await serve()
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    _, idle = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(5):
        await server.stop()
        await reader.read()
    writer.close()
    idle.close()


async def test_a_stop_does_not_wait_for_a_client_that_does_not_read(serve) -> None:
    written = asyncio.Event()

    def metrics(_accept: str) -> tuple[str, bytes]:
        written.set()
        return "text/plain", b"#" * 50_000_000

    server = await serve(metrics=metrics)
    host, _, port = server.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n")
    async with asyncio.timeout(10):
        await written.wait()
        await server.stop()
    writer.close()


def test_the_shares_of_the_calls_fill_the_bar_once() -> None:
    laid = list(shares(CallTotals(10, 4, 3, 1, 1, 1, {})))
    assert [share.count for share in laid] == [4, 3, 1, 1, 1]
    assert laid[-1].start + laid[-1].width == pytest.approx(100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (3 * 3600 + 60, "3 h 1 min"), (49 * 3600, "2 d 1 h")],
)
def test_a_period_is_told_in_its_two_largest_units(seconds, text) -> None:
    assert period(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 ms"), (0.00123, "1.23 ms"), (0.25, "250 ms"), (2.0, "2000 ms")]
)
def test_a_latency_is_told_in_milliseconds(seconds, text) -> None:
    assert milliseconds(seconds) == text
