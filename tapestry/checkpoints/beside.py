"""The tensors beside the vector: frozen parameters and buffers, which no round changes.

They stand in the model's file behind the vector, in every checkpoint the same bytes. Genesis signs
their digest: SHA-256 over one line of JSON, `[[name, dtype, [dim, ...]], ...]` sorted by name, and
then the bytes of the tensors in that order.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestry.errors import UntrustedError

_PIECE_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class ExtraTensor:
    """A tensor that travels with the model but is not part of the vector."""

    dtype: str
    """Safetensors name, such as `F32` or `I64`."""
    shape: tuple[int, ...]
    data: bytes

    @property
    def size_bytes(self) -> int:
        """Length of the data."""
        return len(self.data)

    def pieces(self) -> Iterator[bytes]:
        """Yield the data."""
        yield self.data


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The same in a file, where it stays: it may be larger than memory."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size_bytes: int

    @property
    def data(self) -> bytes:
        """All of it.

        Raises:
            UntrustedError: The file cannot be read, or has become shorter.
        """
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """Yield the data, some megabytes at a time.

        Raises:
            UntrustedError: As `data`.
        """
        left = self.size_bytes
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                while left:
                    piece = file.read(min(left, _PIECE_BYTES))
                    if not piece:
                        raise UntrustedError(
                            f"{self.path}: has become shorter; restore it or fetch it again"
                        )
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise UntrustedError(f"{self.path}: cannot be read: {error.strerror}") from error


BesideTensor = ExtraTensor | StoredTensor


def started_digest(extras: Mapping[str, BesideTensor]) -> Any:  # noqa: ANN401 - hashlib's object
    """Return a SHA-256 that has taken what is said about the tensors, and not yet their bytes."""
    table = [[name, extras[name].dtype, list(extras[name].shape)] for name in sorted(extras)]
    return hashlib.sha256(json.dumps(table, separators=(",", ":")).encode() + b"\n")


def beside_digest(extras: Mapping[str, BesideTensor]) -> str:
    """Return the hex digest of the tensors beside the vector.

    Raises:
        UntrustedError: Their file cannot be read.
    """
    digest = started_digest(extras)
    for name in sorted(extras):
        for piece in extras[name].pieces():
            digest.update(piece)
    return str(digest.hexdigest())


def elements_of(extras: Mapping[str, BesideTensor]) -> int:
    """Return how many elements the tensors have together."""
    return sum(math.prod(extra.shape) for extra in extras.values())
