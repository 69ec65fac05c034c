"""What a round starts from, exact vector and outer state, each fragment read once.

The coordinator reads them from its home, whoever replays a round from an archive.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np

from tapestry.aggregation.outer import OuterOptimizer
from tapestry.checkpoints.deciding import kept_vectors
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.outer_state import OuterStateFile
from tapestry.checkpoints.vector_file import VectorFile
from tapestry.errors import UnavailableError
from tapestry.params.codecs import Float32Array
from tapestry.params.fragments import fragment_checksum, fragment_digest, fragments_root
from tapestry.storage.read_ahead import ReadAhead


class Written:
    """What this process remembers of the vectors that it wrote, by their roots: checksums."""

    def __init__(self) -> None:
        """Remember nothing."""
        self._checksums: dict[str, list[bytes]] = {}

    def remember(self, checksums: Mapping[str, list[bytes]]) -> None:
        """Remember the newest round's, and forget all others."""
        self._checksums = dict(checksums)

    def checksums(self, root: str) -> list[bytes] | None:
        """Return those of the vectors with that root, in the order of writing."""
        return self._checksums.get(root)


class RoundStart:
    """Reads the fragments of what a round starts from.

    The exact vector is the published one, unless the round before published a coarser form of it:
    then it stands behind the optimizer's state vectors.
    """

    def __init__(
        self,
        state_path: Path,
        base: Manifest,
        vector: VectorFile,
        optimizer: OuterOptimizer,
        threads: Executor,
        *,
        written: Written,
        with_held: bool,
    ) -> None:
        """Open the files; nothing is read yet.

        Args:
            state_path: Of the outer state after `base`; need not exist if there is none.
            base: Manifest of the checkpoint that the round starts from.
            vector: Its vector, as published.
            optimizer: Of this round; one with another name begins without a state.
            threads: For reading ahead.
            written: What is remembered of them.
            with_held: Whether `held` will be asked for.

        Raises:
            UnavailableError: The state is missing on this disk, or of another size.
        """
        self._with_held = with_held
        self.held: Float32Array = np.empty(0, np.float32)
        """The published fragment whose exact form was asked for last."""
        count = vector.layout.fragments
        made = base.made
        self._is_exact_apart = made is not None and made.downlink != "float32"
        self.has_state = made is not None and (
            made.outer.optimizer == optimizer.name and optimizer.state_vectors > 0
        )
        """Whether the optimizer goes on from a state."""
        self._rooted: list[_Rooted] = []
        self._read_held = self._read_kept = None
        if with_held or not self._is_exact_apart:
            held = _Rooted(partial(_stored, vector), base.vector_root, vector.path, written)
            self._rooted.append(held)
            self._read_held = ReadAhead(held, count=count, threads=threads)
        if made is not None and (self.has_state or self._is_exact_apart):
            state = OuterStateFile(state_path, vector.layout, kept_vectors(base))
            root = made.outer.state_root or ""
            kept = _Rooted(partial(_kept, state), root, state.path, written)
            self._rooted.append(kept)
            self._read_kept = ReadAhead(kept, count=count, threads=threads)
        self._kept: tuple[Float32Array, ...] = ()

    def exact(self, index: int) -> Float32Array:
        """Return the exact fragment, which may be overwritten; to be called before `state`."""
        if self._read_kept is not None:
            self._kept = self._read_kept(index)
        if self._read_held is not None:
            (self.held,) = self._read_held(index)
        if self._is_exact_apart:
            return self._kept[-1]
        return self.held.copy() if self._with_held else self.held

    def state(self, _index: int) -> tuple[Float32Array, ...]:
        """Return the optimizer's state vectors of the fragment that `exact` returned last."""
        return self._kept[:-1] if self._is_exact_apart else self._kept

    def require_roots(self) -> None:
        """Make sure that all that was read is what the federation signed.

        Raises:
            UnavailableError: Something is damaged on this disk; nothing may be built upon it.
        """
        for rooted in self._rooted:
            rooted.require_root()


def _stored(vector: VectorFile, index: int) -> tuple[tuple[Float32Array, ...], list[memoryview]]:
    values, data = vector.read_stored(index)
    return (values,), [data]


def _kept(state: OuterStateFile, index: int) -> tuple[tuple[Float32Array, ...], list[memoryview]]:
    vectors = state.read_fragment(index)
    return vectors, [np.asarray(vector, "<f4").data.cast("B") for vector in vectors]


class _Rooted:
    """Fragments of float32 vectors as they are read, compared with what the federation signed.

    One by one with what this process remembers of writing them; if it did not, at the end, with the
    signed root.
    """

    def __init__(
        self,
        read: Callable[[int], tuple[tuple[Float32Array, ...], list[memoryview]]],
        root: str,
        path: Path,
        written: Written,
    ) -> None:
        """Read vectors and their bytes by `read`, each index once; they lie at `path`."""
        self._read = read
        self._root = root
        self._path = path
        self._remembered = written.checksums(root)
        self._digests: dict[int, list[bytes]] = {}

    def __call__(self, index: int) -> tuple[Float32Array, ...]:
        """Return the vectors of fragment `index`.

        Raises:
            UnavailableError: They are damaged on this disk.
        """
        vectors, pieces = self._read(index)
        if self._remembered is None:
            self._digests[index] = [fragment_digest(data) for data in pieces]
        else:
            first = index * len(pieces)
            known = self._remembered[first : first + len(pieces)]
            if [fragment_checksum(data) for data in pieces] != known:
                raise self._damaged()
        return vectors

    def require_root(self) -> None:
        """Make sure that what was read is what the federation signed.

        Raises:
            UnavailableError: It is damaged on this disk; nothing may be built upon it.
        """
        if self._remembered is not None:
            return
        digests = [digest for index in sorted(self._digests) for digest in self._digests[index]]
        if fragments_root(digests).hex() != self._root:
            raise self._damaged()

    def _damaged(self) -> UnavailableError:
        return UnavailableError(
            f"{self._path}: damaged on this disk: it is not what the newest manifest signs; "
            "restore it from a copy or a backup"
        )
