"""Which documents of an institution's files are kept: filters, languages, duplicates.

One pass over the files writes what passes the filters to a file of text, with a record of about
sixty bytes for each document in memory; duplicates are found from the records and from signatures
on disk. So memory does not grow with the text, and every file is read once.

Whatever is left out has a line in `dropped.jsonl`: source, file, line, why. Text is never in it.
"""

import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tapestry.data import duplicates
from tapestry.data.language import SEVERAL, UNKNOWN, can_identify, identify, kin_of
from tapestry.data.reading import read_files
from tapestry.data.sources import CorpusSpec, Filters
from tapestry.storage.atomic import owned

DROPPED_FILE = "dropped.jsonl"
_TEXT_FILE = "text"
_SIGNATURES_FILE = "signatures"
_BATCH_BYTES = 2**20

RECORD = np.dtype(
    [
        ("source", "u2"),
        ("file", "u4"),
        ("line", "u8"),
        ("start", "u8"),
        ("size", "u4"),
        ("share", "f8"),
        ("digest", "u8", (2,)),
        ("language", "u2"),
        ("can_compare", "?"),
    ]
)

_Found = tuple[int, int, bytes, str]
"""Number of the file, line, text in UTF-8, language."""

OnRead = Callable[[int], None]
"""Called with the bytes of text read so far."""


@dataclass(slots=True)
class SourceReport:
    """What became of one source's documents."""

    name: str
    documents: int = 0
    """As read, those that are unreadable too."""
    text_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents by reason: unreadable, short, long, language, exact, near."""
    languages: dict[str, int] = field(default_factory=dict)
    """Kept documents by language."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sifted:
    """The documents that are kept, and what was not."""

    records: np.ndarray
    """[N] of `RECORD`, those kept, in the order of sources, files, lines."""
    languages: list[str]
    reports: list[SourceReport]
    _text: mmap.mmap | bytes

    def text(self, number: int) -> str:
        """Return the text of a document."""
        start, size = int(self.records["start"][number]), int(self.records["size"][number])
        return self._text[start : start + size].decode()


def shares_of(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return SHA-256 digests [N, 32] as fractions in [0, 1), by their first six bytes."""
    heads = np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0]
    return (heads >> np.uint64(16)).astype(np.float64) / 2**48


@contextmanager
def sifting(
    spec: CorpusSpec,
    files: Sequence[tuple[int, Path]],
    folder: Path,
    *,
    on_read: OnRead | None = None,
) -> Iterator[Sifted]:
    """Sift the documents of `files` in `folder`; only `DROPPED_FILE` is left there afterwards.

    Raises:
        ConfigError: Something cannot be read, and the filters say that this is refused.
    """
    with ExitStack() as stack:
        for name in (_TEXT_FILE, _SIGNATURES_FILE):
            stack.callback((folder / name).unlink, missing_ok=True)
        with ExitStack() as open_files:
            text, signatures, dropped = (
                open_files.enter_context(owned(folder / name))
                for name in (_TEXT_FILE, _SIGNATURES_FILE, DROPPED_FILE)
            )
            sieve = _Sieve(spec, [file for _number, file in files], text, signatures, dropped)
            for number in range(len(spec.sources)):
                sieve.read(number, [f for n, f in files if n == number], on_read)
            text.flush()
            signatures.flush()
            records = sieve.without_duplicates(folder / _SIGNATURES_FILE)
        with (folder / _TEXT_FILE).open("rb") as file:
            content: mmap.mmap | bytes = b""
            if len(records):
                content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        yield Sifted(records, sieve.languages, sieve.reports, content)


class _Sieve:
    """Reads documents in batches, judges each, and keeps account."""

    def __init__(
        self,
        spec: CorpusSpec,
        files: list[Path],
        text: IO[bytes],
        signatures: IO[bytes],
        dropped: IO[bytes],
    ) -> None:
        self._spec, self._filters = spec, spec.filters
        self._files = files
        self._number_of = {file: number for number, file in enumerate(files)}
        self._text, self._signatures, self._dropped = text, signatures, dropped
        self._written = self._read = 0
        self._records: list[np.ndarray] = []
        self.languages: list[str] = []
        self.reports = [SourceReport(source.name) for source in spec.sources]

    def read(self, source: int, files: list[Path], on_read: OnRead | None) -> None:
        """Read all of a source."""
        declared, filters = self._spec.sources[source].language, self._filters
        report = self.reports[source]
        is_checked = bool(declared) and declared != SEVERAL and filters.wrong_language == "drop"
        if is_checked and not can_identify(declared):
            report.notes.append(
                f"whether text is in {declared} cannot be told: none was left out for its language"
            )
            is_checked = False
        kin = kin_of(declared) if is_checked else frozenset()
        batch: list[_Found] = []
        size = 0
        on_unreadable = self._unreadable(source) if filters.unreadable == "skip" else None
        for file, line, text in read_files(files, on_unreadable=on_unreadable):
            data = text.encode()
            size += len(data)
            language = declared or UNKNOWN
            if declared == SEVERAL:
                language = identify(text) or UNKNOWN
            if (reason := _reason(text, kin, filters)) is None:
                batch.append((self._number_of[file], line, data, language))
            else:
                self._drop(source, file, line, *reason)
                report.text_bytes += len(data)
                report.documents += 1
            if size >= _BATCH_BYTES:
                self._keep(source, batch)
                self._read += size
                batch, size = [], 0
                if on_read is not None:
                    on_read(self._read)
        self._keep(source, batch)
        self._read += size

    def _unreadable(self, source: int) -> Callable[[Path, int, str], None]:
        def note(file: Path, line: int, what: str) -> None:
            self.reports[source].documents += 1
            self._drop(source, file, line, "unreadable", {"detail": what})

        return note

    def _drop(
        self, source: int, file: Path, line: int, reason: str, details: dict[str, Any]
    ) -> None:
        report = self.reports[source]
        report.dropped[reason] = report.dropped.get(reason, 0) + 1
        entry = {"source": report.name, "file": str(file), "line": line, "reason": reason}
        self._dropped.write(json.dumps(entry | details, ensure_ascii=False).encode() + b"\n")

    def _keep(self, source: int, batch: list["_Found"]) -> None:
        """Write a batch's text and signatures, and remember its records."""
        if not batch:
            return
        files, lines, texts, languages = zip(*batch, strict=True)
        records = np.zeros(len(batch), RECORD)
        records["source"], records["file"], records["line"] = source, files, lines
        sizes = np.array([len(data) for data in texts], np.uint64)
        records["size"] = sizes
        records["start"] = self._written + np.cumsum(sizes) - sizes
        digests = np.frombuffer(b"".join([sha256(data).digest() for data in texts]), np.uint8)
        digests = digests.reshape(-1, 32)
        records["share"] = shares_of(digests)
        records["digest"] = np.ascontiguousarray(digests[:, :16]).view("<u8")
        numbers = {tag: self._language(tag) for tag in dict.fromkeys(languages)}
        records["language"] = [numbers[tag] for tag in languages]
        self.reports[source].documents += len(batch)
        self.reports[source].text_bytes += int(sizes.sum())
        if self._filters.duplicates == "near":
            signatures, records["can_compare"] = duplicates.sign(texts)
            self._signatures.write(signatures.tobytes())
        self._records.append(records)
        self._text.write(b"".join(texts))
        self._written += int(sizes.sum())

    def _language(self, tag: str) -> int:
        if tag not in self.languages:
            self.languages.append(tag)
        return self.languages.index(tag)

    def without_duplicates(self, signatures: Path) -> np.ndarray:
        """Return the records of what is kept; duplicates are noted as dropped."""
        records = np.concatenate([np.zeros(0, RECORD), *self._records])
        self._records = []
        originals = np.full(len(records), -1, np.int64)
        similarities = np.ones(len(records), np.float32)
        if self._filters.duplicates != "keep" and len(records):
            originals = duplicates.exact_duplicates(records["digest"])
        is_exact = originals >= 0
        if self._filters.duplicates == "near" and len(records):
            shape = (len(records), duplicates.PLACES)
            mapped = np.memmap(signatures, np.uint32, mode="r", shape=shape)
            candidates = np.flatnonzero(records["can_compare"] & ~is_exact)
            originals[candidates], similarities[candidates] = duplicates.near_duplicates(
                mapped, candidates, similarity=self._filters.similarity
            )
        for number in np.flatnonzero(originals >= 0):
            self._drop_duplicate(records, number, originals[number], similarities[number])
        kept = records[originals < 0]
        self._count(kept)
        return kept

    def _drop_duplicate(
        self, records: np.ndarray, number: np.int64, original: np.int64, similarity: np.float32
    ) -> None:
        record, first = records[number], records[original]
        details: dict[str, Any] = {"like": f"{self._files[int(first['file'])]}:{first['line']}"}
        is_exact = bool((record["digest"] == first["digest"]).all())
        if not is_exact:
            details["similarity"] = round(float(similarity), 2)
        reason = "exact" if is_exact else "near"
        file = self._files[int(record["file"])]
        self._drop(int(record["source"]), file, int(record["line"]), reason, details)

    def _count(self, kept: np.ndarray) -> None:
        for number, report in enumerate(self.reports):
            own = kept[kept["source"] == number]
            report.kept, report.kept_bytes = len(own), int(own["size"].sum(dtype=np.int64))
            found, counts = np.unique(own["language"], return_counts=True)
            for language, count in zip(found, counts, strict=True):
                report.languages[self.languages[int(language)]] = int(count)


def _reason(text: str, kin: frozenset[str], filters: Filters) -> tuple[str, dict[str, Any]] | None:
    """Return why a document is left out for itself, with details; None if it is not."""
    if not filters.min_characters <= len(text) <= filters.max_characters:
        what = "short" if len(text) < filters.min_characters else "long"
        return what, {"characters": len(text)}
    if kin and (found := identify(text)) and found not in kin:
        return "language", {"found": found}
    return None


def kept_order(records: np.ndarray, languages: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the numbers of kept documents by language, then by source, else as they came."""
    if not len(records):
        return np.zeros(0, np.int64)
    ranks = np.argsort(np.argsort(languages))
    return np.lexsort((records["source"], ranks[records["language"]]))
