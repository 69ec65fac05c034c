"""Text files as blocks of whole lines, streamed and decompressed by `datasets`.

`datasets` replaces `open` in the module that holds a builder, by one that reads compressed files;
so the builder has this module for itself.
"""

import tapestry.offline  # noqa: F401 - before datasets is imported

# isort: split
import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets.builder import Key
from datasets.packaged_modules.text.text import Text

BROKEN = "\ufdd0"
"""Stands for bytes that are not UTF-8: a code point that no text has (a Unicode noncharacter)."""

_BLOCK_CHARACTERS = 2**20
_MARKING = "tapestry-mark-broken"


def _mark_broken(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return BROKEN, error.end


codecs.register_error(_MARKING, _mark_broken)


class _Blocks(Text):  # type: ignore[misc]
    """The text builder of `datasets` with a row for each block of lines, not for each line."""

    def _generate_tables(
        self,
        base_files: Any,  # noqa: ANN401, ARG002 - as the library calls it
        files_iterables: Any,  # noqa: ANN401
    ) -> Iterator[tuple[Key, pa.Table]]:
        for files in files_iterables:
            for file in files:
                with open(file, encoding="utf-8", errors=_MARKING) as opened:  # noqa: PTH123
                    number = 0
                    while block := opened.read(_BLOCK_CHARACTERS):
                        block += opened.readline()
                        yield Key(0, number), pa.table({"text": [block]})
                        number += 1


def text_blocks(file: Path, workspace: Path) -> Iterator[str]:
    """Yield the text of `file` in blocks that end with a line; `BROKEN` where it is not UTF-8.

    `datasets` sees a link with a plain name, since it takes `*`, `[` or `::` in names for
    patterns, and keeps its lock files beside that link, not in the user's cache.
    """
    link = workspace / f"file{file.suffix.lower()}"
    link.unlink(missing_ok=True)
    link.symlink_to(file.resolve(strict=True))
    builder = _Blocks(cache_dir=str(workspace), data_files={"train": [str(link)]})
    is_first = True
    for row in builder.as_streaming_dataset(split="train"):
        block: str = row["text"]
        yield block.removeprefix("\ufeff") if is_first else block
        is_first = False
