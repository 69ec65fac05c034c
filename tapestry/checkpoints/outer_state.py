"""The outer optimizer's state on disk: what the next round needs beside the checkpoint.

A file without a header: for every fragment in index order its state vectors one after the other,
little-endian float32. With one vector that is the vector itself.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tapestry.checkpoints.vector_file import read_elements
from tapestry.errors import UnavailableError
from tapestry.params.codecs import Float32Array
from tapestry.params.fragments import fragment_checksum, fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout

_MOST_BEHIND = 2
"""Fragments that wait for the disk while the next is made."""


@dataclass(frozen=True, slots=True)
class OuterStateFile:
    """A written state, read fragment by fragment."""

    path: Path
    layout: ParameterLayout
    vectors: int

    def __post_init__(self) -> None:
        """Make sure of the file's size.

        Raises:
            UnavailableError: It is missing, or no state of so many vectors.
        """
        expected = 4 * self.vectors * self.layout.elements
        found = self.path.stat().st_size if self.path.is_file() else None
        if found != expected:
            size = "missing" if found is None else f"{found:,} bytes instead of {expected:,}"
            raise UnavailableError(
                f"{self.path}: the outer optimizer's state is {size}; restore it from a backup: "
                "the round cannot be aggregated without it"
            )

    def read_fragment(self, index: int) -> tuple[Float32Array, ...]:
        """Return the state vectors of fragment `index`, each [n] float32 of its own."""
        start, stop = self.layout.bounds(index)
        length = stop - start
        first = self.vectors * start
        return tuple(
            read_elements(self.path, 0, first + v * length, first + (v + 1) * length)
            for v in range(self.vectors)
        )

    def root(self) -> bytes:
        """Return the Merkle root over the SHA-256 of the vectors' fragments."""
        digests: list[bytes] = []
        for index in range(self.layout.fragments):
            digests += [fragment_digest(vector.data) for vector in self.read_fragment(index)]
        return fragments_root(digests)


class OuterStateWriter:
    """Writes a state fragment by fragment, and hashes it, in a thread beside the caller's work."""

    def __init__(self, file: BinaryIO) -> None:
        """Write to `file`, from where it stands."""
        self._file = file
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-state")
        self._behind: deque[Future[None]] = deque()
        self._digests: list[bytes] = []
        self.checksums: list[bytes] = []
        """Of the vectors written, to recognise them in this process."""

    def write(self, state: tuple[Float32Array, ...]) -> None:
        """Append the next fragment's state vectors, which must not change any more.

        Raises:
            OSError: The disk is full; `finish` may raise it too.
        """
        self._behind.append(self._thread.submit(self._take, state))
        while len(self._behind) > _MOST_BEHIND:
            self._behind.popleft().result()

    def finish(self) -> bytes | None:
        """Wait until all is written; return its Merkle root, None if there was nothing."""
        while self._behind:
            self._behind.popleft().result()
        self._thread.shutdown()
        return fragments_root(self._digests) if self._digests else None

    def _take(self, state: tuple[Float32Array, ...]) -> None:
        for vector in state:
            data = np.ascontiguousarray(vector, "<f4").data.cast("B")
            self._file.write(data)
            self._digests.append(fragment_digest(data))
            self.checksums.append(fragment_checksum(data))
