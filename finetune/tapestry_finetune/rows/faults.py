"""What is wrong with a file: each fault with file, line and remedy, and all of them at once."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tapestry.cli.bars import printable
from tapestry.errors import ConfigError

MOST_SHOWN = 20
"""Faults in a message."""

_MOST_ALIKE = 3
"""Shown of those that say the same of one file, so that others have room."""
_MOST_CHARACTERS = 60
_NUMBER = re.compile(r"0x[0-9a-f]+|\d[\d,]*")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and what to do."""

    file: str
    line: int
    """From 1; 0 where it is of the file as a whole."""
    what: str
    is_of_row: bool = True
    """Whether leaving out the row mends it; else more of the file is missing than is known."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}" if self.line else f"{self.file}: {self.what}"


class RowFaults(ConfigError):  # noqa: N818 - what it holds
    """Files with faults; the message shows some of every sort and counts the rest."""

    def __init__(self, faults: Sequence[Fault], *, rows: int, hint: str = "") -> None:
        """Report `faults`, found beside so many good `rows`."""
        self.faults = list(faults)
        self.rows = rows
        super().__init__(_message(self.faults, rows, hint))


def _message(faults: Sequence[Fault], rows: int, hint: str) -> str:
    shown = list(_of_every_sort(faults))[:MOST_SHOWN]
    lines = [str(fault) for fault in shown]
    if (rest := len(faults) - len(shown)) > 0:
        lines.append(f"and {rest:,} more like these")
    if len(faults) == 1 and not hint:
        return lines[0]
    good = f"{rows:,} good row{'' if rows == 1 else 's'} beside"
    lines.append(f"{len(faults):,} fault{'' if len(faults) == 1 else 's'}, {good}{hint}")
    return "\n".join(lines)


def _of_every_sort(faults: Iterable[Fault]) -> Iterable[Fault]:
    seen: Counter[tuple[str, str]] = Counter()
    for fault in faults:
        sort = (fault.file, _NUMBER.sub("#", fault.what))
        seen[sort] += 1
        if seen[sort] <= _MOST_ALIKE:
            yield fault


def quoted(value: object) -> str:
    """Return a value out of a file for a message: short, on one line, harmless to a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS - 1]}…"
    if not isinstance(value, str):
        return printable(text)
    return printable(json.dumps(text, ensure_ascii=False))


def named_type(value: object) -> str:
    """Return what a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
