"""Read the next piece while this one is worked on."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """A function of an index, called in order: the value after the one asked for is made ready.

    Holds one value more than its caller. Reading and hashing release the interpreter, so that a
    second core does both.
    """

    def __init__(self, read: Callable[[int], T], *, count: int, threads: Executor) -> None:
        """Read by `read`, whose indices are 0 to `count` - 1, in one of `threads`."""
        self._read = read
        self._count = count
        self._threads = threads
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, index: int) -> T:
        """Return the value at `index`; raises what `read` raises."""
        ready = self._next
        if ready is None or ready[0] != index:
            ready = (index, self._threads.submit(self._read, index))
        self._next = None
        if index + 1 < self._count:
            self._next = (index + 1, self._threads.submit(self._read, index + 1))
        return ready[1].result()
