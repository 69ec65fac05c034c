"""What the files themselves say of their licence."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tapestry_finetune.rows.reading import FileRows

_NAMES = ("LICENSE", "LICENCE", "COPYING")
_CARD = re.compile(r"^licen[cs]e:\s*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_HEAD_CHARACTERS = 4_096


@dataclass(frozen=True, slots=True)
class Licences:
    """Licences that were found."""

    files: list[str]
    """Files of that name beside the data."""
    said: dict[str, int]
    """What rows and data cards say, with how many rows it is said of."""
    undeclared: list[str]
    """Data files of which nothing says anything."""


def licences_of(files: Sequence[FileRows]) -> Licences:
    """Look for licences beside the data, in data cards, and in the rows."""
    found: dict[str, None] = {}
    said: Counter[str] = Counter()
    undeclared: list[str] = []
    for file in files:
        beside, card = _beside(file.path)
        found |= dict.fromkeys(map(str, beside))
        said.update(file.source.licences)
        if card:
            said[card] += file.source.rows
        if not (beside or card or file.source.licences):
            undeclared.append(str(file.path))
    return Licences(list(found), dict(said), undeclared)


def _beside(path: Path) -> tuple[list[Path], str]:
    """Return the licence files in the folder of a data file, and what its README says."""
    try:
        there = sorted(path.resolve().parent.iterdir())
    except OSError:
        return [], ""
    names = [one for one in there if one.name.partition(".")[0].upper() in _NAMES]
    for card in (one for one in there if one.name.upper() == "README.MD"):
        with card.open(encoding="utf-8", errors="replace") as file:
            match = _CARD.search(file.read(_HEAD_CHARACTERS))
        if match:
            return [path.parent / one.name for one in names], match.group(1)[:80]
    return [path.parent / one.name for one in names], ""
