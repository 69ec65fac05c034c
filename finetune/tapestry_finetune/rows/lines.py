"""The lines of a file, decompressed and decoded: strict, and never more than one in memory."""

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import charset_normalizer

from tapestry.cli.bars import printable
from tapestry_finetune.rows.faults import Fault, quoted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LONGEST_LINE_BYTES = 2**24
"""A longer one is no row that anybody would train on, and is refused before it fills memory."""
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, ValueError)

_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": zstd.open,
}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAGIC = (
    (b"\x1f\x8b", "compressed with gzip: give its name the ending .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: give its name the ending .zst"),
    (b"\xfd7zXZ", "compressed with xz: give its name the ending .xz"),
    (b"BZh9", "compressed with bzip2: give its name the ending .bz2"),
    (b"PK\x03\x04", "a ZIP archive or a workbook: unpack it, or save the table as CSV (UTF-8)"),
    (b"%PDF-", "a PDF: extract its text into a .txt file first"),
    (b"PAR1", "a Parquet file: give its name the ending .parquet"),
    (b"\xff\xfe", "UTF-16: convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "UTF-16: convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8`"),
)
_GUESSED_FROM_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Line:
    """One line, without its end."""

    number: int
    text: str
    fault: str = ""
    """What is wrong with it; then `text` has U+FFFD where bytes were no UTF-8."""


class DecodedFile:
    """A file's lines; what cannot be decoded is said line by line."""

    def __init__(self, file: IO[bytes], raw: IO[bytes]) -> None:
        self._file, self._raw = file, raw
        self._is_guessed = False

    def done_bytes(self) -> int:
        """Return how much of the file on disk has been read."""
        return self._raw.tell()

    def lines(self, *, longest_bytes: int = LONGEST_LINE_BYTES) -> Iterator[Line]:
        """Yield the lines; longer ones than `longest_bytes` are passed over, with a fault."""
        number = 0
        while data := self._file.readline(longest_bytes + 1):
            number += 1
            if len(data) > longest_bytes and not data.endswith(b"\n"):
                yield Line(number, "", self._skip_long_line(len(data), longest_bytes))
                continue
            if number == 1:
                data = data.removeprefix(_BYTE_ORDER_MARK)
            yield self._decoded(number, data.removesuffix(b"\n").removesuffix(b"\r"))

    def _skip_long_line(self, size: int, longest_bytes: int) -> str:
        while (more := self._file.readline(LONGEST_LINE_BYTES)) and not more.endswith(b"\n"):
            size += len(more)
        return (
            f"a line of {(size + len(more)) / 1e6:,.0f} MB, at most {longest_bytes / 1e6:,.0f} "
            "are read: put each row on a line of its own"
        )

    def _decoded(self, number: int, data: bytes) -> Line:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            return Line(number, data.decode(errors="replace"), self._not_utf8(data, error.start))
        if (at := text.find("\0")) >= 0:
            return Line(
                number,
                text,
                f"a NUL byte after letter {at:,} of the line: remove it (binary data?)",
            )
        return Line(number, text)

    def _not_utf8(self, data: bytes, at: int) -> str:
        found = f"not UTF-8: byte 0x{data[at]:02x} at byte {at + 1:,} of the line"
        if self._is_guessed:
            return found  # the file is in one encoding: what to do is said once
        self._is_guessed = True
        encoding, text = looks_like(data)
        if not encoding:
            return f"{found}; save the file as UTF-8"
        return (
            f"{found}; it looks like {encoding}, as which the line reads {quoted(text)}: if that "
            f"is right, convert the file, for example with `iconv -f {encoding} -t UTF-8`; if not, "
            "it is another encoding, and whoever wrote the file knows which"
        )


def looks_like(data: bytes) -> tuple[str, str]:
    """Return the likeliest encoding of bytes that are not UTF-8, and what they say in it.

    The name is iconv's; "" if there is none. Encodings of one byte a letter differ in few letters:
    only a person can tell whether the guess is right.
    """
    best = charset_normalizer.from_bytes(data[:_GUESSED_FROM_BYTES]).best()
    if best is None or best.encoding in ("utf_8", "ascii"):
        return "", ""
    name = best.encoding.replace("_", "-").upper()
    return f"WINDOWS-{name[2:]}" if name.startswith("CP125") else name, str(best)


@contextmanager
def opened(path: Path) -> Iterator[DecodedFile]:
    """Open a file for reading by lines."""
    with path.open("rb") as raw:
        opener = _OPENERS.get(path.suffix.lower())
        if opener is None:
            yield DecodedFile(raw, raw)
            return
        with opener(raw, "rb") as file:
            yield DecodedFile(file, raw)


def no_text(path: Path, name: str) -> Fault | None:
    """Return what is wrong with a file that is empty or something else than its name says."""
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        return Fault(name, 0, "empty: no row in it")
    if path.suffix.lower() in (*_OPENERS, ".parquet"):
        return None
    what = next((what for magic, what in _MAGIC if head.startswith(magic)), None)
    if what is None and head[1:4:2] == b"\0\0":
        what = "UTF-16 without a mark: convert it, for example with `iconv -f UTF-16LE -t UTF-8`"
    return None if what is None else Fault(name, 0, f"this is {what}", is_of_row=False)


def cannot_be_read(name: str, line: int, error: Exception) -> Fault:
    """Return the fault of a file that ends or breaks before its end."""
    if isinstance(error, EOFError):
        what = "the compressed file ends in the middle: copy or download it again"
    elif isinstance(error, OSError) and error.strerror:
        what = f"cannot be read: {error.strerror}"
    else:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"damaged: {printable(first)[:120]}; copy or export it again"
    where = f"after line {line:,}: " if line else ""
    return Fault(name, 0, f"{where}{what}", is_of_row=False)
