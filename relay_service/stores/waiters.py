"""Waiting for a topic to be woken, without polling: what was committed wakes whoever waits for it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Waiters:
    """Whoever waits, by topic. State: one event per waiter; a topic nobody waits for takes no room."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def listening(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that is set at each wake from now on. Listen first, then look: nothing is missed."""
        event = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[topic]
            events.discard(event)
            if not events:
                del self._waiting[topic]

    def wake(self, topic: str) -> None:
        """Something of this topic was committed."""
        for event in self._waiting.get(topic, ()):
            event.set()

    def wake_all(self) -> None:
        """Notices may have been missed, or the store closes: everybody looks again."""
        for events in self._waiting.values():
            for event in events:
                event.set()


async def woken(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait for the next wake; False when the time ran out."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
