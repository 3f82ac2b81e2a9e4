"""Alerts at a real HTTP receiver: taken, refused, slow, away."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from relay_service.core.alerts import Alert, AlertKind, Severity
from relay_service.telemetry import webhook as webhook_module
from relay_service.telemetry.alerts import AlertDesk
from relay_service.telemetry.webhook import WAITING_MAX, Webhook

ALERT = Alert(AlertKind.BREAKER_OPEN, "bank", Severity.WARNING, "the breaker of bank is open", since=90.0)
BOUND_S = 20.0


class Receiver:
    """Answers with each of ``statuses`` in turn, then 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        status = self.statuses.pop(0) if self.statuses else 204
        self.got.put_nowait(await request.json())
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.got.get(), BOUND_S)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    application = web.Application()
    application.router.add_post("/hook", made.take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield made
    finally:
        await runner.cleanup()


async def until(webhook: Webhook, outcome: str, count: int) -> None:
    async with asyncio.timeout(BOUND_S):
        while webhook.outcomes[outcome] < count:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)


async def test_an_alert_arrives_as_one_json_object(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url)
    delivering = asyncio.create_task(webhook.deliver())
    AlertDesk(webhook, "relay-1").tell(ALERT, now=150.0, unix_s=1_760_000_060.0)
    assert await receiver.next() == {
        "alert": "breaker_open",
        "subject": "bank",
        "severity": "warning",
        "state": "firing",
        "message": "the breaker of bank is open",
        "since": "2025-10-09T08:53:20.000Z",
        "time": "2025-10-09T08:54:20.000Z",
        "relay": "relay-1",
    }
    await until(webhook, "delivered", 1)
    delivering.cancel()


async def test_a_receiver_that_refuses_is_asked_again_and_then_left(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_module, "TRIES_S", (0.0, 0.01, 0.01))
    webhook = Webhook(receiver.url)
    delivering = asyncio.create_task(webhook.deliver())
    receiver.statuses = [503, 302]
    webhook.send({"number": 1})
    assert [await receiver.next() for _ in range(3)] == [{"number": 1}] * 3
    await until(webhook, "delivered", 1)
    receiver.statuses = [500] * 3
    webhook.send({"number": 2})
    await until(webhook, "failed", 1)
    webhook.send({"number": 3})
    await until(webhook, "delivered", 2)
    delivering.cancel()


async def test_a_receiver_that_is_away_costs_old_alerts_and_delays_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook_module, "TRIES_S", (0.0,))
    webhook = Webhook("http://127.0.0.1:1/secret-token")
    for number in range(WAITING_MAX + 5):
        webhook.send({"number": number})
    assert webhook.outcomes["dropped"] == 5
    delivering = asyncio.create_task(webhook.deliver())
    await until(webhook, "failed", WAITING_MAX)
    delivering.cancel()
    assert "secret-token" not in caplog.text
