"""How a fragment becomes bytes, and back.

Every codec declares the exact encoded size before a byte is read, is deterministic to the bit on
every machine (elementwise IEEE 754 single precision, no reductions that depend on order), and
refuses on decode what it cannot have written: wrong size, NaN, infinity, codes outside its grid.

| name | bits an element | wire format | feedback |
|---|---|---|---|
| `float32`, `bfloat16` | 32, 16 | `tapestry.params.floats` | |
| `int8`, `int4` | 8.125, 4.125 | `tapestry.params.blockwise` | |
| `topk` | .2266 | `tapestry.params.topk` | .95 |

Shapes: n elements of a fragment.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tapestry.errors import RejectedError
from tapestry.params import blockwise, floats, topk
from tapestry.params.floats import ByteArray, Float32Array

__all__ = ["CODECS", "Codec", "Float32Array", "codec_named"]


@dataclass(frozen=True, slots=True)
class Codec:
    """A named pair of functions between float32 values and bytes.

    Safe to use from several threads: the scratch space is each call's own, a few cache blocks.
    """

    name: str
    encoded_bytes: Callable[[int], int]
    """Exact size in bytes of n encoded elements."""
    _encode: Callable[[Float32Array], bytes]
    _decode: Callable[[ByteArray, Float32Array], None]
    feedback_decay: float | None = None
    """What is kept of the sender's residual from round to round (`tapestry.params.feedback`);
    None if what the codec drops is too little to keep."""

    def encode(self, values: Float32Array) -> bytes:
        """Return `values` ([n] float32) as bytes.

        Raises:
            RejectedError: A value is NaN, infinite, or too large for the codec: training has
                diverged.
        """
        _require_float32_vector(values)
        return self._encode(np.ascontiguousarray(values))

    def decode(self, data: bytes | memoryview, elements: int) -> Float32Array:
        """Return the [elements] float32 values in `data`.

        Raises:
            RejectedError: `data` has another size than `elements` need, or is not what an encoder
                writes: NaN, infinity, codes outside the grid.
        """
        self._require_size(data, elements)
        values = np.empty(elements, np.float32)
        self.decode_into(data, values)
        return values

    def decode_into(self, data: bytes | memoryview, out: Float32Array) -> None:
        """Write the values in `data` to `out`, so that one fragment after another needs no memory.

        Args:
            data: The encoded fragment.
            out: [n] float32, contiguous, overwritten; of no use after a refusal.

        Raises:
            RejectedError: As for `decode`.
        """
        _require_float32_vector(out)
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise TypeError("expected a contiguous vector that can be written to")
        self._require_size(data, len(out))
        self._decode(np.frombuffer(data, np.uint8), out)

    def _require_size(self, data: bytes | memoryview, elements: int) -> None:
        if len(data) != self.encoded_bytes(elements):
            raise RejectedError(
                f"a {self.name} fragment of {elements:,} elements has "
                f"{self.encoded_bytes(elements):,} bytes, got {len(data):,}"
            )


def _require_float32_vector(values: Float32Array) -> None:
    if values.dtype != np.float32 or values.ndim != 1:
        raise TypeError(f"expected a float32 vector, got {values.dtype} of shape {values.shape}")


CODECS = {
    codec.name: codec
    for codec in (
        Codec("float32", lambda n: 4 * n, floats.encode_float32, floats.decode_float32),
        Codec("bfloat16", lambda n: 2 * n, floats.encode_bfloat16, floats.decode_bfloat16),
        Codec("int8", blockwise.int8_bytes, blockwise.encode_int8, blockwise.decode_int8),
        Codec("int4", blockwise.int4_bytes, blockwise.encode_int4, blockwise.decode_int4),
        Codec("topk", topk.topk_bytes, topk.encode_topk, topk.decode_topk, feedback_decay=0.95),
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
