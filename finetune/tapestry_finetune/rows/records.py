"""Files as records: the fields of each row, with the line that it begins on.

| suffix         | a record is                                                             |
|----------------|-------------------------------------------------------------------------|
| `.jsonl`       | a line                                                                  |
| `.json`        | an element of the one list, or each of several objects                  |
| `.csv`, `.tsv` | a row below the line that names the columns; `;` and tabs are seen      |
| `.parquet`     | a row                                                                   |
| `.txt`, `.md`  | a block of lines between blank ones; the whole file. Its field is `text` |
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tapestry.data.cutting import cut_documents
from tapestry.data.files import text_suffix
from tapestry_finetune.rows.faults import Fault, named_type, quoted
from tapestry_finetune.rows.lines import (
    LONGEST_LINE_BYTES,
    UNREADABLE,
    DecodedFile,
    Line,
    cannot_be_read,
    no_text,
    opened,
)

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
TABLES = (".csv", ".tsv")
TOO_DEEP = "lists and objects nested too deep: no row needs that"

_LONGEST_JSON_BYTES = 2**30
_BLOCK_CHARACTERS = 2**20
_ROWS_AT_ONCE = 256
_BROKEN = "\ufdd0"
"""Marks a line that cannot be read: a code point that no text has (a Unicode noncharacter)."""

OnDone = Callable[[int], None]
"""Called with the bytes of the file that have been read."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A row, or the rest of the file, that is no record."""

    fault: Fault
    row: Any = None
    """What can be shown of it."""


Found = Iterator[Record | BadRecord]


def records(path: Path, name: str, *, on_done: OnDone | None = None) -> Found:
    """Yield what is in the file at `path`, which messages call `name`."""
    kind = text_suffix(path, suffixes=SUFFIXES)
    line = 0
    try:
        if (wrong := no_text(path, name)) is not None:
            yield BadRecord(wrong)
            return
        found = _parquet(path) if kind == ".parquet" else _of_text(path, kind, name, on_done)
        for one in found:
            yield one
            line = one.line if isinstance(one, Record) else one.fault.line
    except (*UNREADABLE, pa.ArrowException) as error:
        yield BadRecord(cannot_be_read(name, line, error))


def _of_text(path: Path, kind: str, name: str, on_done: OnDone | None) -> Found:
    with opened(path) as file:
        found = {
            ".jsonl": lambda: _json_lines(file, name),
            ".json": lambda: _json_values(file, name),
            ".csv": lambda: _table(file, name, ""),
            ".tsv": lambda: _table(file, name, "\t"),
            ".txt": lambda: _documents(file, name, are_parted=True),
            ".md": lambda: _documents(file, name, are_parted=False),
        }[kind]()
        for number, one in enumerate(found):
            yield one
            if on_done is not None and number % _ROWS_AT_ONCE == 0:
                on_done(file.done_bytes())


class _TwiceError(ValueError):
    """An object has a field twice, and one of the two would be lost."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _value in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _TwiceError(f"the field {quoted(twice)} stands twice in one object: keep one")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _json_lines(file: DecodedFile, name: str) -> Found:
    for line in file.lines():
        if line.fault:
            yield BadRecord(Fault(name, line.number, line.fault), line.text)
        elif line.text.strip():
            yield _json_line(line, name)


def _json_line(line: Line, name: str) -> Record | BadRecord:
    try:
        value = _DECODER.decode(line.text)
    except (ValueError, RecursionError) as error:
        what = f"{_not_json(error, of_line=True)}{_json_hint(line.text)}"
        return BadRecord(Fault(name, line.number, what), line.text)
    if (fields := _fields(value)) is not None:
        return Record(line.number, fields)
    what = f"{named_type(value)} where an object is expected; each line must look like "
    hint = "; is the file one JSON list? Then give its name the ending .json"
    what += f'{{"messages": [...]}}{hint if isinstance(value, list) else ""}'
    return BadRecord(Fault(name, line.number, what), value)


def _fields(value: Any) -> dict[str, Any] | None:  # noqa: ANN401 - as JSON holds it
    """Return the fields of a row; a bare list of turns is taken for its messages."""
    if isinstance(value, dict):
        return value
    is_turns = isinstance(value, list) and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value
    )
    return {"messages": value} if is_turns and value else None


def _not_json(error: Exception, *, of_line: bool) -> str:
    if isinstance(error, json.JSONDecodeError):
        where = f"at column {error.colno:,}" if of_line or error.lineno else ""
        return f"not JSON {where}: {error.msg}"
    if isinstance(error, _TwiceError):
        return str(error)
    return TOO_DEEP if isinstance(error, RecursionError) else f"not JSON: {str(error)[:100]}"


def _json_hint(text: str) -> str:
    """Return what often is behind a line that is no JSON."""
    text = text.strip()
    if text in ("{", "["):
        return "; is it JSON over several lines? Then give the file's name the ending .json"
    if text.startswith("{'"):
        return "; it looks like Python: write it with json.dumps, in double quotes"
    if text.endswith(("},", "],")):
        return "; remove the comma at the line's end"
    return "; each line must be one whole object"


def _json_values(file: DecodedFile, name: str) -> Found:
    """Yield the objects of a JSON list, or those that stand one after the other."""
    parts: list[str] = []
    for line in file.lines(longest_bytes=_LONGEST_JSON_BYTES):
        if line.fault:
            yield BadRecord(Fault(name, line.number, line.fault, is_of_row=False))
            return
        parts.append(line.text)
    text = "\n".join(parts)
    at = _after_blanks(text, 0)
    is_list = text.startswith("[", at)
    at = _after_blanks(text, at + is_list)
    counted, line_number = 0, 1
    while at < len(text) and not (is_list and text[at] == "]"):
        line_number += text.count("\n", counted, at)
        counted = at
        try:
            value, at = _DECODER.raw_decode(text, at)
            at = _after_comma(text, _after_blanks(text, at), is_list=is_list)
        except (ValueError, RecursionError) as error:
            line_number = error.lineno if isinstance(error, json.JSONDecodeError) else line_number
            what = f"{_not_json(error, of_line=False)}; what follows cannot be read"
            yield BadRecord(Fault(name, line_number, what, is_of_row=False))
            return
        if (fields := _fields(value)) is not None:
            yield Record(line_number, fields)
        else:
            what = f"{named_type(value)} where an object with the fields of a row is expected"
            yield BadRecord(Fault(name, line_number, what), value)
    if is_list and (at >= len(text) or _after_blanks(text, at + 1) < len(text)):
        what = "the list never ends" if at >= len(text) else "something follows the list"
        last = text.count("\n", 0, at) + 1
        yield BadRecord(Fault(name, last, f"not JSON: {what}; is the file whole?", is_of_row=False))


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def _after_comma(text: str, at: int, *, is_list: bool) -> int:
    if not is_list or at >= len(text) or text[at] == "]":
        return at
    if text[at] != ",":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    after = _after_blanks(text, at + 1)
    if text.startswith("]", after):
        raise json.JSONDecodeError("a comma before the list's end", text, at)
    return after


def _table(file: DecodedFile, name: str, delimiter: str) -> Found:
    """Yield the rows of a table; `delimiter` "": what parts the names of the columns."""
    csv.field_size_limit(LONGEST_LINE_BYTES)  # the process's; the default refuses long texts
    faults: dict[int, str] = {}
    lines = _noting(file.lines(), faults)
    first = next(lines, "")
    reader = csv.reader(_chained(first, lines), delimiter=delimiter or _parting(first), strict=True)
    columns: list[str] = []
    begin = 1
    while True:
        fields: list[str] = []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            faults.setdefault(begin, _not_csv(error))
        wrong = [(n, faults[n]) for n in range(begin, reader.line_num + 1) if n in faults]
        if not columns and (wrong or fields):
            columns = [column.strip() for column in fields]
            if wrong or (wrong := _bad_header(columns)):
                yield BadRecord(Fault(name, begin, wrong[0][1], is_of_row=False))
                return
        elif wrong:
            for number, what in wrong:
                yield BadRecord(Fault(name, number, what), fields)
        elif any(map(str.strip, fields)) and len(fields) != len(columns):
            what = (
                f"{len(fields)} fields where the header names {len(columns)}: "
                "put a field that has the delimiter or a line end in it between double quotes"
            )
            yield BadRecord(Fault(name, begin, what), fields)
        elif any(map(str.strip, fields)):
            yield Record(begin, dict(zip(columns, fields, strict=True)))
        begin = reader.line_num + 1


def _noting(lines: Iterable[Line], faults: dict[int, str]) -> Iterator[str]:
    for line in lines:
        if line.fault:
            faults[line.number] = line.fault
        yield f"{line.text}\n"


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _parting(header: str) -> str:
    """Return what parts the names of the columns: a comma, if that can be."""
    counts = {mark: len(header.split(mark)) for mark in ",;\t|"}
    return "," if counts[","] > 1 else max(counts, key=lambda mark: counts[mark])


def _not_csv(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a double quote opens a field here and none closes it before the file ends"
    if "new-line character" in str(error):
        return "a line end of old Macs (CR): save the file with the usual line ends"
    return f"not CSV: {error}; write a double quote inside a field twice"


def _bad_header(columns: list[str]) -> list[tuple[int, str]]:
    twice = [column for column in columns if columns.count(column) > 1]
    if not twice:
        return []
    return [(1, f"two columns are named {quoted(twice[0])}: give each a name of its own")]


def _parquet(path: Path) -> Found:
    with pq.ParquetFile(path) as file:
        if not file.metadata.num_rows:
            return
        number = 0
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield Record(
                    number, {key: value for key, value in row.items() if value is not None}
                )


def _documents(file: DecodedFile, name: str, *, are_parted: bool) -> Found:
    faults: dict[int, str] = {}
    for line, text in cut_documents(_blocks(file.lines(), faults), are_parted=are_parted):
        is_marked = _BROKEN in text
        ends = line + text.count("\n") + 1 if is_marked else line
        broken = [number for number in range(line, ends) if number in faults]
        if not broken:
            yield Record(line, {"text": text})
        shown: str | None = text.replace(_BROKEN, "")
        for number in broken:
            yield BadRecord(Fault(name, number, faults[number]), shown)
            shown = None  # once is enough


def _blocks(lines: Iterable[Line], faults: dict[int, str]) -> Iterator[str]:
    block = io.StringIO()
    for line in lines:
        if line.fault:
            faults[line.number] = line.fault
            block.write(_BROKEN)
        block.write(f"{line.text}\n")
        if block.tell() >= _BLOCK_CHARACTERS:
            yield block.getvalue()
            block = io.StringIO()
    yield block.getvalue()
