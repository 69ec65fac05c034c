"""A folder that holds a ledger as static files: the coordinator's, a member's copy, a mirror."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tapestry.errors import UntrustedError
from tapestry.ledger.heads import SignedHead, open_head
from tapestry.ledger.merkle import Tree
from tapestry.ledger.notes import MAX_NOTE_BYTES
from tapestry.ledger.tiles import (
    ENTRIES,
    HEAD_FILE,
    TILE_WIDTH,
    bundle,
    read_bundle,
    tile,
    tile_path,
    widths,
)
from tapestry.storage.atomic import write_atomic

GENESIS_FILE = "genesis.json"
"""Beside the files that C2SP names: the genesis manifest, which says whose ledger it is."""

_MAX_BUNDLE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredLedger:
    """A ledger as it was read, with the root that its head signs."""

    head: SignedHead
    entries: list[bytes]
    tree: Tree


class LedgerFolder:
    """Reads and writes the files."""

    def __init__(self, path: Path) -> None:
        """At `path`, which need not be there yet."""
        self.path = path

    @property
    def head_file(self) -> Path:
        """The newest head; written last, so that whoever reads it finds the rest."""
        return self.path / HEAD_FILE

    def write(
        self, tree: Tree, entries: Callable[[int, int], Sequence[bytes]], head: SignedHead
    ) -> None:
        """Write what is missing up to a head, and then the head.

        Args:
            tree: With at least as many leaves as the head says.
            entries: Returns those from one index up to, not including, another.
            head: The newest.

        Raises:
            OSError: The disk is full; the old head and all that belongs to it are there.
        """
        for level, number, width in widths(head.head.size):
            self._write(tile_path(level, number, width), partial(tile, tree, level, number, width))
            if level == 0:
                first = number * TILE_WIDTH
                name = tile_path(ENTRIES, number, width)
                self._write(name, partial(_bundle_of, entries, first, first + width))
        self.write_head(head)
        self._drop_partial(head.head.size)

    def write_head(self, head: SignedHead) -> None:
        """Write a head whose tiles are there, perhaps with more cosignatures."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.head_file, head.body)

    def _write(self, name: str, content: Callable[[], bytes]) -> None:
        target = self.path / name
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, content())

    def _drop_partial(self, size: int) -> None:
        """Remove what a full tile has taken the place of."""
        for level, number, width in widths(size):
            if width == TILE_WIDTH:
                levels = (level, ENTRIES) if level == 0 else (level,)
                for one in levels:
                    shutil.rmtree(self.path / f"{tile_path(one, number)}.p", ignore_errors=True)

    def read_head(self, *, origin: str, public_key: bytes) -> SignedHead:
        """Return the head, once the coordinator's signature is verified.

        Raises:
            UntrustedError: It is missing, another ledger's, or altered.
        """
        data = read_at_most(self.head_file, at_most=MAX_NOTE_BYTES)
        return open_head(data, origin=origin, public_key=public_key, what=str(self.head_file))

    def read(self, *, origin: str, public_key: bytes) -> StoredLedger:
        """Return the whole ledger, if its entries have the root that the head signs.

        Raises:
            UntrustedError: A file is missing or damaged; the message names it.
        """
        head = self.read_head(origin=origin, public_key=public_key)
        tree, entries = Tree(), list[bytes]()
        for level, number, width in widths(head.head.size):
            if level == 0:
                path = self.path / tile_path(ENTRIES, number, width)
                found = read_bundle(read_at_most(path, at_most=_MAX_BUNDLE_BYTES), what=str(path))
                if len(found) != width:
                    raise UntrustedError(f"{path}: {len(found)} entries, expected {width}")
                entries += found
        for entry in entries:
            tree.append(entry)
        if tree.root() != head.head.root:
            raise UntrustedError(
                f"{self.path}: the {head.head.size:,} entries do not have the root that the head "
                f"signs{self._first_wrong_tile(tree, head.head.size)}"
            )
        return StoredLedger(head, entries, tree)

    def bundle(self, number: int) -> list[bytes]:
        """Return the entries below a full tile.

        Raises:
            UntrustedError: The file is missing or damaged.
        """
        path = self.path / tile_path(ENTRIES, number)
        return read_bundle(read_at_most(path, at_most=_MAX_BUNDLE_BYTES), what=str(path))

    def forget_tiles(self) -> None:
        """Remove everything but the head, to be written again."""
        shutil.rmtree(self.path / "tile", ignore_errors=True)

    def require_tiles(self, stored: StoredLedger) -> int:
        """Compare every file of digests with the entries; return how many there are.

        Raises:
            UntrustedError: One is missing or damaged; the message names it.
        """
        count = 0
        for level, number, width in widths(stored.head.head.size):
            path = self.path / tile_path(level, number, width)
            if read_at_most(path, at_most=_MAX_BUNDLE_BYTES) != tile(
                stored.tree, level, number, width
            ):
                raise UntrustedError(f"{path}: not the digests of the entries below it")
            count += 1
        return count

    def _first_wrong_tile(self, tree: Tree, size: int) -> str:
        """Name the entries that are not those of their digests, if the digests are here."""
        for level, number, width in widths(size):
            if level > 0:
                break
            path = self.path / tile_path(0, number, width)
            if path.is_file() and path.read_bytes() != tile(tree, 0, number, width):
                return f": {self.path / tile_path(ENTRIES, number, width)} or {path} was changed"
        return ""


def _bundle_of(entries: Callable[[int, int], Sequence[bytes]], begin: int, end: int) -> bytes:
    return bundle(entries(begin, end))


def read_at_most(path: Path, *, at_most: int) -> bytes:
    """Return what is in a file.

    Raises:
        UntrustedError: It cannot be read, or is longer.
    """
    try:
        if path.stat().st_size > at_most:
            raise UntrustedError(f"{path}: larger than {at_most:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UntrustedError(f"{path}: cannot be read: {error.strerror}") from error
