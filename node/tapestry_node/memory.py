"""Training with as many sequences at a time as fit in memory."""

from collections.abc import Callable
from typing import TypeVar

from tapestry.errors import ConfigError

_T = TypeVar("_T")


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that there is too little memory."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "alloc" in text and "memory" in text)
    )


def fewer_rows(rows: int, error: BaseException) -> int:
    """Return with how many sequences at a time to try again after `rows` were too many.

    Raises:
        ConfigError: There are no fewer.
    """
    if rows == 1:
        raise ConfigError(
            f"{error}; one sequence at a time is too much too: free memory, choose another "
            "[node] device, or ask for shorter sequences"
        ) from error
    return max(1, rows // 2)


class Fitting:
    """Halves the sequences that are held at once until they fit; what has fitted is kept."""

    def __init__(self, whole: int, say: Callable[[str], None]) -> None:
        """Begin with all of a micro-batch.

        Args:
            whole: Sequences of a micro-batch.
            say: Told each time that it is tried with fewer.
        """
        self.rows = 0
        """0: all."""
        self._whole = whole
        self._say = say

    def run(self, train: Callable[[int], _T]) -> _T:
        """Return what `train` returns with as many rows as fit; it begins anew each time.

        Raises:
            ConfigError: One sequence at a time is too much too.
        """
        while True:
            try:
                return train(self.rows)
            except (RuntimeError, MemoryError) as error:
                if not is_memory_error(error):
                    raise
                self.rows = fewer_rows(self.rows or self._whole, error)
            self._say(f"out of memory: the round begins anew with {self.rows} sequences at a time")
