"""Texts that the benchmarks of localization share: the extra `demo`'s languages, and English."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tapestry_demo.texts import SOURCES, data_files, documents

_ENGLISH_AUTHOR = "Swami Sivananda"
_SHORTEST, _LONGEST = 1_000, 4_000
_COMMA = re.compile(r"\?(?= [a-z])")
"""The package has a question mark where its source had a comma."""


def texts_of(language: str) -> list[str]:
    """Return documents of one language: ind, nya, hin, ukr of the demonstration, or eng.

    English is a commentary in the package that the demonstration's Hindi comes from, without the
    glossary of Sanskrit words before each.
    """
    sources = {source.language: source for source in SOURCES}
    if language != "eng":
        return documents(sources[language])
    root, names = data_files(sources["hin"])
    verses = json.loads((root / names[0]).read_text(encoding="utf-8"))
    comments = [comment for verse in verses for comment in verse["commentaries"]]
    written = [one["description"] for one in comments if one["author"] == _ENGLISH_AUTHOR]
    said = [" ".join(text.partition("Commentary")[2].split()) for text in written]
    return [
        _COMMA.sub(",", text).lstrip("-: ") for text in said if _SHORTEST < len(text) < _LONGEST
    ]


def first(texts: Sequence[str], most_bytes: int) -> list[str]:
    """Return as many of the first texts as fit."""
    kept: list[str] = []
    size = 0
    for text in texts:
        size += len(text.encode())
        if size > most_bytes:
            break
        kept.append(text)
    return kept


def write_documents(path: Path, texts: Sequence[str]) -> Path:
    """Write texts with a blank line between them; return the path."""
    whole = [" ".join(text.split()) for text in texts]
    path.write_text("\n\n".join(whole) + "\n", encoding="utf-8")
    return path
