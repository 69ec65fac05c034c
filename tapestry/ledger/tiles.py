"""A ledger as static files (C2SP tlog-tiles): any web server that has them is a mirror.

```
checkpoint                the newest head
tile/<level>/<number>     256 digests of 2**(8 * level) entries each
tile/entries/<number>     256 entries, each after its length (two bytes, big-endian)
```

Numbers are spelled in threes, `x001/x234/067`; the last tile of a level, while it is not full, ends
in `.p/<digests in it>`. A file never changes: when a tile is full, it has another name.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from tapestry.errors import UntrustedError
from tapestry.ledger.entries import MAX_ENTRY_BYTES
from tapestry.ledger.merkle import Tree

HEAD_FILE = "checkpoint"
TILE_WIDTH = 256
ENTRIES: Literal["entries"] = "entries"

_TILE_LEVELS = 8
"""Levels of the tree from one tile to the next: 2**8 is its width."""


def tile_path(level: int | Literal["entries"], number: int, width: int = TILE_WIDTH) -> str:
    """Return the name of a tile, or of the entries below one of level 0."""
    if number < 0 or not 1 <= width <= TILE_WIDTH:
        raise ValueError(f"tile {number} of width {width}")
    parts = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        parts.append(f"x{number % 1000:03d}")
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(reversed(parts))}{partial}"


def widths(size: int) -> Iterator[tuple[int, int, int]]:
    """Yield level, number and width of every tile of a tree with `size` leaves, full ones first."""
    level, count = 0, size
    while count > 0:
        for number in range(count // TILE_WIDTH):
            yield level, number, TILE_WIDTH
        if count % TILE_WIDTH:
            yield level, count // TILE_WIDTH, count % TILE_WIDTH
        level, count = level + 1, count // TILE_WIDTH


def tile(tree: Tree, level: int, number: int, width: int) -> bytes:
    """Return the digests of a tile, one after the other."""
    first = number * TILE_WIDTH
    return b"".join(
        tree.subtree(_TILE_LEVELS * level, index) for index in range(first, first + width)
    )


def bundle(entries: Sequence[bytes]) -> bytes:
    """Return entries as the file below a tile of level 0 holds them."""
    return b"".join(len(one).to_bytes(2, "big") + one for one in entries)


def read_bundle(data: bytes, *, what: str) -> list[bytes]:
    """Return the entries in such a file.

    Raises:
        UntrustedError: It is cut short, or an entry is longer than any is.
    """
    entries, offset = [], 0
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 2], "big")
        entry = data[offset + 2 : offset + 2 + length]
        if len(data) - offset < 2 or len(entry) != length or length > MAX_ENTRY_BYTES:
            raise UntrustedError(f"{what}: cut short or damaged at byte {offset}")
        entries.append(entry)
        offset += 2 + length
    if len(entries) > TILE_WIDTH:
        raise UntrustedError(f"{what}: {len(entries)} entries, at most {TILE_WIDTH} go together")
    return entries
