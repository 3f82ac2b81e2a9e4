"""Alerts sent to a webhook: HTTP POST, one JSON object each, in their order, by a task of its own.

A receiver that is slow or away delays nobody: what cannot be delivered in time is dropped and counted.
"""

import asyncio
import logging
from collections import Counter
from typing import Any

import aiohttp

WAITING_MAX = 100
"""Notifications that wait; past that the oldest goes."""
TRIES_S = (0.0, 1.0, 5.0)
"""How long to wait before each try."""
TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class Webhook:
    """Delivers to one URL, which may hold a secret and is never logged.

    State: what waits, and how the others ended.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(WAITING_MAX)
        self.outcomes: Counter[str] = Counter()
        """``delivered``, ``failed`` (nobody took it, three times) and ``dropped`` (too many waited)."""

    def send(self, notification: dict[str, Any]) -> None:
        """Take a notification; never waits."""
        if self._waiting.full():
            self._waiting.get_nowait()
            self.outcomes["dropped"] += 1
        self._waiting.put_nowait(notification)

    async def deliver(self) -> None:
        """Deliver until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                notification = await self._waiting.get()
                self.outcomes[await self._outcome(session, notification)] += 1

    async def _outcome(self, session: aiohttp.ClientSession, notification: dict[str, Any]) -> str:
        why = ""
        for wait_s in TRIES_S:
            await asyncio.sleep(wait_s)
            why = await self._post(session, notification)
            if not why:
                return "delivered"
        log.warning("an alert could not be delivered to the webhook: %s", why)
        return "failed"

    async def _post(self, session: aiohttp.ClientSession, notification: dict[str, Any]) -> str:
        """One try; empty when it was taken, else why not."""
        try:
            async with session.post(self._url, json=notification, allow_redirects=False) as response:
                return "" if response.status < 300 else f"HTTP {response.status}"
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s"
        except aiohttp.ClientError as error:
            return type(error).__name__
