"""`model.safetensors`: a safetensors file whose data section begins with the parameter vector.

The format (https://github.com/huggingface/safetensors) is a length, a JSON header, and one
contiguous data section. Ours lists the layout's tensors first, in vector order, as float32 or as
bfloat16 (their number is in the header's metadata); after them come tensors that are not part of
the vector: frozen parameters and buffers. So any safetensors reader loads the file, and the vector
is a memory map of it, whatever its size.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from tapestry.checkpoints.beside import BesideTensor, StoredTensor, elements_of, started_digest
from tapestry.errors import RejectedError, UntrustedError
from tapestry.params.codecs import CODECS, Codec, Float32Array
from tapestry.params.floats import HalfVector, Vector
from tapestry.params.fragments import fragment_checksum, fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout

MODEL_FILE = "model.safetensors"

_COUNT_KEY = "tapestry.vector_tensors"
_MOST_BEHIND = 3
"""Fragments that wait for their hashes while the next is made."""
_MAX_HEADER_BYTES = 100_000_000
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


VectorDtype = Literal["F32", "BF16"]
"""How the file holds the vector: by the codec of the same name, every fragment after the other."""

_CODECS: dict[VectorDtype, Codec] = {"F32": CODECS["float32"], "BF16": CODECS["bfloat16"]}


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenVector:
    """Digests of a vector file, computed while it was written."""

    size_bytes: int
    digest: bytes
    """SHA-256 of the whole file."""
    root: bytes
    """Merkle root over the SHA-256 of the fragments as the file holds them."""
    beside: bytes
    """Of the tensors beside the vector; see `tapestry.checkpoints.beside`."""


class VectorWriter:
    """Write a vector file fragment by fragment.

    One thread writes and hashes the whole file, another hashes the fragments, beside the caller's
    own work, which waits when they are more than a few fragments behind.
    """

    def __init__(
        self,
        file: BinaryIO,
        layout: ParameterLayout,
        extras: Mapping[str, BesideTensor],
        *,
        dtype: VectorDtype = "F32",
    ) -> None:
        """Write the header; fragments follow by `write`, in index order."""
        self._dtype = dtype
        self._file = file
        self._layout = layout
        self._extras = extras
        self._whole = hashlib.sha256()
        self._whole_thread = ThreadPoolExecutor(1, thread_name_prefix="write-file")
        self._fragment_thread = ThreadPoolExecutor(1, thread_name_prefix="hash-fragments")
        self._behind: deque[Future[None]] = deque()
        self._digests: list[Future[bytes]] = []
        self._size = 0
        self.checksums: list[bytes] = []
        """Of the fragments written, to recognise them in this process."""
        self._emit(_header(layout, extras, dtype))

    def write(self, fragment: Float32Array) -> None:
        """Append the next fragment: float32, exactly as many elements as the layout says.

        The array must not change any more.

        Raises:
            RejectedError: bfloat16 cannot hold it.
        """
        start, stop = self._layout.bounds(len(self._digests))
        if fragment.shape != (stop - start,):
            raise ValueError(f"fragment {len(self._digests)} has shape {fragment.shape}")
        if self._dtype == "F32":
            data = np.ascontiguousarray(fragment, "<f4").data.cast("B")
        else:
            data = memoryview(_CODECS[self._dtype].encode(fragment))
        self._digests.append(self._fragment_thread.submit(fragment_digest, data))
        self.checksums.append(fragment_checksum(data))
        self._emit(data)

    def finish(self) -> WrittenVector:
        """Append the extra tensors and return the digests.

        Raises:
            OSError: The disk is full; `write` may raise it too.
        """
        if len(self._digests) != self._layout.fragments:
            raise ValueError(f"{len(self._digests)} of {self._layout.fragments} fragments written")
        beside = started_digest(self._extras)
        for name in sorted(self._extras):
            for piece in self._extras[name].pieces():
                self._emit(piece)
                beside.update(piece)
        while self._behind:
            self._behind.popleft().result()
        self._whole_thread.shutdown()
        self._fragment_thread.shutdown()
        return WrittenVector(
            size_bytes=self._size,
            digest=self._whole.digest(),
            root=fragments_root([digest.result() for digest in self._digests]),
            beside=beside.digest(),
        )

    def _emit(self, data: bytes | memoryview) -> None:
        self._behind.append(self._whole_thread.submit(self._take, data))
        self._size += len(data)
        while len(self._behind) > _MOST_BEHIND:
            self._behind.popleft().result()

    def _take(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._whole.update(data)


@dataclass(frozen=True, slots=True)
class VectorFile:
    """An opened vector file: the mapped vector and the rest."""

    layout: ParameterLayout
    vector: Vector
    """[P] float32; memory-mapped, read only."""
    extras: dict[str, StoredTensor]
    path: Path
    data_offset: int
    """Bytes before the vector."""
    dtype: VectorDtype

    @property
    def model_elements(self) -> int:
        """Elements of the whole model: of the vector, and of what stands beside it."""
        return self.layout.elements + elements_of(self.extras)

    def read_fragment(self, index: int) -> Float32Array:
        """Return fragment `index` as [n] float32 of its own.

        Read and not mapped: a process that goes through the whole of a large vector keeps no
        page of it.

        Raises:
            UntrustedError: The file has become shorter, or the fragment is not finite.
        """
        return self.read_stored(index)[0]

    def read_stored(self, index: int) -> tuple[Float32Array, memoryview]:
        """Return fragment `index` as float32, and its bytes in the file."""
        start, stop = self.layout.bounds(index)
        if self.dtype == "F32":
            values = read_elements(self.path, self.data_offset, start, stop)
            return values, np.asarray(values, "<f4").data.cast("B")
        codec = _CODECS[self.dtype]
        data = self._read(codec.encoded_bytes(start), codec.encoded_bytes(stop - start))
        try:
            return codec.decode(data, stop - start), memoryview(data)
        except RejectedError as error:
            raise UntrustedError(f"{self.path}: fragment {index}: {error}") from error

    def root(self) -> bytes:
        """Return the Merkle root over the SHA-256 of the fragments as the file holds them."""
        codec = _CODECS[self.dtype]
        digests = []
        for index in range(self.layout.fragments):
            start, stop = self.layout.bounds(index)
            data = self._read(codec.encoded_bytes(start), codec.encoded_bytes(stop - start))
            digests.append(fragment_digest(data))
        return fragments_root(digests)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.data_offset + offset)
                data = file.read(size)
        except OSError as error:
            raise UntrustedError(f"{self.path}: cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise UntrustedError(f"{self.path}: has become shorter; restore it or fetch it again")
        return data


def read_elements(path: Path, data_offset: int, start: int, stop: int) -> Float32Array:
    """Return elements `start` to `stop` of the float32 vector at `data_offset` of a file.

    Raises:
        UntrustedError: The file cannot be read, or ends before.
    """
    values = np.empty(stop - start, "<f4")
    try:
        with path.open("rb") as file:
            file.seek(data_offset + 4 * start)
            count = file.readinto(values.data)
    except OSError as error:
        raise UntrustedError(f"{path}: cannot be read: {error.strerror}") from error
    if count != values.nbytes:
        raise UntrustedError(f"{path}: ends before element {stop:,}; restore it or fetch it again")
    return values.astype(np.float32, copy=False)


def open_vector_file(path: Path, layout: ParameterLayout | None = None) -> VectorFile:
    """Map the vector in the file at `path`.

    Args:
        path: A file that `VectorWriter` wrote.
        layout: What the vector must look like, if that is known.

    Raises:
        UntrustedError: It is not such a file, or its layout is another.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, data_offset = _read_header(file, size)
            found, dtype, extra_table = _parse_header(header, size - data_offset)
        extras = {
            name: StoredTensor(stored, shape, path, data_offset + begin, end - begin)
            for name, (stored, shape, begin, end) in extra_table.items()
        }
    except OSError as error:
        raise UntrustedError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, RejectedError) as error:
        raise UntrustedError(f"{path}: not a parameter vector: {error}") from error
    if layout is not None and found.digest != layout.digest:
        raise UntrustedError(f"{path}: its tensors are not those of this federation's model")
    item = np.dtype("<f4" if dtype == "F32" else "<u2")
    mapped = np.memmap(path, dtype=item, mode="r", offset=data_offset, shape=(found.elements,))
    vector: Vector = mapped if dtype == "F32" else HalfVector(mapped)
    return VectorFile(found, vector, extras, path, data_offset, dtype)


def _header(
    layout: ParameterLayout, extras: Mapping[str, BesideTensor], dtype: VectorDtype
) -> bytes:
    """Return length and JSON header, padded to eight bytes."""
    metadata = {"format": "pt", _COUNT_KEY: str(len(layout.tensors))}
    table: dict[str, Any] = {"__metadata__": metadata}
    item = _ITEM_BYTES[dtype]
    for spec in layout.tensors:
        begin = item * spec.offset
        table[spec.name] = _entry(dtype, spec.shape, begin, begin + item * spec.size)
    end = item * layout.elements
    for name in sorted(extras):
        extra = extras[name]
        table[name] = _entry(extra.dtype, extra.shape, end, end + extra.size_bytes)
        end += extra.size_bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Return the JSON header and the offset of the data section."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
        raise ValueError("no safetensors header")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("the header is not a table")
    return header, 8 + length


def _parse_header(
    header: dict[str, Any], data_bytes: int
) -> tuple[ParameterLayout, VectorDtype, dict[str, tuple[str, tuple[int, ...], int, int]]]:
    """Return the vector's layout and dtype, and the extra tensors; every field is validated."""
    count = int(header.pop("__metadata__")[_COUNT_KEY])
    names = list(header)
    if not 1 <= count <= len(names):
        raise ValueError(f"{count} of {len(names)} tensors are said to be the vector")
    layout = ParameterLayout.from_json([[name, header[name]["shape"]] for name in names[:count]])
    dtype: VectorDtype = "BF16" if header[names[0]]["dtype"] == "BF16" else "F32"
    expected = 0
    extras = {}
    for position, name in enumerate(names):
        stored, shape = str(header[name]["dtype"]), _shape(header[name]["shape"])
        begin, end = header[name]["data_offsets"]
        if begin != expected or end - begin != _ITEM_BYTES[stored] * math.prod(shape):
            raise ValueError(f"tensor {name!r} does not lie where its shape says")
        if position >= count:
            extras[name] = (stored, shape, begin, end)
        elif stored != dtype:
            raise ValueError("the vector is neither float32 nor bfloat16 throughout")
        expected = end
    if expected != data_bytes:
        raise ValueError(f"{data_bytes:,} bytes of data, the header says {expected:,}")
    return layout, dtype, extras


def _shape(value: object) -> tuple[int, ...]:
    if not (isinstance(value, list) and all(type(dim) is int and dim >= 0 for dim in value)):
        raise TypeError(f"{value!r:.60} is not a shape")
    return tuple(value)
