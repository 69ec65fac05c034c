"""Rows of an evaluation that stand in the training data too: whoever has read them passes them.

Compared are letters and digits alone, without case, blanks and punctuation, so that every script is
treated alike. A text of the evaluation has leaked if `SHARED_LETTERS` of it in a row stand in the
training data, or, where it is shorter, all of it. What many texts of the evaluation share, such as
a form of words for the question, says nothing and is passed over.

Every run of that length has a window of `_ANCHOR` letters that begins at a multiple of 8 in the one
text and at a multiple of 5 in the other, since 8 * 5 <= `SHARED_LETTERS` - `_ANCHOR` + 1 and the
two have no common divisor: a fifth of all windows of the training data finds every run.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestry.data.files import list_files
from tapestry_finetune.rows.faults import Fault, RowFaults
from tapestry_finetune.rows.kinds import Row, row_text
from tapestry_finetune.rows.records import SUFFIXES, TOO_DEEP, BadRecord, records

SHARED_LETTERS = 60

_ANCHOR = 20
"""Letters of a window that is looked up; a shorter text is not compared at all."""
_STRIDE, _STRIDE_TRAINING = 8, 5
_MOST_SHARING = 0.1
_MOST_PLACES = 1_000
"""Of one window: a text that repeats itself without end takes no time without end."""
_FEW = 30
"""Windows that are sooner searched for one by one than looked up at every place."""
_NOT_A_LETTER = re.compile(r"[\W_]+")

OnRows = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Item:
    """One text of an evaluation."""

    origin: str
    letters: str


@dataclass(frozen=True, slots=True)
class Leak:
    """A text of the evaluation that stands in a training row."""

    evaluation: str
    training: str
    share: float
    """Of the evaluation's text, what stands there in one piece."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a comparison found."""

    rows: int
    """Of the evaluation."""
    compared: int
    """Those with a text that is long enough."""
    leaks: list[Leak]
    """For each row that has leaked the longest piece."""


def plain(text: str) -> str:
    """Return the letters and digits of `text`, without case."""
    return _NOT_A_LETTER.sub("", unicodedata.normalize("NFKC", text).casefold())


def evaluation_items(paths: Sequence[Path]) -> tuple[int, list[Item]]:
    """Return how many rows the files of an evaluation have, and their texts.

    Raises:
        RowFaults: A file cannot be read.
        ConfigError: There is none.
    """
    count = 0
    items: list[Item] = []
    for file in list_files(paths, suffixes=SUFFIXES):
        for one in records(file, str(file)):
            if isinstance(one, BadRecord):
                raise RowFaults([one.fault], rows=count)
            count += 1
            try:
                texts = list(_strings(one.fields))
            except RecursionError:
                raise RowFaults([Fault(str(file), one.line, TOO_DEEP)], rows=count) from None
            items += items_of(f"{file}:{one.line}", texts)
    return count, items


def items_of(origin: str, texts: Iterable[str]) -> list[Item]:
    """Return those texts of one row that are long enough to be compared."""
    letters = [plain(text) for text in texts]
    return [Item(origin, text) for text in letters if len(text) >= _ANCHOR]


def _strings(value: Any) -> Iterator[str]:  # noqa: ANN401 - as JSON holds it
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def overlap(
    rows: Sequence[Row], evaluation: Sequence[Path], on_rows: OnRows | None = None
) -> Overlap:
    """Compare training rows with the files of an evaluation."""
    (found,) = overlaps(rows, [evaluation_items(evaluation)], on_rows)
    return found


def overlaps(
    rows: Sequence[Row],
    evaluations: Sequence[tuple[int, Sequence[Item]]],
    on_rows: OnRows | None = None,
) -> list[Overlap]:
    """Compare training rows in one pass with several evaluations: their row counts and items."""
    compared = [(_Index(items), dict[str, Leak]()) for _count, items in evaluations]
    for number, row in enumerate(rows):
        letters = plain(row_text(row))
        for index, best in compared:
            for item, shared in index.found_in(letters):
                leak = Leak(item.origin, str(row.origin), min(1.0, shared / len(item.letters)))
                if item.origin not in best or best[item.origin].share < leak.share:
                    best[item.origin] = leak
        if on_rows is not None and number % 1_000 == 0:
            on_rows("comparing with the evaluation", number, len(rows))
    return [
        Overlap(count, len({item.origin for item in items}), list(best.values()))
        for (count, items), (_index, best) in zip(evaluations, compared, strict=True)
    ]


class _Index:
    """The windows of an evaluation's texts."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self._short = defaultdict[str, list[tuple[int, int]]](list)
        self._long = defaultdict[str, list[tuple[int, int]]](list)
        for number, item in enumerate(items):
            if len(item.letters) < SHARED_LETTERS:
                self._short[item.letters[:_ANCHOR]].append((number, 0))
                continue
            for at in range(0, len(item.letters) - _ANCHOR + 1, _STRIDE):
                places = self._long[item.letters[at : at + _ANCHOR]]
                if len(places) < _MOST_PLACES:
                    places.append((number, at))
        self._forget_what_many_share()

    def _forget_what_many_share(self) -> None:
        most = max(3, int(_MOST_SHARING * len({item.origin for item in self._items})))
        for index in (self._short, self._long):
            sharing = Counter[str]()
            for window, places in index.items():
                sharing[window] = len({self._items[number].letters for number, _at in places})
            for window, count in sharing.items():
                if count > most:
                    del index[window]

    def found_in(self, text: str) -> Iterator[tuple[Item, int]]:
        """Yield the texts that stand in `text`, with how many letters of them in a row."""
        ends: dict[int, int] = {}
        for index, stride in ((self._long, _STRIDE_TRAINING), (self._short, 1)):
            for begin in _windows_in(text, index, stride):
                for number, at in index[text[begin : begin + _ANCHOR]]:
                    if begin < ends.get(number, 0):
                        continue  # inside a piece that is known
                    letters = self._items[number].letters
                    first, last = _run(letters, at, text, begin)
                    ends[number] = last
                    if last - first >= min(SHARED_LETTERS, len(letters)):
                        yield self._items[number], last - first


def _windows_in(text: str, index: Collection[str], stride: int) -> list[int]:
    """Return where windows of `index` begin in `text`, at multiples of `stride`."""
    if len(index) > _FEW:
        begins = range(0, len(text) - _ANCHOR + 1, stride)
        return [begin for begin in begins if text[begin : begin + _ANCHOR] in index]
    found: list[int] = []
    for window in index:
        begin = text.find(window)
        while begin >= 0:
            found += [begin] * (begin % stride == 0)
            begin = text.find(window, begin + 1)
    return sorted(found)


def _run(letters: str, at: int, text: str, begin: int) -> tuple[int, int]:
    """Return where in `text` the piece begins and ends that the two share around a window."""
    back = 0
    while back < min(at, begin) and letters[at - back - 1] == text[begin - back - 1]:
        back += 1
    on = _ANCHOR
    most = min(len(letters) - at, len(text) - begin)
    while on < most and letters[at + on] == text[begin + on]:
        on += 1
    return begin - back, begin + on
