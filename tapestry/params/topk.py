"""The codec `topk`: of each chunk of 4096 elements the 64 largest, at two magnitudes.

Made for SparseLoCo (Sarfi et al., 2025, arXiv 2508.15706; T6 of the project's reference): 2-bit
values and 12-bit places, 896 bits a chunk, and beside them the chunk's two magnitudes in 32 bits;
together .2266 bits an element. What is not sent stays with the sender (`tapestry.params.feedback`).

Of a chunk of m elements (4096; fewer in the last) s = ceil(m / 64) are sent: those of largest
magnitude, and of equal ones those of lowest index. Their magnitudes, rounded to bfloat16 and in
ascending order, are r[0] ... r[s-1], the last z of them not zero. The chunk's magnitudes are

* low = r[7 s // 16] if z = s, else 0, so that a zero that is sent stays zero;
* high = r[s - z + 15 z // 16] if z > 0, else 0.

Each sent element takes the nearer of the two: the high one above low / 2 + high / 2 (in float32).
Both are order statistics: no arithmetic, no rounding but that to bfloat16, and one outlier does not
move them. 7/16 and 15/16 are close to the quantiles of the best two levels for the tail of a
Laplace distribution, .45 and .93 by Lloyd's condition, which that of a normal one resembles.

Wire format, little-endian; S = ceil(n / 64) elements are sent, in ascending order of index:

1. for each of the ceil(n / 4096) chunks: low, high as bfloat16;
2. ceil(S / 4) bytes of 2-bit values, from the lowest bits up: bit 0 set for the high magnitude,
   bit 1 for a minus sign, which zero never has;
3. ceil(3 S / 2) bytes of 12-bit places within the chunk: a pair a, b is a + 4096 b in 3 bytes.

Unused bits at the end of 2 and 3 are zero. Where low = high, all are low.

Shapes: n elements of a fragment; C chunks; W elements of a chunk; s sent of a chunk; S sent.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tapestry.errors import RejectedError
from tapestry.params.floats import (
    BFLOAT16_INFINITY,
    CACHE_ELEMENTS,
    ByteArray,
    Float32Array,
    HalfArray,
    WordArray,
    magnitudes,
    not_finite,
    require_finite,
    round_to_bfloat16,
    too_large,
)

CHUNK = 4096
"""Elements of a chunk."""
_PER_SENT = 64
"""Of so many elements one is sent."""
_SENT = CHUNK // _PER_SENT
_CHUNKS_AT_ONCE = CACHE_ELEMENTS // CHUNK

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)

Places = npt.NDArray[np.int64]


def topk_bytes(elements: int) -> int:
    """Return the size of `elements` elements in `topk`."""
    return sum(_sizes(elements))


def _sizes(elements: int) -> tuple[int, int, int]:
    """Return the bytes of magnitudes, values and places."""
    chunks, sent = -(-elements // CHUNK), -(-elements // _PER_SENT)
    return 4 * chunks, -(-sent // 4), -(-3 * sent // 2)


def encode_topk(values: Float32Array) -> bytes:
    """Return `values` ([n] float32) as topk_bytes(n) bytes."""
    levels = np.empty((-(-len(values) // CHUNK), 2), np.uint16)
    sent = -(-len(values) // _PER_SENT)
    codes = np.zeros(-(-sent // 4) * 4, np.uint8)
    places = np.zeros(-(-sent // 2) * 2, np.int64)
    for first, rows in _rows(values):
        places_here = _largest_of(rows)
        rows_levels, rows_codes = _two_levels(np.take_along_axis(rows, places_here, axis=1))
        levels[first : first + len(rows)] = rows_levels
        begin = first * _SENT
        codes[begin : begin + rows_codes.size] = rows_codes.reshape(-1)
        places[begin : begin + places_here.size] = places_here.reshape(-1)
    _head, _middle, tail = _sizes(len(values))
    packed = _pack_codes(codes).tobytes() + _pack_places(places)[:tail].tobytes()
    return levels.astype("<u2").tobytes() + packed


def decode_topk(data: ByteArray, out: Float32Array) -> None:
    """Write the values in `data` ([topk_bytes(n)] bytes) to `out` ([n] float32)."""
    head, middle, _tail = _sizes(len(out))
    sent = -(-len(out) // _PER_SENT)
    levels = data[:head].view("<u2").astype(np.uint16).reshape(-1, 2)
    codes = _unpack_codes(data[head : head + middle])
    places = _unpack_places(data[head + middle :])
    if codes[sent:].any() or places[sent:].any():
        raise RejectedError("the topk fragment has bits after its last element")
    codes, places = codes[:sent], places[:sent]
    chunk = np.arange(sent) // _SENT
    _require_levels(levels)
    _require_places(places, chunk, len(out))
    is_high, is_negative = codes & 1, codes >> 1
    if is_high[(levels[:, 0] == levels[:, 1])[chunk]].any():
        raise RejectedError("the topk fragment tells two magnitudes apart that are equal")
    halves = levels[chunk, is_high]
    if is_negative[halves == 0].any():
        raise RejectedError("the topk fragment has a zero with a minus sign")
    words = halves.astype(np.uint32) << np.uint32(16)
    words |= is_negative.astype(np.uint32) << np.uint32(31)
    out.fill(0)
    out[chunk * CHUNK + places] = words.view(np.float32)


def _rows(values: Float32Array) -> Iterator[tuple[int, Float32Array]]:
    """Yield the index of the first chunk and a [C, W] view of it and the next; the last alone."""
    whole = len(values) // CHUNK
    for first in range(0, whole, _CHUNKS_AT_ONCE):
        last = min(first + _CHUNKS_AT_ONCE, whole)
        yield first, values[first * CHUNK : last * CHUNK].reshape(-1, CHUNK)
    if whole * CHUNK < len(values):
        yield whole, values[whole * CHUNK :].reshape(1, -1)


def _largest_of(rows: Float32Array) -> Places:
    """Return the places of the largest magnitudes of each row of [C, W], ascending: [C, s]."""
    sent = -(-rows.shape[1] // _PER_SENT)
    words: WordArray = np.empty(rows.shape, np.uint32)
    magnitudes(rows, out=words)
    ordered = np.partition(words, -sent, axis=1)[:, -sent:]
    require_finite(int(ordered.max()))
    threshold = ordered[:, 0]
    taken = words >= threshold[:, None]
    for row in np.flatnonzero(np.count_nonzero(taken, axis=1) > sent):
        equal = np.flatnonzero(words[row] == threshold[row])
        surplus = np.count_nonzero(taken[row]) - sent
        taken[row, equal[len(equal) - surplus :]] = False
    places: Places = np.flatnonzero(taken).reshape(-1, sent) % rows.shape[1]
    return places


def _two_levels(kept: Float32Array) -> tuple[HalfArray, ByteArray]:
    """Return low and high of each chunk as bfloat16, [C, 2], and the 2-bit values, [C, s]."""
    chunks, sent = kept.shape
    words: WordArray = np.empty(kept.shape, np.uint32)
    rounded: HalfArray = np.empty(kept.shape, np.uint16)
    magnitudes(kept, out=words)
    round_to_bfloat16(words.copy(), scratch=words, out=rounded)
    ordered = np.sort(rounded, axis=1)
    if ordered.max() >= BFLOAT16_INFINITY:
        raise too_large("topk")
    nonzero = np.count_nonzero(ordered, axis=1)
    levels: HalfArray = np.empty((chunks, 2), np.uint16)
    levels[:, 0] = np.where(nonzero == sent, ordered[:, 7 * sent // 16], 0)
    rank = np.minimum(sent - nonzero + 15 * nonzero // 16, sent - 1)
    levels[:, 1] = ordered[np.arange(chunks), rank]
    low, high = (_single(levels[:, [side]]) for side in (0, 1))
    middle = low * np.float32(0.5) + high * np.float32(0.5)
    is_high = (_single(rounded) > middle) & (high > low)
    is_negative = (kept < 0) & (is_high | (low > 0))
    return levels, is_high.astype(np.uint8) | is_negative.astype(np.uint8) << np.uint8(1)


def _single(halves: HalfArray) -> Float32Array:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _pack_codes(codes: ByteArray) -> ByteArray:
    """Return four 2-bit values a byte; their number is a multiple of four."""
    packed: ByteArray = np.bitwise_or.reduce(codes.reshape(-1, 4) << _SHIFTS, axis=1)
    return packed


def _unpack_codes(packed: ByteArray) -> ByteArray:
    codes: ByteArray = packed[:, None] >> _SHIFTS & np.uint8(3)
    return codes.reshape(-1)


def _pack_places(places: Places) -> ByteArray:
    """Return two 12-bit places in three bytes; their number is even."""
    pairs = places[0::2] | places[1::2] << 12
    return np.stack(
        [pairs & 0xFF, pairs >> 8 & 0xFF, pairs >> 16], axis=1, dtype=np.uint8, casting="unsafe"
    ).reshape(-1)


def _unpack_places(packed: ByteArray) -> Places:
    padded = np.zeros(-(-len(packed) // 3) * 3, np.int64)
    padded[: len(packed)] = packed
    three = padded.reshape(-1, 3)
    pairs = three[:, 0] | three[:, 1] << 8 | three[:, 2] << 16
    return np.stack([pairs & 0xFFF, pairs >> 12], axis=1).reshape(-1)


def _require_levels(levels: HalfArray) -> None:
    """Refuse magnitudes that no encoder writes."""
    if (levels & 0x7FFF >= BFLOAT16_INFINITY).any():
        raise not_finite("topk")
    if (levels > 0x7FFF).any():
        raise RejectedError("the topk fragment has a magnitude that is negative")
    if (levels[:, 0] > levels[:, 1]).any():
        raise RejectedError("the topk fragment has a low magnitude above the high one")


def _require_places(places: Places, chunk: Places, elements: int) -> None:
    """Refuse places outside their chunk, repeated or not in order."""
    same_chunk = chunk[1:] == chunk[:-1]
    if (places[1:] <= places[:-1])[same_chunk].any():
        raise RejectedError("the topk fragment has places that are repeated or not in order")
    if len(places) and chunk[-1] * CHUNK + places[-1] >= elements:
        raise RejectedError("the topk fragment has a place after its last element")
