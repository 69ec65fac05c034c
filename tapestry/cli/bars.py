"""Progress bars for work that takes long: on a terminal's stderr, and nowhere else.

A bar is drawn from the first thing that is told on, so that a refusal stays one line, and is gone
when the work has ended. Log lines stand above it (`running.log_to_stderr`).
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_STDERR = 2
_SHOW_CURSOR = b"\x1b[?25h"


class Bar:
    """What is told to whoever looks at a terminal."""

    def __init__(self, progress: "Progress | None") -> None:
        """Draw with `progress`; None: nobody looks."""
        self._progress = progress
        self._what = ""

    def show(
        self, what: str, done: float = 0, of: float = 0, *, unit: str = "", note: str = ""
    ) -> None:
        """Show how far the work is.

        Args:
            what: In a few words what is done.
            done: How far it is.
            of: All of it; 0: nobody knows.
            unit: `bytes` for those, else what follows the numbers.
            note: What else is worth a look.
        """
        if self._progress is None:
            return
        what, note = printable(what), printable(note)
        if what != self._what:  # another speed, another time that is left
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(what, total=None, amount="", note="")
            self._what = what
        (task,) = self._progress.task_ids
        amount = _amount(done, of, unit)
        self._progress.update(task, completed=done, total=of or None, amount=amount, note=note)
        self._progress.start()

    def counting(self, what: str, of: float, *, unit: str = "") -> Callable[..., None]:
        """Return what adds an amount, with a note if there is one."""
        done = 0.0

        def add(amount: float, note: str = "") -> None:
            nonlocal done
            done += amount
            self.show(what, done, of, unit=unit, note=note)

        return add


@contextmanager
def bar() -> Iterator[Bar]:
    """Yield a bar for as long as the block runs; one that shows nothing without a terminal."""
    if not sys.stderr.isatty():
        yield Bar(None)
        return
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second to import
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )
    progress = Progress(
        *columns, console=Console(stderr=True), transient=True, refresh_per_second=4
    )
    try:
        yield Bar(progress)
    finally:
        if progress.live.is_started:
            progress.stop()


def restore() -> None:
    """Undo what a bar does to a terminal, for a process that ends at once."""
    if os.isatty(_STDERR):
        os.write(_STDERR, _SHOW_CURSOR)  # past what a bar has put in the place of sys.stderr


def printable(text: str) -> str:
    """Return a text of others' without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _amount(done: float, of: float, unit: str) -> str:
    if unit == "bytes":
        whole = f" of {of / 1e6:,.1f}" if of else ""
        return f"{done / 1e6:,.1f}{whole} MB"
    return f"{done:,.0f} of {of:,.0f} {unit}".rstrip() if of else ""
