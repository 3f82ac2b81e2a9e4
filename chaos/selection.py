"""Some of many calls, without holding them: what a million of them leave room for."""

from collections.abc import Callable, Collection, Iterator

from chaos.history import CallRecord

Meets = Callable[[CallRecord], bool]


def chosen(calls: Collection[CallRecord], meets: Meets) -> Collection[CallRecord]:
    """The calls that meet a condition: gathered when the calls are in memory too, else a `Selection`."""
    if isinstance(calls, (tuple, list)):
        return tuple(call for call in calls if meets(call))
    return Selection(calls, meets)


class Selection(Collection[CallRecord]):
    """Looked for anew by each pass, never kept. State: how many they are, once that was asked."""

    def __init__(self, calls: Collection[CallRecord], meets: Meets) -> None:
        self._calls = calls
        self._meets = meets
        self._count: int | None = None

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def __iter__(self) -> Iterator[CallRecord]:
        return (call for call in self._calls if self._meets(call))

    def __contains__(self, call: object) -> bool:
        return any(each == call for each in self)
