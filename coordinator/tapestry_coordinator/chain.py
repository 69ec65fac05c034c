"""Manifests in a row, read from the database when they are looked at and not kept.

A federation of a hundred members has a manifest of fifty kilobytes for every round that ever was.
Whoever walks along them needs a few at a time, and most need the first and the last.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from tapestry.identity.envelopes import Envelope

_BATCH = 16
"""Manifests that are in memory while somebody walks along the chain."""


class Links(Sequence[Envelope]):
    """What chains have in common; subclasses say how many links there are, and read some."""

    @overload
    def __getitem__(self, index: int) -> Envelope: ...

    @overload
    def __getitem__(self, index: slice) -> list[Envelope]: ...

    def __getitem__(self, index: int | slice) -> Envelope | list[Envelope]:
        """Read one link, or several."""
        if isinstance(index, slice):
            return [self._link(number) for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"link {index} of a chain of {len(self)}")
        return self._link(number)

    def _link(self, number: int) -> Envelope:
        raise NotImplementedError


class Chain(Links):
    """Recorded manifests from genesis on: as many as there were when the chain was taken."""

    def __init__(self, read: Callable[[int, int], Sequence[Envelope]], length: int) -> None:
        """Have `read` return the manifests from one round up to, not including, another."""
        self._read = read
        self._length = length

    def __len__(self) -> int:
        """Count them."""
        return self._length

    def __iter__(self) -> Iterator[Envelope]:
        """Read them in order, some at a time."""
        for begin in range(0, self._length, _BATCH):
            yield from self._read(begin, min(begin + _BATCH, self._length))

    def _link(self, number: int) -> Envelope:
        (envelope,) = self._read(number, number + 1)
        return envelope


class Followed(Links):
    """A chain, and one manifest more that is not recorded yet."""

    def __init__(self, before: Sequence[Envelope], last: Envelope) -> None:
        """Put `last` behind `before`."""
        self._before = before
        self._last = last

    def __len__(self) -> int:
        """Count all."""
        return len(self._before) + 1

    def __iter__(self) -> Iterator[Envelope]:
        """Read them in order."""
        yield from self._before
        yield self._last

    def _link(self, number: int) -> Envelope:
        return self._last if number == len(self._before) else self._before[number]
