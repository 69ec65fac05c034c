"""The codecs `int8` and `int4`: one scale for each block of 256 elements, and small integers.

Wire formats, little-endian, for a fragment of n elements; element i is `q[i] * scale[i // 256]`:

* `int8`: ceil(n / 256) float32 scales, then n signed bytes q; 8.125 bits an element.
* `int4`: ceil(n / 256) float32 scales, then for each block of m elements (256; fewer in the last)
  h = ceil(m / 2) bytes: byte j holds q[j] in its lower and q[j + h] in its upper four bits, in
  two's complement; an upper half without an element is zero; 4.125 bits an element.

The scale is max|x| over the block, divided by the largest code (127 or 7) in float32;
q = rint(x / scale), quotient in float32, ties to even. A block whose scale is zero has codes of
zero only. T4 of the project's reference, the blockwise absmax scheme of Dettmers et al., 2021
(arXiv 2110.02861) with a linear code.

Shapes: n elements of a fragment; R rows of a cache block, each a block of 256 elements.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tapestry.errors import RejectedError
from tapestry.params.floats import (
    CACHE_ELEMENTS,
    ByteArray,
    Float32Array,
    magnitudes,
    not_finite,
    require_finite,
    too_large,
)

BLOCK = 256
"""Elements with one scale."""
_HALF = BLOCK // 2
_ROWS = CACHE_ELEMENTS // BLOCK
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal

CodeArray = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class _Grid:
    """The codes -largest ... largest of one codec."""

    codec: str
    largest: int
    divisor: np.float32
    """`largest` as float32."""
    scale_limit: np.float32
    """Above this, the largest code times the scale may round to infinity."""

    @classmethod
    def of(cls, codec: str, largest: int) -> "_Grid":
        divisor = np.float32(largest)
        limit = np.nextafter(np.finfo(np.float32).max / divisor, np.float32(0))
        return cls(codec, largest, divisor, limit)


_INT8 = _Grid.of("int8", 127)
_INT4 = _Grid.of("int4", 7)


def int8_bytes(elements: int) -> int:
    """Return the size of `elements` elements in `int8`."""
    return 4 * _scales(elements) + elements


def int4_bytes(elements: int) -> int:
    """Return the size of `elements` elements in `int4`."""
    return 4 * _scales(elements) + -(-elements // 2)


def encode_int8(values: Float32Array) -> bytes:
    """Return `values` ([n] float32) as int8_bytes(n) bytes."""
    out = np.empty(int8_bytes(len(values)), np.uint8)
    head = 4 * _scales(len(values))
    codes = out[head:].view(np.int8)

    def pack(start: int, rounded: Float32Array) -> None:
        room = codes[start : start + rounded.size]  # shorter than a row at the end
        np.copyto(room, rounded.reshape(-1)[: room.size], casting="unsafe")

    _quantise(values, _INT8, scales=out[:head].view("<f4"), pack=pack)
    return out.tobytes()


def encode_int4(values: Float32Array) -> bytes:
    """Return `values` ([n] float32) as int4_bytes(n) bytes."""
    out = np.empty(int4_bytes(len(values)), np.uint8)
    head = 4 * _scales(len(values))
    packed = out[head:].view(np.int8)
    codes = np.empty((_ROWS, BLOCK), np.int8)

    def pack(start: int, rounded: Float32Array) -> None:
        width = min(BLOCK, len(values) - start)
        half = (width + 1) // 2
        part = codes[: len(rounded)]
        np.copyto(part, rounded, casting="unsafe")
        lower, upper = part[:, :half], part[:, half : 2 * half]  # past the width there are zeros
        room = packed[start // 2 : start // 2 + half * len(part)].reshape(len(part), half)
        np.multiply(upper, np.int8(16), out=room)
        np.bitwise_and(lower, np.int8(15), out=lower)
        np.bitwise_or(room, lower, out=room)

    _quantise(values, _INT4, scales=out[:head].view("<f4"), pack=pack)
    return out.tobytes()


def decode_int8(data: ByteArray, out: Float32Array) -> None:
    """Write the values in `data` ([int8_bytes(n)] bytes) to `out` ([n] float32)."""
    head = 4 * _scales(len(out))
    codes = data[head:].view(np.int8)

    def unpack(start: int, rows: Float32Array) -> None:
        part = codes[start : start + rows.size]
        _require_codes(part, _INT8)
        np.copyto(rows, part.reshape(rows.shape))

    _dequantise(out, _INT8, scales=_read_scales(data[:head], _INT8), unpack=unpack)


def decode_int4(data: ByteArray, out: Float32Array) -> None:
    """Write the values in `data` ([int4_bytes(n)] bytes) to `out` ([n] float32)."""
    head = 4 * _scales(len(out))
    packed = data[head:].view(np.int8)
    scratch = np.empty((_ROWS, _HALF), np.int8)

    def unpack(start: int, rows: Float32Array) -> None:
        width = rows.shape[1]
        half = (width + 1) // 2
        part = packed[start // 2 : start // 2 + half * len(rows)].reshape(len(rows), half)
        codes = scratch[: len(rows), :half]
        np.multiply(part, np.int8(16), out=codes)  # wraps: the lower half becomes the upper one
        np.right_shift(codes, np.int8(4), out=codes)
        _require_codes(codes, _INT4)
        np.copyto(rows[:, :half], codes)
        np.right_shift(part, np.int8(4), out=codes)
        _require_codes(codes, _INT4)
        np.copyto(rows[:, half:], codes[:, : width - half])
        if width % 2 and codes[-1, -1]:
            raise RejectedError("the int4 fragment has a code after its last element")

    _dequantise(out, _INT4, scales=_read_scales(data[:head], _INT4), unpack=unpack)


def _scales(elements: int) -> int:
    return -(-elements // BLOCK)


def _rows(values: Float32Array) -> Iterator[tuple[int, Float32Array]]:
    """Yield index of the first element and [R, 256] view of each cache block, then [1, m]."""
    whole = len(values) // BLOCK * BLOCK
    for start in range(0, whole, CACHE_ELEMENTS):
        yield start, values[start : min(start + CACHE_ELEMENTS, whole)].reshape(-1, BLOCK)
    if whole < len(values):
        yield whole, values[whole:].reshape(1, -1)


def _quantise(
    values: Float32Array,
    grid: _Grid,
    *,
    scales: npt.NDArray[np.float32],
    pack: Callable[[int, Float32Array], None],
) -> None:
    """Fill `scales`; give `pack` the rounded quotients, [R, 256] float32, with their place."""
    scratch = np.empty((_ROWS, BLOCK), np.float32)
    for start, part in _rows(values):
        rows = part
        if part.shape[1] < BLOCK:
            rows = np.zeros((1, BLOCK), np.float32)
            rows[:, : part.shape[1]] = part
        work = scratch[: len(rows)]
        words = work.view(np.uint32)
        magnitudes(rows, out=words)
        largest = words.max(axis=1)
        require_finite(int(largest.max()))
        here = largest.view(np.float32) / grid.divisor
        if here.max() > grid.scale_limit:
            raise too_large(grid.codec)
        scales[start // BLOCK : start // BLOCK + len(rows)] = here
        smallest = here.min()
        divisors = here if smallest > 0 else np.where(here > 0, here, np.float32(1))
        np.divide(rows, divisors[:, None], out=work)
        np.rint(work, out=work)
        if smallest < _SMALLEST_NORMAL:  # only such a scale may be short of max / largest code
            np.clip(work, -grid.largest, grid.largest, out=work)
        pack(start, work)


def _read_scales(data: ByteArray, grid: _Grid) -> Float32Array:
    """Return the scales.

    Raises:
        RejectedError: One of them is none.
    """
    scales = data.view("<f4").astype(np.float32, copy=False)
    if not (np.isfinite(scales).all() and not np.signbit(scales).any()):
        raise RejectedError(
            f"the {grid.codec} fragment has a scale that is negative, NaN or infinite"
        )
    return scales


def _require_codes(codes: CodeArray, grid: _Grid) -> None:
    if codes.min() < -grid.largest:
        raise RejectedError(
            f"the {grid.codec} fragment has the code {-grid.largest - 1}, which no encoder writes"
        )


def _dequantise(
    out: Float32Array,
    grid: _Grid,
    *,
    scales: Float32Array,
    unpack: Callable[[int, Float32Array], None],
) -> None:
    """Let `unpack` write the codes of each place of `out`, and multiply them by their scales.

    Raises:
        RejectedError: A product is infinite, or a block whose scale is zero has other codes.
    """
    with np.errstate(over="ignore"):  # an infinite product is refused below
        for start, rows in _rows(out):
            here = scales[start // BLOCK : start // BLOCK + len(rows)]
            unpack(start, rows)
            if not here.all() and rows[here == 0].any():
                raise RejectedError(
                    f"the {grid.codec} fragment has codes in a block whose scale is 0"
                )
            np.multiply(rows, here[:, None], out=rows)
    if scales.max(initial=0) > grid.scale_limit and not np.isfinite(out).all():
        raise not_finite(grid.codec)
