"""How a fragment becomes bytes, and back.

Every codec declares the exact encoded size before a byte is read, is deterministic to the bit on
every machine (elementwise IEEE 754 single precision, no reductions that depend on order), and
refuses on decode what it cannot have written: wrong size, NaN, infinity.

Wire formats, all little-endian, for a fragment of n elements:

* `float32`: n IEEE 754 singles, 32 bits an element.
* `bfloat16`: n upper halves of singles, rounded to nearest even, 16 bits an element.
* `int8`: ceil(n / 256) float32 scales, then n signed bytes; element i is `q[i] * scale[i // 256]`
  with scale = max|x| / 127 over its block; 8.125 bits an element. T4 of the project's reference,
  the blockwise absmax scheme of Dettmers et al., 2021 (arXiv 2110.02861) with a linear code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tapestry.errors import RejectedError

Float32Array = npt.NDArray[np.float32]

INT8_BLOCK = 256
_INT8_MAX = 127
_INT8_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
"""Above this, 127 times the scale may round to infinity."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A named pair of functions between float32 values and bytes."""

    name: str
    encoded_bytes: Callable[[int], int]
    """Exact size in bytes of n encoded elements."""
    _encode: Callable[[Float32Array], bytes]
    _decode: Callable[[memoryview, int], Float32Array]

    def encode(self, values: Float32Array) -> bytes:
        """Return `values` ([n] float32) as bytes.

        Raises:
            RejectedError: A value is NaN or infinite: training has diverged.
        """
        if values.dtype != np.float32 or values.ndim != 1:
            raise TypeError(
                f"expected a float32 vector, got {values.dtype} of shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise RejectedError(
                "the pseudo-gradient has NaN or infinite elements: training has diverged; "
                "lower the learning rate"
            )
        return self._encode(values)

    def decode(self, data: bytes | memoryview, elements: int) -> Float32Array:
        """Return the [elements] float32 values in `data`.

        Raises:
            RejectedError: `data` has another size than `elements` need, or holds a value that is
                NaN or infinite.
        """
        if len(data) != self.encoded_bytes(elements):
            raise RejectedError(
                f"a {self.name} fragment of {elements:,} elements has "
                f"{self.encoded_bytes(elements):,} bytes, got {len(data):,}"
            )
        values = self._decode(memoryview(data), elements)
        if not np.isfinite(values).all():
            raise RejectedError(f"the {self.name} fragment has NaN or infinite elements")
        return values


def _encode_float32(values: Float32Array) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _decode_float32(data: memoryview, _elements: int) -> Float32Array:
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)


def _encode_bfloat16(values: Float32Array) -> bytes:
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    halves = rounded.astype("<u2")
    if not np.isfinite(_decode_bfloat16(memoryview(halves.tobytes()), len(values))).all():
        raise RejectedError("an element is too large for bfloat16: training has diverged")
    data: bytes = halves.tobytes()
    return data


def _decode_bfloat16(data: memoryview, _elements: int) -> Float32Array:
    halves = np.frombuffer(data, dtype="<u2").astype(np.uint32)
    return (halves << np.uint32(16)).view(np.float32)


def _int8_scales(elements: int) -> int:
    return -(-elements // INT8_BLOCK)


def _encode_int8(values: Float32Array) -> bytes:
    blocks = np.zeros((_int8_scales(len(values)), INT8_BLOCK), np.float32)
    blocks.reshape(-1)[: len(values)] = values
    scales = np.abs(blocks).max(axis=1) / np.float32(_INT8_MAX)
    if scales.max(initial=0) > _INT8_LARGEST_SCALE:
        raise RejectedError("an element is too large for int8: training has diverged")
    divisors = np.where(scales > 0, scales, np.float32(1))
    codes = np.clip(np.rint(blocks / divisors[:, None]), -_INT8_MAX, _INT8_MAX).astype(np.int8)
    packed: bytes = scales.astype("<f4").tobytes() + codes.reshape(-1)[: len(values)].tobytes()
    return packed


def _decode_int8(data: memoryview, elements: int) -> Float32Array:
    count = _int8_scales(elements)
    scales = np.frombuffer(data[: 4 * count], dtype="<f4").astype(np.float32, copy=False)
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise RejectedError("the int8 fragment has a scale that is negative, NaN or infinite")
    codes = np.frombuffer(data[4 * count :], dtype=np.int8)
    if codes.min(initial=0) < -_INT8_MAX:
        raise RejectedError("the int8 fragment has the code -128, which no encoder writes")
    values = codes.astype(np.float32)
    with np.errstate(over="ignore"):  # an infinite product is refused by the caller
        values *= np.repeat(scales, INT8_BLOCK)[:elements]
    return values


CODECS = {
    codec.name: codec
    for codec in (
        Codec("float32", lambda n: 4 * n, _encode_float32, _decode_float32),
        Codec("bfloat16", lambda n: 2 * n, _encode_bfloat16, _decode_bfloat16),
        Codec("int8", lambda n: 4 * _int8_scales(n) + n, _encode_int8, _decode_int8),
    )
}


def codec_named(name: str) -> Codec:
    """Return the codec called `name`.

    Raises:
        RejectedError: There is none in this version.
    """
    try:
        return CODECS[name]
    except KeyError:
        raise RejectedError(
            f"unknown codec {name!r:.40}: this version has {', '.join(sorted(CODECS))}"
        ) from None
