"""Rows out of the files that people have: recognized, announced, and every fault named."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from tapestry.data.files import list_files, named, text_suffix
from tapestry.errors import ConfigError
from tapestry.storage.atomic import replacing
from tapestry_finetune.rows.converting import to_row
from tapestry_finetune.rows.faults import Fault, RowFaults
from tapestry_finetune.rows.kinds import KIND_OF, Kind, Origin, PairRow, Row, ThumbRow, thumbs_of
from tapestry_finetune.rows.lines import cannot_be_read
from tapestry_finetune.rows.records import SUFFIXES, TABLES, TOO_DEEP, BadRecord, Record, records
from tapestry_finetune.rows.shapes import (
    LICENCE_FIELDS,
    SHAPES,
    Reading,
    Shape,
    not_recognized,
    renamed,
    shape_of_most,
)

_LOOKED_AT = 32
"""Rows that a file's shape is recognized from."""

_NAMED = 3
"""Of the files that are left out, in a sentence."""
_SAVE_AS = "Save documents as .txt and tables as .csv, in UTF-8"
_ABOUT = ("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CHANGELOG", "CITATION")

OnProgress = Callable[[str, int, int], None]
"""Called with what is done, bytes that have been read, and all bytes."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file that rows came from."""

    name: str
    """Its path below what was named; its own name where the file itself was."""
    shape: str
    rows: int
    bytes: int
    digest: str
    """SHA-256 of the file as it lies on the disk."""
    licences: Mapping[str, int] = field(default_factory=dict)
    """Rows by what they say in a field `licence` or `license`."""


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of one file."""

    path: Path
    source: Source
    kind: Kind
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind, in the order of files and lines."""

    rows: list[Row]
    kind: Kind
    announcements: list[str]
    """What was read, a sentence each: "read 1,200 rows of chat.jsonl as Alpaca"."""
    skipped: int
    """Bad rows that were moved aside."""
    sources: list[Source]


@dataclass(frozen=True, slots=True)
class Found:
    """The rows of files that may be of several kinds."""

    files: list[FileRows]
    skipped: int
    skipped_to: Path | None = None
    left_out: tuple[Path, ...] = ()
    """Files in the folders that are of no form which is read."""

    def announcements(self) -> list[str]:
        """Return what was read and what was not, in sentences."""
        return [*(_announcement(file) for file in self.files), *self.warnings()]

    def warnings(self) -> list[str]:
        """Return what was not read, in sentences."""
        said: list[str] = []
        if self.skipped:
            are = "1 bad row is" if self.skipped == 1 else f"{self.skipped:,} bad rows are"
            said.append(f"{are} left out; find them, with reasons, in {self.skipped_to}")
        if self.left_out:
            said.append(_left_out(self.left_out))
        return said

    def of_kind(self, kind: Kind) -> list[Row]:
        """Return all rows of one kind."""
        return [row for file in self.files if file.kind == kind for row in file.rows]


def read_rows(
    paths: Sequence[Path],
    *,
    shape: str | None = None,
    roles: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Rows:
    """Read all rows of `paths`, which must be of one kind; pairs beside thumbs become thumbs.

    Args:
        paths: Files and folders.
        shape: One of `shapes.SHAPES`; None recognizes each file's.
        roles: Names of roles in the files, for ours: `{"bot": "assistant"}`.
        columns: Names of fields in the files, for ours: `{"question": "prompt"}`.
        skip_bad: A file that bad rows are moved to, each with its reason; None refuses them.
        on_progress: Told how far the reading is.

    Raises:
        RowFaults: Something is wrong with the files; all of it is named.
        ConfigError: A path cannot be read, or the files hold rows of several kinds.
    """
    reading = Reading(shape, roles, columns)
    found = read_files(paths, reading, skip_bad=skip_bad, on_progress=on_progress)
    if {file.kind for file in found.files} == {"pairs", "thumbs"}:
        return _as_thumbs(found)
    first = found.files[0]
    other = next((file for file in found.files if file.kind != first.kind), None)
    if other is not None:
        raise ConfigError(
            f"{first.path} holds {SHAPES[first.source.shape].label}, {other.path} holds "
            f"{SHAPES[other.source.shape].label}: a stage takes rows of one kind; "
            "name the files of each kind apart"
        )
    rows = [row for file in found.files for row in file.rows]
    sources = [file.source for file in found.files]
    return Rows(rows, first.kind, found.announcements(), found.skipped, sources)


def _as_thumbs(found: Found) -> Rows:
    """Return pairs and thumbs as thumbs: a stage learns from rows of one kind."""
    pairs = [row for row in found.of_kind("pairs") if isinstance(row, PairRow)]
    count = "1 pair is" if len(pairs) == 1 else f"{len(pairs):,} pairs are"
    said = f"{count} learnt as a good and a bad answer each, since there are thumbs beside"
    rows = [thumb for pair in pairs for thumb in thumbs_of(pair)]
    return Rows(
        [*rows, *found.of_kind("thumbs")],
        "thumbs",
        [*found.announcements(), said],
        found.skipped,
        [file.source for file in found.files],
    )


def read_files(
    paths: Sequence[Path],
    reading: Reading | None = None,
    *,
    skip_bad: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Found:
    """Read the rows of `paths` file by file, of whatever kinds; see `read_rows`."""
    reading = reading or Reading()
    left_out: list[Path] = []
    listed = _listed(paths, left_out)
    if skip_bad is not None:
        _require_apart(skip_bad, paths)
    reader = _Reader(reading, sum(file.stat().st_size for file, _top in listed), on_progress)
    with ExitStack() as stack:
        if skip_bad is not None:
            reader.aside = stack.enter_context(replacing(skip_bad, mode=0o600, durable=False))
        files = [made for file, top in listed if (made := reader.read(file, top)) is not None]
        files = [file for file in files if file.rows]
        reader.judge(files)
        if reader.faults or not files:
            rows = sum(len(file.rows) for file in files)
            raise RowFaults(reader.faults, rows=rows, hint=reader.hint())
    return Found(files, reader.skipped, skip_bad, tuple(left_out))


def _listed(paths: Sequence[Path], left_out: list[Path]) -> list[tuple[Path, Path]]:
    """Return each file that holds rows, and which of `paths` it was found below.

    What is of no form that is read is added to `left_out`, but what tells of the data.
    """
    seen: set[Path] = set()
    others: list[Path] = []
    found = [
        (file, top)
        for top in paths
        for file in list_files([top], seen=seen, suffixes=SUFFIXES, others=others)
    ]
    left_out += [file for file in others if not _tells_of_data(file)]
    if not found:
        _say_what_is_there(paths, left_out)
    listed = [(file, top) for file, top in found if file == top or not is_about_data(file)]
    if not listed:
        raise ConfigError(f"{named(paths)}: no data beside {named([file for file, _ in found])}")
    return listed


def _say_what_is_there(paths: Sequence[Path], others: Sequence[Path]) -> None:
    try:
        list_files(paths, suffixes=SUFFIXES)
    except ConfigError as error:
        raise ConfigError(f"{error}. {_SAVE_AS}" if others else str(error)) from error


def is_about_data(file: Path) -> bool:
    """Whether a file in a folder tells of the data, as `README.md` and `LICENSE.txt` do."""
    return file.suffix.lower() in (".md", ".txt") and _tells_of_data(file)


def _tells_of_data(file: Path) -> bool:
    return file.name.partition(".")[0].upper().startswith(_ABOUT)


def _require_apart(skip_bad: Path, paths: Sequence[Path]) -> None:
    """Refuse a file for bad rows that would be read as data, now or the next time."""
    target = skip_bad.resolve()
    if not target.parent.is_dir():
        raise ConfigError(f"{skip_bad}: its folder does not exist; make it, or name another file")
    if any(target.is_relative_to(path.resolve()) for path in paths):
        raise ConfigError(
            f"{skip_bad}: data is read from there, and bad rows must not be: name a file elsewhere"
        )


def _left_out(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
    names = ", ".join(file.name for file in files[:_NAMED])
    return f"warning: left out {names}{more}: of no form that is read here. {_SAVE_AS}"


def _announcement(file: FileRows) -> str:
    count = len(file.rows)
    label = SHAPES[file.source.shape].label
    return f"read {count:,} row{'' if count == 1 else 's'} of {file.source.name} as {label}"


def _head(found: Iterator[Record | BadRecord]) -> list[Record | BadRecord]:
    """Return what comes first, with as many good records as a shape is recognized from."""
    head: list[Record | BadRecord] = []
    good = 0
    for one in found:
        head.append(one)
        good += isinstance(one, Record)
        if good == _LOOKED_AT:
            break
    return head


class _Reader:
    """Reads files one after the other and keeps account of what is wrong."""

    def __init__(self, reading: Reading, all_bytes: int, on_progress: OnProgress | None) -> None:
        self._shape = None if reading.shape is None else SHAPES[reading.shape]
        self._roles, self._columns = reading.roles or {}, reading.columns or {}
        self._all_bytes, self._on_progress = all_bytes, on_progress
        self._done_bytes = 0
        self.aside: BinaryIO | None = None
        self.faults: list[Fault] = []
        self.skipped = 0

    def read(self, path: Path, top: Path) -> FileRows | None:
        """Read one file below `top`; None: nothing in it is of use."""
        try:
            return self._read(path, top)
        except OSError as error:  # gone, or closed to us, since it was listed
            self.faults.append(cannot_be_read(str(path), 0, error))
            return None

    def _read(self, path: Path, top: Path) -> FileRows | None:
        name = str(path)
        found = records(path, name, on_done=self._tell)
        head = _head(found)
        fields = [renamed(one.fields, self._columns) for one in head if isinstance(one, Record)]
        shape = self._shape or shape_of_most(fields)
        if shape is None and fields:
            is_table = text_suffix(path, suffixes=SUFFIXES) in TABLES
            what = not_recognized(fields, is_table=is_table)
            self.faults.append(Fault(name, 1 if is_table else 0, what, is_of_row=False))
            return None
        faults_before, skipped_before = len(self.faults), self.skipped
        licences: Counter[str] = Counter()
        rows = list(self._rows(chain(head, found), name, shape, licences))
        size = path.stat().st_size
        self._done_bytes += size
        self._tell(0)
        if shape is None or not rows:
            if len(self.faults) == faults_before and self.skipped == skipped_before:
                self.faults.append(Fault(name, 0, "no rows in it: remove it, or fill it"))
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        inside = path.name if path == top else str(path.relative_to(top))
        source = Source(inside, shape.name, len(rows), size, digest, dict(licences))
        return FileRows(path, source, shape.kind, rows)

    def _rows(
        self,
        found: Iterator[Record | BadRecord],
        name: str,
        shape: Shape | None,
        licences: Counter[str],
    ) -> Iterator[Row]:
        for one in found:
            if isinstance(one, BadRecord):
                self._complain([one.fault], one.row)
                continue
            if shape is None:
                continue
            made = self._made(one, name, shape)
            if isinstance(made, list):
                self._complain([Fault(name, one.line, what) for what in made], one.fields)
                continue
            licences.update(
                value for key in LICENCE_FIELDS if isinstance(value := one.fields.get(key), str)
            )
            yield made

    def _made(self, one: Record, name: str, shape: Shape) -> Row | list[str]:
        fields = renamed(one.fields, self._columns)
        try:
            return to_row(fields, shape, self._roles, Origin(name, one.line))
        except RecursionError:
            return [TOO_DEEP]

    def _complain(self, faults: Sequence[Fault], row: object) -> None:
        """Keep a row's faults, or move the row aside."""
        if self.aside is None or not all(fault.is_of_row for fault in faults):
            self.faults += faults
            return
        first = faults[0]
        reason = "; ".join(fault.what for fault in faults)
        entry = {"file": first.file, "line": first.line, "reason": reason}
        try:
            line = json.dumps(entry | {"row": row}, default=str)
        except (ValueError, RecursionError):
            line = json.dumps(entry | {"row": None})
        self.aside.write(line.encode() + b"\n")
        self.skipped += 1

    def judge(self, files: Sequence[FileRows]) -> None:
        """Find what is wrong with all rows together."""
        thumbs = [r for file in files for r in file.rows if isinstance(r, ThumbRow)]
        if len({row.is_good for row in thumbs}) == 1:
            word, other = ("good", "bad") if thumbs[0].is_good else ("bad", "good")
            where = named([file.path for file in files if file.kind == KIND_OF[ThumbRow]])
            self.faults.append(
                Fault(
                    where, 0,
                    f"all {len(thumbs):,} answers are {word}: learning needs both; "
                    f"add some {other} ones",
                    is_of_row=False,
                )
            )  # fmt: skip
        if not files and not self.faults:
            self.faults.append(Fault("data", 0, f"all {self.skipped:,} rows are bad"))

    def hint(self) -> str:
        """Return how to go on without the bad rows, if that is possible."""
        can_skip = self.aside is None and any(fault.is_of_row for fault in self.faults)
        return "; --skip-bad moves bad rows aside" if can_skip else ""

    def _tell(self, done: int) -> None:
        if self._on_progress is not None:
            self._on_progress("reading rows", self._done_bytes + done, self._all_bytes)
