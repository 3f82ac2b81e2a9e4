"""A coarse timer wheel: deadlines by the ten thousand, set and called off in constant time.

Nearly every deadline is called off before it fires, so what counts is that setting and cancelling cost
little and leave nothing behind. Hashed wheel, after Varghese and Lauck, "Hashed and Hierarchical Timing
Wheels" (SOSP 1987): time is cut into ticks, a timer lies in the slot of its tick modulo the wheel's size.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

TICK_S = 0.004
SLOTS = 1_024

logger = logging.getLogger(__name__)


class _Timer:
    """One entry of a slot; ``slot`` is None once it fired or was called off."""

    __slots__ = ("argument", "callback", "slot", "tick", "wheel")

    def __init__(
        self,
        wheel: "TimerWheel",
        slot: dict["_Timer", None],
        tick: int,
        callback: Callable[[Any], None],
        argument: Any,
    ) -> None:
        self.wheel = wheel
        self.slot: dict[_Timer, None] | None = slot
        self.tick = tick
        self.callback = callback
        self.argument = argument

    def cancel(self) -> None:
        """Harmless when it has fired or was cancelled before."""
        slot = self.slot
        if slot is not None:
            del slot[self]
            self.slot = None
            self.argument = None
            self.wheel.count -= 1


class TimerWheel:
    """Implements `relay_service.ports.Timers` on an asyncio loop.

    Timers never fire early, and at most one tick (4 ms) late on an idle loop; those of one tick fire in
    the order they were set. The loop is woken only for ticks that hold a timer (or once per turn of the
    wheel, about 4 s, for those further off) and not at all when there is none. ``clock`` tells monotonic
    seconds.
    """

    __slots__ = ("_armed", "_armed_tick", "_clock", "_done_tick", "_loop", "_slots", "count")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._slots: list[dict[_Timer, None]] = [{} for _ in range(SLOTS)]
        self._done_tick = int(clock() / TICK_S)
        """The last tick whose timers have all fired."""
        self._armed: asyncio.TimerHandle | None = None
        self._armed_tick = 0
        self.count = 0
        """Timers set and neither fired nor called off."""

    def call_at(self, when: float, callback: Callable[[Any], None], argument: Any) -> _Timer:
        """Call ``callback(argument)`` at the monotonic time ``when``, in seconds."""
        tick = int(when / TICK_S) + 1
        if tick <= self._done_tick:
            tick = self._done_tick + 1
        slot = self._slots[tick % SLOTS]
        timer = _Timer(self, slot, tick, callback, argument)
        slot[timer] = None
        self.count += 1
        if self._armed is None or tick < self._armed_tick:
            self._arm(tick)
        return timer

    def close(self) -> None:
        """Forget all timers; none fires any more."""
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        for slot in self._slots:
            for timer in list(slot):
                timer.cancel()

    def _arm(self, tick: int) -> None:
        if self._armed is not None:
            self._armed.cancel()
        self._armed_tick = tick
        delay_s = tick * TICK_S - self._clock()
        self._armed = self._loop.call_later(max(0.0, delay_s), self._advance)

    def _advance(self) -> None:
        self._armed = None
        now_tick = int(self._clock() / TICK_S)
        # After a stall longer than one turn every slot is due once; more turns would find nothing new.
        first = max(self._done_tick + 1, now_tick - SLOTS + 1)
        self._done_tick = max(now_tick, self._done_tick)
        for tick in range(first, now_tick + 1):
            slot = self._slots[tick % SLOTS]
            if slot:
                self._fire_due(slot, now_tick)
        if self.count:
            self._arm_next()

    def _fire_due(self, slot: dict[_Timer, None], now_tick: int) -> None:
        for timer in [timer for timer in slot if timer.tick <= now_tick]:
            if timer.slot is None:  # called off by one that fired just before it
                continue
            argument = timer.argument
            timer.cancel()
            try:
                timer.callback(argument)
            except Exception:  # one bad callback must not stop the other deadlines
                logger.exception("a timer's callback failed")

    def _arm_next(self) -> None:
        # Armed already when a callback set a timer.
        armed_tick = self._armed_tick if self._armed is not None else self._done_tick + SLOTS
        for tick in range(self._done_tick + 1, armed_tick):
            if self._slots[tick % SLOTS]:
                self._arm(tick)
                return
        if self._armed is None:
            self._arm(armed_tick)
