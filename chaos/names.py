"""Many names in little room: which are there, and which are there twice."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise


class Names:
    """A collection of strings as their 64-bit hashes: eight bytes each instead of a hundred.

    A name that is not there is taken for one that is with a chance of one in 10^13 for a million of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._hashes = array("q", sorted(array("q", map(hash, names))))

    def __len__(self) -> int:
        """With those that are there more than once."""
        return len(self._hashes)

    def __contains__(self, name: str) -> bool:
        at = bisect_left(self._hashes, hash(name))
        return at < len(self._hashes) and self._hashes[at] == hash(name)

    def repeated(self) -> "Repeated":
        """Those that are there more than once."""
        return Repeated({first for first, second in pairwise(self._hashes) if first == second})


class Repeated:
    """The few names that `Names` has more than once."""

    def __init__(self, hashes: set[int]) -> None:
        self._hashes = hashes

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def __contains__(self, name: str) -> bool:
        return hash(name) in self._hashes
