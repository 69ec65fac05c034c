"""Documents out of running text: parted by blank lines, long ones cut at line or sentence ends."""

import re
from collections.abc import Iterable, Iterator

LONGEST_DOCUMENT_CHARACTERS = 65_536
"""A longer document is cut into pieces, each a document of its own."""

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def split_long(parts: Iterable[str]) -> Iterator[str]:
    """Yield the text that `parts` make together in pieces, without outer blanks.

    A piece has at most `LONGEST_DOCUMENT_CHARACTERS`; time is linear, and memory holds one piece
    and one part.
    """
    for _line, text in cut_documents(parts, are_parted=False):
        yield text


def cut_documents(blocks: Iterable[str], *, are_parted: bool) -> Iterator[tuple[int, str]]:
    """Yield documents with the line where each begins; those of `.txt` `are_parted` by blanks."""
    line, held = 1, ""
    for block in blocks:
        text, start = held + block, 0
        if are_parted:
            for blank in _BLANK_LINES.finditer(text):
                end = blank.start()
                if end - start > LONGEST_DOCUMENT_CHARACTERS:
                    yield from _pieces(text[start:end], line)
                elif start < end and (kept := text[start:end].strip()):
                    yield line + _blank_lines(text, start), kept
                line += text.count("\n", start, blank.end())
                start = blank.end()
        while len(text) - start > LONGEST_DOCUMENT_CHARACTERS:
            cut = _best_cut(text, start)
            yield from _pieces(text[start:cut], line)
            line += text.count("\n", start, cut)
            start = cut
        held = text[start:]
    yield from _pieces(held, line)


def _pieces(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield a whole document, cut where it is too long."""
    start = 0
    while start < len(text):
        is_long = len(text) - start > LONGEST_DOCUMENT_CHARACTERS
        cut = _best_cut(text, start) if is_long else len(text)
        if kept := text[start:cut].strip():
            yield line + _blank_lines(text, start), kept
        line += text.count("\n", start, cut)
        start = cut


def _blank_lines(text: str, start: int) -> int:
    """Return how many lines of blanks come before the first letter from `start` on."""
    if not text[start].isspace():
        return 0
    blanks = len(text) - start - len(text[start:].lstrip())
    return text.count("\n", start, start + blanks)


def _best_cut(text: str, start: int) -> int:
    """Return where to cut: after the last line, else sentence, else word, else anywhere."""
    end = start + LONGEST_DOCUMENT_CHARACTERS
    for mark in ("\n", ". ", "。", "। ", "។", " "):
        at = text.rfind(mark, start + LONGEST_DOCUMENT_CHARACTERS // 2, end)
        if at >= 0:
            return at + len(mark)
    return end
