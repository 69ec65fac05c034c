"""Uploads while they come in, fragment by fragment and piece by piece.

A piece goes to its place in the file as it comes, so that a member whose line takes minutes for a
fragment holds no more of the coordinator's memory than a piece. Whoever has all of them reads the
fragment again, in one of a few work places, and only then decides whether it counts.
"""

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from tapestry.errors import RejectedError, UnavailableError
from tapestry.params.codecs import Codec, Float32Array
from tapestry.params.floats import ByteArray
from tapestry.params.fragments import fragment_digest
from tapestry.storage.atomic import RollingSync

NOT_OPEN = "no upload is open: announce the contribution's digests first"
_MOST_AT_WORK = 4

T = TypeVar("T")


@dataclass(slots=True)
class Upload:
    """A contribution that is being received.

    It may be given up while a call writes to it: what a number of its file means would then be
    another file.
    """

    path: Path
    codec: Codec
    digests: tuple[bytes, ...]
    max_element: float
    squared_norms: dict[int, float] = field(default_factory=dict)
    """By fragment that is there."""
    checksums: dict[int, bytes] = field(default_factory=dict)
    """The same."""
    bringing: dict[int, object] = field(default_factory=dict)
    """By fragment of which pieces come in: the call that brings them, the newest there is."""
    file: BinaryIO | None = None
    """Open for writing while fragments come in."""
    sync: RollingSync | None = None
    _in_use: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def missing(self) -> list[bool]:
        """Return for each fragment whether it is missing."""
        return [index not in self.squared_norms for index in range(len(self.digests))]

    def keep(self, before: "Upload") -> None:
        """Know as there what was there of another announcement, without reading it again."""
        for index, squared in before.squared_norms.items():
            if self.digests[index] == before.digests[index]:
                self.squared_norms[index] = squared
                self.checksums[index] = before.checksums[index]

    def begin(self) -> None:
        """Open the allocated file for fragments."""
        self.file = self.path.open("r+b", buffering=0)
        self.sync = RollingSync(self.file)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data`; a short write is a full disk.

        Raises:
            RejectedError: The upload has ended.
        """
        with self._in_use:
            if self.file is None or self.sync is None:
                raise RejectedError(NOT_OPEN)
            if os.pwrite(self.file.fileno(), data, offset) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.sync.wrote(len(data))

    def read_into(self, out: ByteArray, offset: int) -> None:
        """Fill `out` with what was written; less is a file that somebody cut off."""
        with self._in_use:
            file = self.file
            if file is None or os.preadv(file.fileno(), [out.data], offset) != len(out):
                raise UnavailableError(
                    f"{self.path}: cannot be read again; send the fragment again"
                )

    def end(self, *, durable: bool) -> None:
        """Close the file; `durable` waits until its bytes are on the disk."""
        with self._in_use:
            if self.file is None or self.sync is None:
                return
            self.sync.close()
            if durable:
                os.fsync(self.file.fileno())
            self.file.close()
            self.file = self.sync = None

    def require_announced(self, index: int, data: bytes | memoryview) -> None:
        """Refuse bytes that do not have the announced digest."""
        if fragment_digest(data) != self.digests[index]:
            raise RejectedError(f"fragment {index}: its bytes do not have the announced digest")


class Arrival:
    """One fragment while its pieces come in."""

    def __init__(
        self,
        key: tuple[int, str],
        upload: Upload | None,
        index: int,
        *,
        size_bytes: int,
        offset: int,
    ) -> None:
        """Begin with none.

        Args:
            key: Round and member.
            upload: That it is a part of; None if that is whole, and this one only repeats.
            index: Of the fragment.
            size_bytes: That it must have.
            offset: Its place in the file.
        """
        self.key = key
        self.upload = upload
        self.index = index
        self.have = 0
        """Bytes that came."""
        self._size = size_bytes
        self._offset = offset
        self._hash = hashlib.sha256()
        if upload is not None:
            upload.bringing[index] = self

    def must_be_written(self) -> bool:
        """Whether the fragment is still missing.

        Raises:
            UnavailableError: It is, and a later call brings it.
        """
        if self.upload is None or self.index in self.upload.squared_norms:
            return False
        if self.upload.bringing.get(self.index) is not self:
            raise UnavailableError(f"fragment {self.index} is brought by another call by now")
        return True

    def write(self, data: bytes | memoryview) -> None:
        """Take the next piece.

        Raises:
            RejectedError: It is more than the fragment can have.
        """
        if self.have + len(data) > self._size:
            raise RejectedError(f"fragment {self.index} has {self._size:,} bytes, and more came")
        if self.upload is None:
            self._hash.update(data)
        elif self.must_be_written():
            self.upload.write(data, self._offset + self.have)
        self.have += len(data)

    def read_again(self, place: "WorkPlace") -> memoryview:
        """Return the whole fragment, which has the announced digest.

        Raises:
            RejectedError: It has not, or bytes are missing.
        """
        upload = self.upload
        if upload is None or self.have != self._size:
            raise RejectedError(
                f"fragment {self.index} has {self._size:,} bytes, and {self.have:,} came"
            )
        data = place.encoded[: self._size]
        upload.read_into(data, self._offset)
        upload.require_announced(self.index, data.data)
        return data.data

    def digest(self) -> bytes:
        """Return the SHA-256 of all that came, if it is of no open upload."""
        return self._hash.digest()

    def end(self) -> None:
        """Let go of the fragment's place."""
        if self.upload is not None and self.upload.bringing.get(self.index) is self:
            del self.upload.bringing[self.index]


def rejoined(first: Iterable[T], rest: Iterable[T]) -> Iterator[T]:
    """Yield what was looked at already, and then the rest; unlike `chain`, hold nothing of it."""
    waiting = deque(first)
    del first
    while waiting:
        yield waiting.popleft()
    yield from rest


class WorkPlace:
    """Room for one fragment, encoded and decoded."""

    def __init__(self, elements: int) -> None:
        """Reserve it; the system gives the memory at the first use."""
        self.encoded: ByteArray = np.empty(4 * elements, np.uint8)
        self.decoded: Float32Array = np.empty(elements, np.float32)


class WorkPlaces:
    """As many as there are processors, so that memory does not grow with the members."""

    def __init__(self, elements: int) -> None:
        """Make room for fragments of at most `elements`, once it is needed."""
        self._elements = elements
        self._free: list[WorkPlace] = []
        self._lots = threading.Semaphore(min(_MOST_AT_WORK, os.cpu_count() or 1))

    @contextmanager
    def one(self) -> Iterator[WorkPlace]:
        """Hold a place; wait until there is one."""
        with self._lots:
            try:
                place = self._free.pop()
            except IndexError:
                place = WorkPlace(self._elements)
            try:
                yield place
            finally:
                self._free.append(place)
