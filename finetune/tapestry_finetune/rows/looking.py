"""What rows are like: their languages, and which of them repeat others."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tapestry.data.duplicates import exact_duplicates, near_duplicates, sign
from tapestry.data.language import UNKNOWN, identify, kin_of
from tapestry_finetune.rows.kinds import ChatRow, PairRow, Row, TextRow, row_text

SIMILARITY = 0.8
"""From which estimated Jaccard similarity on two rows are near-duplicates."""

_BATCH_BYTES = 2**20

OnRows = Callable[[str, int, int], None]
"""Called with what is done, rows that are done, and all rows."""


@dataclass(frozen=True, slots=True)
class LanguageShare:
    """What of the rows is in one language, by what the model learns to write."""

    language: str
    """ISO 639-3; `und` where it cannot be told."""
    rows: int
    bytes: int
    first: str
    """Where a row in it is."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A row that repeats an earlier one."""

    row: str
    earlier: str
    similarity: float
    """1 where the two are equal."""


def learnt_text(row: Row) -> str:
    """Return what of a row the model learns to write."""
    if isinstance(row, TextRow):
        return row.text
    if isinstance(row, ChatRow):
        return "\n".join(m["content"] for m in row.messages if m["role"] == "assistant")
    return row.chosen if isinstance(row, PairRow) else row.answer


def tags_of(rows: Sequence[Row], on_rows: OnRows | None = None) -> list[str]:
    """Return the language of each row; `und` where it cannot be told."""
    tags: list[str] = []
    for number, row in enumerate(rows):
        tags.append(identify(learnt_text(row)) or UNKNOWN)
        if on_rows is not None and number % 1_000 == 0:
            on_rows("telling languages", number, len(rows))
    return tags


def shares_of(rows: Sequence[Row], tags: Sequence[str]) -> list[LanguageShare]:
    """Return the languages of rows, the one with the most text first."""
    found: dict[str, tuple[int, int, str]] = {}
    for row, tag in zip(rows, tags, strict=True):
        count, size, first = found.get(tag, (0, 0, str(row.origin)))
        found[tag] = (count + 1, size + len(learnt_text(row).encode()), first)
    shares = [LanguageShare(tag, *counted) for tag, counted in found.items()]
    return sorted(shares, key=lambda share: (-share.bytes, share.language))


def main_language(shares: Sequence[LanguageShare]) -> str:
    """Return the language with the most text, of those that can be told; `und` without any."""
    return next((s.language for s in shares if s.language != UNKNOWN), UNKNOWN)


def foreign(shares: Sequence[LanguageShare], declared: str) -> list[LanguageShare]:
    """Return the shares that are surely in another language than `declared`."""
    kin = kin_of(declared) | {UNKNOWN}
    return [share for share in shares if share.language not in kin]


def repeats_of(rows: Sequence[Row], on_rows: OnRows | None = None) -> list[Repeat]:
    """Return the rows that repeat an earlier one, wholly or nearly.

    System prompts are left out of the comparison: many rows may share one.
    """
    if not rows:
        return []
    texts = [_compared_text(row).encode() for row in rows]
    digests = np.array(
        [np.frombuffer(hashlib.sha256(text).digest()[:16], np.uint64) for text in texts]
    )
    originals = exact_duplicates(digests)
    found = [(int(n), int(originals[n]), 1.0) for n in np.flatnonzero(originals >= 0)]
    signatures, can_compare = _signatures(texts, on_rows)
    candidates = np.flatnonzero(can_compare & (originals < 0))
    nearest, similarities = near_duplicates(signatures, candidates, similarity=SIMILARITY)
    found += [
        (int(candidates[place]), int(nearest[place]), float(similarities[place]))
        for place in np.flatnonzero(nearest >= 0)
    ]
    return [
        Repeat(str(rows[number].origin), str(rows[earlier].origin), similarity)
        for number, earlier, similarity in sorted(found)
    ]


def _compared_text(row: Row) -> str:
    if isinstance(row, ChatRow):
        return "\n".join(m["content"] for m in row.messages if m["role"] != "system")
    return row_text(row)


def _signatures(texts: Sequence[bytes], on_rows: OnRows | None) -> tuple[np.ndarray, np.ndarray]:
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    begin = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= _BATCH_BYTES or end == len(texts):
            parts.append(sign(texts[begin:end]))
            begin, size = end, 0
            if on_rows is not None:
                on_rows("looking for duplicates", end, len(texts))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
