"""The toxics of one direction of one connection, chained in the order added. Pure: no sockets, no clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from chaos.toxiproxy.embedded.stages import END, Chunk, Item, Memory, Stage, Start
from chaos.toxiproxy.embedded.toxics import Toxic

Draws = Callable[[str], random.Random]
"""The random source of one toxic on one link, by the toxic's name: so no toxic disturbs another's draws."""


@dataclass(slots=True)
class _Slot:
    """A toxic's place on the link: the stage that acts now, and what outlives it."""

    toxic: Toxic
    rng: random.Random
    memory: Memory = field(default_factory=Memory)
    stage: Stage = field(default_factory=Stage)

    def redraw(self, now_s: float) -> None:
        """Draw whether the toxic acts on this link, and hand the new stage what the old one held."""
        acts = self.rng.random() < self.toxic.toxicity
        stage = self.toxic.kind.stage(Start(now_s, self.rng, self.memory)) if acts else Stage()
        stage.adopt(self.stage, now_s)
        self.stage = stage


class Pipeline:
    """Put chunks in at one end, take them out at the other when the toxics let them.

    Bounded: it says when it has room, and holds at most what its stages may hold and one chunk more. The
    chain can change at any moment: nothing held is lost or reordered, and where bytes were dropped the link
    ends rather than go on with a hole. Removing a `timeout` always ends it.
    """

    def __init__(self, toxics: Iterable[Toxic], draws: Draws, now_s: float) -> None:
        self._draws = draws
        self._slots: list[_Slot] = []
        self._tail = Stage()  # where a removed last toxic leaves what it held
        self._cut = False  # a stage ended by itself: what comes in now has nowhere to go
        for toxic in toxics:
            self.add(toxic, now_s)

    @property
    def idle(self) -> bool:
        """Nothing held and nobody to hold it: bytes may as well pass by."""
        return not self._slots and not self._cut and self._tail.due_s() is None

    def has_room(self) -> bool:
        """Whether the source should go on reading."""
        return not self._cut and self._stage(0).has_room()

    def put(self, data: bytes, now_s: float) -> None:
        """Take in what was read at `now_s`; after the chain was cut it is dropped."""
        if not self._cut:
            self._stage(0).put(Chunk(data, now_s), now_s)

    def end(self, now_s: float) -> None:
        """Take in that the source has ended."""
        if not self._cut:
            self._stage(0).end(now_s)

    def take(self, now_s: float) -> Item | None:
        """What may leave at `now_s`, one item at a time; None when there is something to wait for."""
        self.advance(now_s)
        return self._tail.take(now_s)

    def advance(self, now_s: float) -> None:
        """Move everything inside as far as time and room allow."""
        while any(self._move(i, now_s) for i in reversed(range(len(self._slots)))):
            pass

    def due_s(self) -> float | None:
        """When something can next move by the passing of time alone, after `advance`; None if never."""
        dues = (slot.stage.due_s() for i, slot in enumerate(self._slots) if self._stage(i + 1).has_room())
        return min((due_s for due_s in dues if due_s is not None), default=None)

    def add(self, toxic: Toxic, now_s: float) -> None:
        """Put a toxic at the end of the chain."""
        self._redraw_before(len(self._slots), now_s)
        slot = _Slot(toxic, self._draws(toxic.name))
        slot.redraw(now_s)
        self._slots.append(slot)

    def update(self, toxic: Toxic, now_s: float) -> None:
        """Give this toxic its new attributes, at once; nothing where the chain was cut after it."""
        index = self._find(toxic.name)
        if index is not None:
            self._slots[index].toxic = toxic
            self._slots[index].redraw(now_s)

    def remove(self, name: str, now_s: float) -> None:
        """Take the toxic of this name out; what it held goes on, or the link ends if the toxic says so."""
        index = self._find(name)
        if index is None:
            return
        slot, following = self._slots[index], self._stage(index + 1)
        if slot.toxic.kind.ends_when_removed:
            self._cut_through(index, now_s)
            return
        del self._slots[index]
        following.adopt(slot.stage, now_s)
        self._redraw_before(index, now_s)

    def _stage(self, index: int) -> Stage:
        return self._slots[index].stage if index < len(self._slots) else self._tail

    def _find(self, name: str) -> int | None:
        return next((i for i, slot in enumerate(self._slots) if slot.toxic.name == name), None)

    def _move(self, index: int, now_s: float) -> bool:
        """Pass on what one stage lets go; whether anything moved."""
        if index >= len(self._slots):
            return False
        following = self._stage(index + 1)
        moved = False
        while following.has_room() and (item := self._slots[index].stage.take(now_s)) is not None:
            moved = True
            if item is END:
                self._cut_through(index, now_s)
                break
            following.put(item, now_s)
        return moved

    def _cut_through(self, index: int, now_s: float) -> None:
        """The stage has ended: drop it and all before it, and end what follows."""
        following = self._stage(index + 1)
        del self._slots[: index + 1]
        self._cut = True
        following.end(now_s)

    def _redraw_before(self, index: int, now_s: float) -> None:
        """A change of the chain draws the toxic before it anew, where there is something to draw."""
        if index > 0 and 0 < self._slots[index - 1].toxic.toxicity < 1:
            self._slots[index - 1].redraw(now_s)
