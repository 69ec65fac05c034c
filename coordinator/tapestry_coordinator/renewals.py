"""Files that are written again some time after what they show has changed."""

import threading
from collections.abc import Callable


class Renewals:
    """Rounds with a file that is older than what it shows; changes may come from any thread."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._lock = threading.Lock()

    def note(self, number: int, *, at: float) -> None:
        """Remember that a round's file is out of date, as of the first change not written yet.

        A change that comes while the file is written is one for the next time: it may have been
        too late for this one.
        """
        with self._lock:
            self._since[number] = min(at, self._since.get(number, at))

    def renew(self, write: Callable[[int], None], *, before: float) -> None:
        """Write the files that have been out of date since `before` or earlier, by number.

        Raises:
            Exception: What `write` raises; that round and those after it stay to be written.
        """
        with self._lock:
            due = sorted(number for number, since in self._since.items() if since <= before)
        for number in due:
            with self._lock:
                since = self._since.pop(number)
            try:
                write(number)
            except BaseException:
                self.note(number, at=since)
                raise
