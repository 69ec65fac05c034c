"""The codecs that keep single values: `float32` and `bfloat16`; and what all codecs share.

Wire formats, little-endian, for a fragment of n elements:

* `float32`: n IEEE 754 singles, 32 bits an element.
* `bfloat16`: n upper halves of singles, rounded to nearest even, 16 bits an element.

Values are worked on in blocks that stay in a core's cache. Whether they are finite is read off
the largest bit pattern: without their sign, patterns of singles are ordered as their values, and
infinity and NaN come last.

Shapes: n elements of a fragment; B elements of a cache block.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tapestry.errors import RejectedError

Float32Array = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
WordArray = npt.NDArray[np.uint32]
HalfArray = npt.NDArray[np.uint16]


class Vector(Protocol):
    """A parameter vector that is read by slices: an array, or a file that is mapped."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(P,)."""
        ...

    def __getitem__(self, part: slice, /) -> Float32Array:
        """Return elements as float32."""
        ...


class HalfVector:
    """A bfloat16 vector, mapped perhaps, that is read as float32."""

    def __init__(self, halves: HalfArray) -> None:
        """Read the patterns in `halves` ([P] uint16)."""
        self._halves = halves

    @property
    def shape(self) -> tuple[int, ...]:
        """(P,)."""
        return self._halves.shape

    def __getitem__(self, part: slice, /) -> Float32Array:
        """Return elements as float32, in memory of their own."""
        words: WordArray = np.left_shift(self._halves[part], 16, dtype=np.uint32)
        return words.view(np.float32)


CACHE_ELEMENTS = 2**17
"""Elements worked on at a time: 512 KiB of float32, few enough for a cache and enough that the
calls into numpy cost nothing beside them."""

INFINITY = 0x7F800000
"""Pattern of infinity; a larger one without its sign is NaN."""
BFLOAT16_INFINITY = 0x7F80
_WITHOUT_SIGN = np.uint32(0x7FFFFFFF)
_BFLOAT16_OVERFLOW = 0x7F7F8000
"""The smallest finite pattern that rounds to infinity in bfloat16."""


def blocks(elements: int) -> Iterator[slice]:
    """Yield the cache blocks of `elements` elements, in order."""
    for start in range(0, elements, CACHE_ELEMENTS):
        yield slice(start, min(start + CACHE_ELEMENTS, elements))


def patterns(values: Float32Array) -> WordArray:
    """Return a view of `values` as the bit patterns of IEEE 754 singles."""
    return values.view(np.uint32)


def magnitudes(values: Float32Array, *, out: WordArray) -> None:
    """Write the patterns of |values| to `out`, of the same shape."""
    np.bitwise_and(patterns(values), _WITHOUT_SIGN, out=out)


def require_finite(largest: int) -> None:
    """Refuse to encode what has diverged.

    Args:
        largest: The largest of the values' `magnitudes`.

    Raises:
        RejectedError: It is that of an infinity or a NaN.
    """
    if largest >= INFINITY:
        raise RejectedError(
            "the pseudo-gradient has NaN or infinite elements: training has diverged; "
            "lower the learning rate"
        )


def too_large(codec: str) -> RejectedError:
    """Return the refusal of a finite element that overflows once it is coded."""
    return RejectedError(f"an element is too large for {codec}: training has diverged")


def not_finite(codec: str) -> RejectedError:
    """Return the refusal of bytes that decode to NaN or infinity."""
    return RejectedError(f"the {codec} fragment has NaN or infinite elements")


def encode_float32(values: Float32Array) -> bytes:
    """Return `values` ([n] float32) as 4 n bytes."""
    require_finite(_largest(values))
    data: bytes = values.astype("<f4", copy=False).tobytes()
    return data


def decode_float32(data: ByteArray, out: Float32Array) -> None:
    """Write the values in `data` ([4 n] bytes) to `out` ([n] float32)."""
    np.copyto(out, data.view("<f4"))
    if _largest(out) >= INFINITY:
        raise not_finite("float32")


def encode_bfloat16(values: Float32Array) -> bytes:
    """Return `values` ([n] float32) as 2 n bytes, rounded to nearest, ties to even."""
    halves = np.empty(len(values), "<u2")
    words = np.empty(min(len(values), CACHE_ELEMENTS), np.uint32)
    for block in blocks(len(values)):
        part, scratch = values[block], words[: block.stop - block.start]
        magnitudes(part, out=scratch)
        largest = int(scratch.max())
        require_finite(largest)
        if largest >= _BFLOAT16_OVERFLOW:
            raise too_large("bfloat16")
        round_to_bfloat16(patterns(part), scratch=scratch, out=halves[block])
    return halves.tobytes()


def round_to_bfloat16(words: WordArray, *, scratch: WordArray, out: HalfArray) -> None:
    """Write the upper halves of finite patterns to `out`, rounded to nearest, ties to even."""
    np.right_shift(words, np.uint32(16), out=scratch)
    np.bitwise_and(scratch, np.uint32(1), out=scratch)
    np.add(scratch, words, out=scratch)
    np.add(scratch, np.uint32(0x7FFF), out=scratch)
    np.right_shift(scratch, np.uint32(16), out=scratch)
    np.copyto(out, scratch, casting="unsafe")  # below 2**16 after the shift


def decode_bfloat16(data: ByteArray, out: Float32Array) -> None:
    """Write the values in `data` ([2 n] bytes) to `out` ([n] float32)."""
    halves, words = data.view("<u2"), patterns(out)
    scratch = np.empty(min(len(out), CACHE_ELEMENTS), np.uint16)
    for block in blocks(len(out)):
        part, without_sign = halves[block], scratch[: block.stop - block.start]
        np.bitwise_and(part, np.uint16(0x7FFF), out=without_sign)
        if without_sign.max() >= BFLOAT16_INFINITY:
            raise not_finite("bfloat16")
        np.copyto(words[block], part)
        np.left_shift(words[block], np.uint32(16), out=words[block])


def _largest(values: Float32Array) -> int:
    """Return the largest of the `magnitudes`, 0 if there is none."""
    scratch = np.empty(min(len(values), CACHE_ELEMENTS), np.uint32)
    largest = 0
    for block in blocks(len(values)):
        part = scratch[: block.stop - block.start]
        magnitudes(values[block], out=part)
        largest = max(largest, int(part.max()))
    return largest
