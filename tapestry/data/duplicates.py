"""Exact and near-duplicates: which document repeats an earlier one.

A document's shingles are the windows of `_WINDOW_BYTES` over its UTF-8 without case, blanks and
punctuation of ASCII: they need no words, so every script is treated alike. One shingle in
`_SAMPLING`, chosen by its own hash and so the same in every document, is kept, and MinHash (rensa)
makes of those a signature whose share of equal places estimates the Jaccard similarity. Signatures
are compared where a band of them is equal (locality-sensitive hashing), by sorting: memory is about
thirty bytes a document, and the result depends on the documents and their order alone.

Shapes: N documents, K places of a signature, S bytes of a batch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

PLACES = 64
"""K."""

_WINDOW_BYTES = 20
_SAMPLING = 4
_FEWEST_SHINGLES = 24
"""Of the kept ones: a shorter text says too little, and is compared exactly only."""
_SEED = 20_260_101
_RECALL = 0.99
"""Of pairs at the threshold, how many are compared at least."""
_CHUNK = 2**16
_DROPPED = bytes(range(0x30)) + b":;<=>?@[\\]^_`{|}~\x7f"
_LOWER = bytes(range(256)).lower()

_random = np.random.Generator(np.random.PCG64(_SEED))
_BYTE_VALUES = _random.integers(0, 2**32, 256, dtype=np.uint32)
_BASE = 0x9E3779B1
_INVERSE = pow(_BASE, -1, 2**32)
_MIX_SHINGLE = np.uint32(0x85EBCA6B)
_MIX = np.uint64(0xD6E8FEB86659FD93)

Signatures = npt.NDArray[np.uint32]


def _powers(base: int, count: int) -> npt.NDArray[np.uint32]:
    return np.cumprod(np.full(count, base, np.uint32), dtype=np.uint32)


_AT_ONCE = 2**16
_UP = _powers(_BASE, _AT_ONCE + _WINDOW_BYTES)
_DOWN = _powers(_INVERSE, _AT_ONCE + _WINDOW_BYTES)


def sign(texts: Sequence[bytes]) -> tuple[Signatures, npt.NDArray[np.bool_]]:
    """Return a signature [N, K] of each text (UTF-8), and whether it can be compared [N]."""
    plain = [text.translate(_LOWER, _DROPPED) for text in texts]
    ends = np.cumsum([len(one) for one in plain], dtype=np.int64)
    hashes, places = _shingles(np.frombuffer(b"".join(plain), np.uint8))
    begins = np.searchsorted(places, np.concatenate([np.zeros(1, np.int64), ends[:-1]]))
    stops = np.maximum(begins, np.searchsorted(places, ends - _WINDOW_BYTES, side="right"))
    is_inside = np.ones(len(places), np.bool_)
    for stop, begin in zip(stops, [*begins[1:], len(places)], strict=True):
        is_inside[stop:begin] = False  # windows that reach into the next text
    hashes, counts = hashes[is_inside], stops - begins
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(counts, dtype=np.uint64)])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        hashes.astype(np.uint64), offsets, PLACES, _SEED
    )
    signatures = np.array(matrix.to_rows(), np.uint32).reshape(len(texts), PLACES)
    return signatures, counts >= _FEWEST_SHINGLES


def _shingles(
    bytes_S: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return the hashes of the kept windows and where each begins.

    A window's hash is a polynomial of its bytes modulo 2^32, from differences of prefix sums; a
    piece at a time, so that it stays in the processor's cache.
    """
    hashes: list[npt.NDArray[np.uint32]] = []
    places: list[npt.NDArray[np.int64]] = []
    for begin in range(0, max(0, len(bytes_S) - _WINDOW_BYTES + 1), _AT_ONCE):
        piece = bytes_S[begin : begin + _AT_ONCE + _WINDOW_BYTES - 1]
        count = len(piece) - _WINDOW_BYTES + 1
        sums = np.empty(len(piece) + 1, np.uint32)
        sums[0] = 0
        weighted = np.take(_BYTE_VALUES, piece)
        weighted *= _UP[: len(piece)]
        np.cumsum(weighted, dtype=np.uint32, out=sums[1:])
        windows = sums[_WINDOW_BYTES:] - sums[:count]
        windows *= _DOWN[:count]
        windows ^= windows >> np.uint32(16)
        windows *= _MIX_SHINGLE
        windows ^= windows >> np.uint32(15)
        kept = np.flatnonzero((windows & np.uint32(_SAMPLING - 1)) == 0)
        hashes.append(windows[kept])
        places.append(kept + begin)
    if not hashes:
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    return np.concatenate(hashes), np.concatenate(places)


def exact_duplicates(digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return for each document the first with its digest [N, 2], or -1 if that is itself."""
    count = len(digests)
    originals = np.full(count, -1, np.int64)
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    in_order = digests[order]
    is_same = np.zeros(count, np.bool_)
    is_same[1:] = (in_order[1:] == in_order[:-1]).all(axis=1)
    firsts = np.maximum.accumulate(np.where(is_same, 0, np.arange(count)))
    originals[order[is_same]] = order[firsts[is_same]]
    return originals


def near_duplicates(
    signatures: Signatures, candidates: npt.NDArray[np.int64], *, similarity: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return for each candidate an earlier one that it is similar to, or -1, and how similar.

    Args:
        signatures: [N, K], perhaps memory-mapped.
        candidates: Numbers of the documents to compare, rising.
        similarity: From which estimated Jaccard similarity on.

    Returns:
        Numbers of documents and similarities, a place for each candidate.
    """
    count = len(candidates)
    originals = np.full(count, -1, np.int64)
    similarities = np.zeros(count, np.float32)
    for earlier, later in _pairs(signatures, candidates, rows_of_band(similarity)):
        is_open = (originals[later] < 0) | (originals[later] > earlier)
        left, right = earlier[is_open], later[is_open]
        shares = _similarities(signatures, candidates[left], candidates[right])
        is_similar = shares >= similarity
        originals[right[is_similar]] = left[is_similar]
        similarities[right[is_similar]] = shares[is_similar]
    found = originals >= 0
    originals[found] = candidates[originals[found]]
    return originals, similarities


def _pairs(
    signatures: Signatures, candidates: npt.NDArray[np.int64], rows: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield pairs of candidates with an equal band, the earlier and the later ones.

    Of many with one band, each is paired with the first and with the one before it.
    """
    count = len(candidates)
    for first_place in range(0, PLACES - rows + 1, rows):
        keys = _band_keys(signatures, candidates, first_place, rows)
        order = np.argsort(keys, kind="stable")
        is_same = np.zeros(count, np.bool_)
        is_same[1:] = keys[order[1:]] == keys[order[:-1]]
        at = np.flatnonzero(is_same)
        if len(at):
            firsts = np.maximum.accumulate(np.where(is_same, 0, np.arange(count)))
            yield order[firsts[at]], order[at]
            yield order[at - 1], order[at]


def _similarities(
    signatures: Signatures, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    shares = np.zeros(len(left), np.float32)
    for begin in range(0, len(left), _CHUNK):
        end = begin + _CHUNK
        equal = signatures[left[begin:end]] == signatures[right[begin:end]]
        shares[begin:end] = equal.mean(axis=1, dtype=np.float32)
    return shares


def _band_keys(
    signatures: Signatures, candidates: npt.NDArray[np.int64], first_place: int, rows: int
) -> npt.NDArray[np.uint64]:
    """Return a hash of `rows` places of each candidate's signature."""
    keys = np.zeros(len(candidates), np.uint64)
    for begin in range(0, len(candidates), _CHUNK):
        chosen = candidates[begin : begin + _CHUNK]
        band = signatures[chosen, first_place : first_place + rows].astype(np.uint64)
        part = keys[begin : begin + _CHUNK]
        for place in range(rows):
            part += band[:, place]
            part *= _MIX
            part ^= part >> np.uint64(31)
    return keys


def rows_of_band(similarity: float) -> int:
    """Return the most places of a band with which pairs at the threshold are still compared."""
    for rows in range(PLACES, 1, -1):
        missed = (1 - similarity**rows) ** (PLACES // rows)
        if 1 - missed >= _RECALL:
            return rows
    return 1
