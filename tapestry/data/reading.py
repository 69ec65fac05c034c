"""Documents out of an institution's files, streamed: memory stays small, nothing is copied.

`tapestry.data.files` says which files are read and what a document is. Long documents are cut at
line or sentence ends, so that one large file can be split too.

Text comes from `datasets` in blocks of whole lines, and documents are made of them here: its own
lines cost a row each, its paragraphs hold a file without blank lines in memory and overlook blank
lines with a space in them, and its JSON reader guesses types (a text that looks like a date is no
text any more). Compressed files are read through it too.
"""

import tapestry.offline  # noqa: F401 - before datasets is imported

# isort: split
import json
import lzma
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from tapestry.data.cutting import cut_documents
from tapestry.data.files import list_files, named, text_suffix, what_is_read
from tapestry.data.streaming import BROKEN, text_blocks
from tapestry.errors import ConfigError

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

_TEXT_FIELD = "text"
_CONVERT = "convert it, for example with `iconv -f ISO-8859-1 -t UTF-8`, so that no letter is lost"
_ROWS_AT_ONCE = 256
_FAILURES = (
    OSError, ValueError, EOFError, zlib.error, lzma.LZMAError, ZstdError,
    pa.ArrowException, DatasetsError,
)  # fmt: skip

datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)

OnUnreadable = Callable[[Path, int, str], None]
"""Called with a file, a line (0: the rest of the file) and what is wrong there."""

_Complain = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of running text and where it is from."""

    text: str
    source: Path
    line: int = field(default=1, compare=False)
    """Line or row where it begins, from 1."""


def read_documents(
    paths: Sequence[Path], *, on_unreadable: OnUnreadable | None = None
) -> Iterator[Document]:
    """Yield the documents in `paths`, file by file.

    Args:
        paths: Files and folders.
        on_unreadable: Told of what cannot be read, which is left out; without it that is an error.

    Raises:
        ConfigError: Something cannot be read; the message names the file, and the line.
    """
    is_empty = True
    for source, line, text in read_files(list_files(paths), on_unreadable=on_unreadable):
        is_empty = False
        yield Document(text, source, line)
    if is_empty:
        raise ConfigError(f"{named(paths)}: the files hold no text at all; {what_is_read()}")


def read_files(
    files: Iterable[Path], *, on_unreadable: OnUnreadable | None = None
) -> Iterator[tuple[Path, int, str]]:
    """Yield file, line and text of each document of `files`; see `read_documents`."""
    with tempfile.TemporaryDirectory(prefix="tapestry-reading-") as workspace:
        for file in files:
            for line, text in _read_file(file, Path(workspace), on_unreadable):
                yield file, line, text


def _read_file(
    file: Path, workspace: Path, on_unreadable: OnUnreadable | None
) -> Iterator[tuple[int, str]]:
    """Yield the documents of one file, each with its line."""

    def complain(line: int, what: str) -> None:
        if on_unreadable is None:
            raise ConfigError(f"{file}:{line}: {what}" if line else f"{file}: {what}")
        on_unreadable(file, line, what)

    kind = text_suffix(file)
    try:
        if kind == ".parquet":
            if _has_text_column(file, complain):
                yield from _rows(_stream_rows(file, workspace), complain)
            return
        blocks = text_blocks(file, workspace)
        if kind == ".jsonl":
            yield from _json_lines(blocks, complain)
        else:
            yield from _whole_letters(cut_documents(blocks, are_parted=kind == ".txt"), complain)
    except _FAILURES as error:
        complain(0, _why(error))


def _whole_letters(
    documents: Iterable[tuple[int, str]], complain: _Complain
) -> Iterator[tuple[int, str]]:
    """Leave out documents with bytes that are not UTF-8."""
    for line, text in documents:
        if BROKEN in text:
            _complain_of_bytes(line, text, complain)
        else:
            yield line, text


def _complain_of_bytes(line: int, text: str, complain: _Complain) -> None:
    """Name each line with bytes that are not UTF-8."""
    for number, one in enumerate(text.split("\n"), line):
        if (at := one.find(BROKEN)) >= 0:
            complain(number, f"not UTF-8 after letter {at:,} of the line; {_CONVERT}")


def _stream_rows(file: Path, workspace: Path) -> Iterator[Any]:
    """Yield the column `text` of a Parquet file; the link is as in `text_blocks`."""
    link = workspace / "file.parquet"
    link.unlink(missing_ok=True)
    link.symlink_to(file.resolve())
    rows = datasets.load_dataset(
        "parquet",
        data_files={"train": [str(link)]},
        split="train",
        streaming=True,
        cache_dir=str(workspace),
        columns=[_TEXT_FIELD],
        batch_size=_ROWS_AT_ONCE,
    )
    for batch in rows.iter(batch_size=_ROWS_AT_ONCE):
        yield from batch[_TEXT_FIELD]


def _json_lines(blocks: Iterator[str], complain: _Complain) -> Iterator[tuple[int, str]]:
    number = 0
    for block in blocks:
        lines = block.split("\n")
        if not lines[-1]:  # a block ends with its last line's end
            lines.pop()
        for line in lines:
            number += 1
            if line.strip() and (text := _text_of(line, number, complain)) is not None:
                for _line, piece in cut_documents([text], are_parted=False):
                    yield number, piece


def _text_of(line: str, number: int, complain: _Complain) -> str | None:
    """Return the text of a JSON line, or None after a complaint."""
    if BROKEN in line:
        _complain_of_bytes(number, line, complain)
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        cause = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        complain(number, f'not JSON: {cause}; each line must look like {{"{_TEXT_FIELD}": "..."}}')
        return None
    text = row.get(_TEXT_FIELD) if isinstance(row, dict) else None
    if not isinstance(text, str):
        has = ", ".join(sorted(row)[:8]) if isinstance(row, dict) else type(row).__name__
        complain(
            number,
            f'no string field "{_TEXT_FIELD}" (it has: {has}); each line must look like '
            f'{{"{_TEXT_FIELD}": "..."}}',
        )
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON escapes can make half a letter
        complain(
            number,
            f"half a surrogate pair at letter {error.start:,} of the text; "
            "write the letter itself, in UTF-8",
        )
        return None
    return text


def _has_text_column(file: Path, complain: _Complain) -> bool:
    try:
        schema = pq.read_schema(file)
    except pa.ArrowException as error:
        complain(0, f"not a whole Parquet file: {_first_line(error)}; export it again")
        return False
    if _TEXT_FIELD not in schema.names:
        complain(
            0,
            f"no column {_TEXT_FIELD!r}; its columns are {', '.join(schema.names)}: "
            "rename the one that holds the text",
        )
        return False
    return True


def _rows(rows: Iterator[Any], complain: _Complain) -> Iterator[tuple[int, str]]:
    for number, text in enumerate(rows, 1):
        if isinstance(text, str):
            for _line, piece in cut_documents([text], are_parted=False):
                yield number, piece
        else:
            came = "nothing" if text is None else type(text).__name__
            complain(
                number,
                f"{came} where text is expected; fill or drop such rows of the column "
                f"{_TEXT_FIELD!r}",
            )


def _why(error: Exception) -> str:
    """Return one line that says why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "is gone since the files were listed; put it back, or start again without it"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"cannot be read: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
