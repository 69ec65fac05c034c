"""Documents out of an institution's files, streamed: memory stays small, nothing is copied.

| suffix     | a document is                                |
|------------|----------------------------------------------|
| `.txt`     | a paragraph block: blank lines part documents |
| `.md`      | a file                                       |
| `.jsonl`   | a line, its field `text`                     |
| `.parquet` | a row, its column `text`                     |

Long documents are cut at line or sentence ends, so that one large file can be split too.
"""

import tapestry.offline  # noqa: F401 - before datasets is imported

# isort: split
import codecs
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from tapestry.errors import ConfigError

LONGEST_DOCUMENT_CHARACTERS = 65_536

_TEXT_FIELD = "text"
_BLOCK_BYTES = 2**20
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"sample_by": "paragraph"}),
    ".md": ("text", {"sample_by": "document"}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
SUFFIXES = tuple(_KINDS)


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of running text and the file it is from."""

    text: str
    source: Path


def list_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that hold text below `paths`, in a fixed order.

    Folders are searched to any depth; hidden files and folders are left out.

    Raises:
        ConfigError: A path is missing or cannot be read, or nothing there holds text.
    """
    files: list[Path] = []
    others: set[str] = set()
    for path in paths:
        for file in _walk(path):
            if file.suffix.lower() in _KINDS:
                files.append(file)
            else:
                others.add(file.suffix or file.name)
    if not files:
        where = ", ".join(str(path) for path in paths)
        found = f" (found only {', '.join(sorted(others)[:5])})" if others else " (it is empty)"
        raise ConfigError(f"{where}: no text{found}; files that are read: {', '.join(SUFFIXES)}")
    return list(dict.fromkeys(files))


def read_documents(paths: Sequence[Path]) -> Iterator[Document]:
    """Yield the documents in `paths`, file by file.

    Raises:
        ConfigError: A file cannot be read; the message names it, and the byte or line.
    """
    is_empty = True
    for file in list_files(paths):
        for text in _read_file(file):
            for piece in split_long(text):
                is_empty = False
                yield Document(piece, file)
    if is_empty:
        raise ConfigError(f"{', '.join(map(str, paths))}: the files hold no text at all")


def split_long(text: str) -> list[str]:
    """Return `text` in pieces of at most `LONGEST_DOCUMENT_CHARACTERS`, without outer blanks."""
    pieces, rest = [], text.strip()
    while len(rest) > LONGEST_DOCUMENT_CHARACTERS:
        cut = _best_cut(rest)
        pieces.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [piece for piece in (*pieces, rest) if piece]


def _best_cut(text: str) -> int:
    """Return where to cut: after the last line, else sentence, else word, else anywhere."""
    head = text[:LONGEST_DOCUMENT_CHARACTERS]
    for mark in ("\n", ". ", "。", "। ", "។", " "):
        at = head.rfind(mark)
        if at > LONGEST_DOCUMENT_CHARACTERS // 2:
            return at + len(mark)
    return LONGEST_DOCUMENT_CHARACTERS


def _walk(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if path.is_file():
        if not os.access(path, os.R_OK):
            raise ConfigError(f"{path}: not readable by this user; check its permissions")
        yield path
        return
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    for entry in entries:
        if not entry.name.startswith(".") and not (entry.is_symlink() and entry.is_dir()):
            yield from _walk(entry)


def _read_file(file: Path) -> Iterator[str]:
    """Yield the texts of one file through `datasets`; an error is explained by a second look."""
    kind, options = _KINDS[file.suffix.lower()]
    if file.stat().st_size == 0:
        return
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        rows = datasets.load_dataset(
            kind, data_files={"train": [str(file)]}, split="train", streaming=True, **options
        )
        for row in rows:
            text = row.get(_TEXT_FIELD)
            if not isinstance(text, str):
                raise ConfigError(_explain(file, f"a row without the text field {_TEXT_FIELD!r}"))
            yield text
    except (OSError, ValueError, pa.ArrowException, DatasetsError) as error:
        raise ConfigError(_explain(file, str(error).splitlines()[0][:200])) from error


def _explain(file: Path, otherwise: str) -> str:
    """Return one line that says what is wrong with `file`, and where."""
    try:
        if file.suffix.lower() == ".parquet":
            return _explain_parquet(file) or f"{file}: cannot be read: {otherwise}"
        return (
            _explain_encoding(file)
            or (_explain_json_lines(file) if file.suffix.lower() == ".jsonl" else None)
            or f"{file}: cannot be read: {otherwise}"
        )
    except OSError as error:
        return f"{file}: cannot be read: {error.strerror}"


def _explain_encoding(file: Path) -> str | None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                at = done - pending + error.start
                return (
                    f"{file}: not UTF-8 at byte {at:,}; convert it, for example with "
                    "`iconv -f ISO-8859-1 -t UTF-8`, so that no letter is lost"
                )
            done += len(block)
    return f"{file}: not UTF-8: it ends within a letter" if decoder.getstate()[0] else None


def _explain_json_lines(file: Path) -> str | None:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                return f"{file}:{number}: not JSON: {error}"
            if not isinstance(row, dict) or not isinstance(row.get(_TEXT_FIELD), str):
                has = ", ".join(sorted(row)[:8]) if isinstance(row, dict) else type(row).__name__
                return (
                    f'{file}:{number}: no string field "{_TEXT_FIELD}" (it has: {has}); each line '
                    f'must look like {{"{_TEXT_FIELD}": "..."}}'
                )
    return None


def _explain_parquet(file: Path) -> str | None:
    try:
        schema = pq.read_schema(file)
    except pa.ArrowException as error:
        return f"{file}: not a whole Parquet file: {str(error).splitlines()[0]}"
    if _TEXT_FIELD not in schema.names:
        return (
            f"{file}: no column {_TEXT_FIELD!r}; its columns are {', '.join(schema.names)}: "
            "rename the one that holds the text"
        )
    return f"{file}: column {_TEXT_FIELD!r} has rows without text"
