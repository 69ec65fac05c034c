"""Documents out of an institution's files, streamed: memory stays small, nothing is copied.

| suffix     | a document is                                 |
|------------|-----------------------------------------------|
| `.txt`     | a block of lines: blank lines part documents  |
| `.md`      | a file                                        |
| `.jsonl`   | a line, its field `text`                      |
| `.parquet` | a row, its column `text`                      |

Long documents are cut at line or sentence ends, so that one large file can be split too.

Text comes from `datasets` by line, and blocks and JSON are made of lines here: its own paragraphs
hold a file without blank lines in memory and overlook blank lines with a space in them; its JSON
reader guesses types (a text that looks like a date is no text any more).
"""

import tapestry.offline  # noqa: F401 - before datasets is imported

# isort: split
import codecs
import errno
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from tapestry.errors import ConfigError

LONGEST_DOCUMENT_CHARACTERS = 65_536
"""A longer document is cut into pieces, each a document of its own."""

_TEXT_FIELD = "text"
_CONVERT = "convert it, for example with `iconv -f ISO-8859-1 -t UTF-8`, so that no letter is lost"
_BLOCK_BYTES = 2**20
_ROWS_AT_ONCE = 256
_LINES = {
    "path": "text",
    "sample_by": "line",
    "keep_linebreaks": True,
    "encoding": "utf-8-sig",
    "chunksize": _BLOCK_BYTES,
}
_ROWS = {"path": "parquet", "columns": [_TEXT_FIELD], "batch_size": _ROWS_AT_ONCE}
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")

datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of running text and the file it is from."""

    text: str
    source: Path


def list_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that hold text below `paths`, in a fixed order, each once.

    Folders are searched to any depth, through links too; hidden files and folders inside them
    are left out, and so is a link that leads to itself.

    Raises:
        ConfigError: A path is missing or cannot be read, or nothing there holds text.
    """
    files: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[Path] = set()
    for path in paths:
        for file in _walk(path, seen):
            if file.suffix.lower() in SUFFIXES:
                files.append(file)
            else:
                others[file.suffix or file.name] += 1
    if not files:
        named = [
            f"{count:,} {name}" if count > 1 else name for name, count in others.most_common(5)
        ]
        found = f" (found only {', '.join(sorted(named))})" if others else " (it is empty)"
        raise ConfigError(f"{_named(paths)}: no text{found}; {_what_is_read()}")
    return files


def read_documents(paths: Sequence[Path]) -> Iterator[Document]:
    """Yield the documents in `paths`, file by file.

    Raises:
        ConfigError: A file cannot be read; the message names it, and the byte or line.
    """
    is_empty = True
    with tempfile.TemporaryDirectory(prefix="tapestry-reading-") as workspace:
        for file in list_files(paths):
            for text in _read_file(file, Path(workspace)):
                is_empty = False
                yield Document(text, file)
    if is_empty:
        raise ConfigError(f"{_named(paths)}: the files hold no text at all; {_what_is_read()}")


def split_long(parts: Iterable[str]) -> Iterator[str]:
    """Yield the text that `parts` make together in pieces, without outer blanks.

    A piece has at most `LONGEST_DOCUMENT_CHARACTERS`; time is linear, and memory holds one piece
    and one part.
    """
    held: list[str] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size > LONGEST_DOCUMENT_CHARACTERS:
            text, start = "".join(held), 0
            while len(text) - start > LONGEST_DOCUMENT_CHARACTERS:
                cut = _best_cut(text, start)
                yield from _stripped(text[start:cut])
                start = cut
            held, size = [text[start:]], len(text) - start
    yield from _stripped("".join(held))


def _stripped(text: str) -> Iterator[str]:
    if text := text.strip():
        yield text


def _best_cut(text: str, start: int) -> int:
    """Return where to cut: after the last line, else sentence, else word, else anywhere."""
    end = start + LONGEST_DOCUMENT_CHARACTERS
    for mark in ("\n", ". ", "。", "। ", "។", " "):
        at = text.rfind(mark, start + LONGEST_DOCUMENT_CHARACTERS // 2, end)
        if at >= 0:
            return at + len(mark)
    return end


def _walk(path: Path, seen: set[Path], *, is_named: bool = True) -> Iterator[Path]:
    """Yield the files below `path` not yet `seen`; it `is_named` by a person or is in a folder."""
    try:
        mode = path.stat().st_mode
        real = path.resolve()
        entries = sorted(path.iterdir()) if stat.S_ISDIR(mode) else []
    except OSError as error:
        if error.errno == errno.ELOOP and not is_named:
            return
        raise ConfigError(f"{path}: {_why_closed(path, error)}") from error
    if real in seen:
        return
    seen.add(real)
    if stat.S_ISREG(mode):
        if not os.access(path, os.R_OK):
            raise ConfigError(f"{path}: not readable by this user; check its permissions")
        yield path
    elif is_named and not stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: neither a file nor a folder; name one of these")
    for entry in entries:
        if not entry.name.startswith("."):
            yield from _walk(entry, seen, is_named=False)


def _why_closed(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        is_link = path.is_symlink()
        return "a link to nothing; mend or remove it" if is_link else "no such file or folder"
    return f"cannot be read: {error.strerror}; check its permissions"


def _read_file(file: Path, workspace: Path) -> Iterator[str]:
    """Yield the texts of one file; an error of a library is explained by a second look."""
    try:
        match file.suffix.lower():
            case ".txt":
                yield from _blocks(_stream(file, workspace, _LINES))
            case ".md":
                yield from split_long(_stream(file, workspace, _LINES))
            case ".jsonl":
                yield from _json_lines(file, _stream(file, workspace, _LINES))
            case _:
                _require_text_column(file)
                yield from _rows(file, _stream(file, workspace, _ROWS))
    except (OSError, ValueError, pa.ArrowException, DatasetsError) as error:
        raise ConfigError(_explain(file, error)) from error


def _stream(file: Path, workspace: Path, options: dict[str, Any]) -> Iterator[Any]:
    """Yield the column `text` of `file`.

    `datasets` sees a link with a plain name, since it takes `*`, `[` or `::` in names for
    patterns, and keeps its lock files beside that link, not in the user's cache.
    """
    link = workspace / f"file{file.suffix.lower()}"
    link.unlink(missing_ok=True)
    link.symlink_to(file.resolve())
    rows = datasets.load_dataset(
        data_files={"train": [str(link)]},
        split="train",
        streaming=True,
        cache_dir=str(workspace),
        **options,
    )
    for batch in rows.iter(batch_size=_ROWS_AT_ONCE):
        yield from batch[_TEXT_FIELD]


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    """Yield the documents between blank lines; a long one is cut before its end is read."""
    for line in lines:
        if line.strip():
            yield from split_long(_until_blank(line, lines))


def _until_blank(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    for line in lines:
        if not line.strip():
            return
        yield line


def _json_lines(file: Path, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            cause = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ConfigError(
                f"{file}:{number}: not JSON: {cause}; each line must look like "
                f'{{"{_TEXT_FIELD}": "..."}}'
            ) from error
        text = row.get(_TEXT_FIELD) if isinstance(row, dict) else None
        if not isinstance(text, str):
            has = ", ".join(sorted(row)[:8]) if isinstance(row, dict) else type(row).__name__
            raise ConfigError(
                f'{file}:{number}: no string field "{_TEXT_FIELD}" (it has: {has}); each line '
                f'must look like {{"{_TEXT_FIELD}": "..."}}'
            )
        yield from split_long([_whole_letters(text, f"{file}:{number}")])


def _whole_letters(text: str, where: str) -> str:
    """Return `text` unless JSON escapes made half a letter of it, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: half a surrogate pair at letter {error.start:,} of the text; "
            "write the letter itself, in UTF-8"
        ) from error
    return text


def _require_text_column(file: Path) -> None:
    try:
        schema = pq.read_schema(file)
    except pa.ArrowException as error:
        raise ConfigError(
            f"{file}: not a whole Parquet file: {_first_line(error)}; export it again"
        ) from error
    if _TEXT_FIELD not in schema.names:
        raise ConfigError(
            f"{file}: no column {_TEXT_FIELD!r}; its columns are {', '.join(schema.names)}: "
            "rename the one that holds the text"
        )


def _rows(file: Path, rows: Iterator[Any]) -> Iterator[str]:
    for number, text in enumerate(rows, 1):
        if not isinstance(text, str):
            came = "nothing" if text is None else type(text).__name__
            raise ConfigError(
                f"{file}: row {number:,}: {came} where text is expected; "
                f"fill or drop such rows of the column {_TEXT_FIELD!r}"
            )
        yield from split_long([text])


def _explain(file: Path, error: Exception) -> str:
    """Return one line that says what is wrong with `file`, and where."""
    if isinstance(error, OSError) and error.strerror:
        return f"{file}: cannot be read: {error.strerror}"
    if isinstance(error, UnicodeDecodeError) and file.suffix.lower() != ".parquet":
        try:
            return f"{file}: not UTF-8 at byte {_first_foreign_byte(file):,}; {_CONVERT}"
        except OSError as second:
            return f"{file}: cannot be read: {second.strerror}"
    return f"{file}: cannot be read: {_first_line(error)}"


def _first_foreign_byte(file: Path) -> int:
    """Return the offset of the first byte that is not UTF-8, or the size if all are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with file.open("rb") as stream:
        while True:
            block = stream.read(_BLOCK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return done - pending + error.start
            if not block:
                return done
            done += len(block)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _what_is_read() -> str:
    return f"files that are read: {', '.join(SUFFIXES)}"
