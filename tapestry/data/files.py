"""Which files below the given paths hold text.

| suffix     | a document is                                 |
|------------|-----------------------------------------------|
| `.txt`     | a block of lines: blank lines part documents  |
| `.md`      | a file                                        |
| `.jsonl`   | a line, its field `text`                      |
| `.parquet` | a row, its column `text`                      |

The first three may be compressed: `.gz`, `.zst`, `.xz`, `.bz2` after the suffix.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tapestry.errors import ConfigError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")


def text_suffix(file: Path, *, suffixes: Sequence[str] = SUFFIXES) -> str:
    """Return which of `suffixes` a file's name has, before that of a compression; "" for none."""
    suffix = file.suffix.lower()
    if suffix in COMPRESSED:
        inner = Path(file.stem).suffix.lower()
        return inner if inner in suffixes and inner != ".parquet" else ""
    return suffix if suffix in suffixes else ""


def list_files(
    paths: Sequence[Path],
    *,
    seen: set[Path] | None = None,
    suffixes: Sequence[str] = SUFFIXES,
    others: list[Path] | None = None,
) -> list[Path]:
    """Return the files that hold text below `paths`, in a fixed order, each once.

    Folders are searched to any depth, through links too; hidden files and folders inside them
    are left out, and so is a link that leads to itself.

    Args:
        paths: Files and folders.
        seen: What another call has returned already: not returned again, and added to.
        suffixes: Of the files that are read.
        others: Where the files that are not read are added.

    Raises:
        ConfigError: A path is missing or cannot be read, or nothing there holds text.
    """
    files: list[Path] = []
    others = [] if others is None else others
    met: set[Path] = set() if seen is None else seen
    for path in paths:
        for file in _walk(path, met):
            if text_suffix(file, suffixes=suffixes):
                files.append(file)
            else:
                others.append(file)
    if not files and seen is None:
        kinds = Counter(file.suffix or file.name for file in others)
        most = [f"{count:,} {name}" if count > 1 else name for name, count in kinds.most_common(5)]
        found = f" (found only {', '.join(sorted(most))})" if others else " (it is empty)"
        raise ConfigError(f"{named(paths)}: no text{found}; {what_is_read(suffixes)}")
    return files


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


def named(paths: Sequence[Path]) -> str:
    """Return paths for a message."""
    return ", ".join(map(str, paths))


def what_is_read(suffixes: Sequence[str] = SUFFIXES) -> str:
    """Return which files hold text, for a message."""
    return f"files that are read: {', '.join(suffixes)}"
