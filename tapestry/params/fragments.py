"""Digests of fragments, and the root over them.

The root is the RFC 6962 Merkle tree hash over the fragments' SHA-256 digests, so that one
fragment can be proved to belong to a vector without the others.
"""

import hashlib
import os
from collections.abc import Sequence

import xxhash

from tapestry.errors import RejectedError
from tapestry.ledger.merkle import merkle_root

DIGEST_BYTES = 32
_SEED = int.from_bytes(os.urandom(8))


def fragment_digest(data: bytes | memoryview) -> bytes:
    """Return the SHA-256 of one encoded fragment."""
    return hashlib.sha256(data).digest()


def fragment_checksum(data: bytes | memoryview) -> bytes:
    """Return the XXH3 (128 bits) of bytes whose SHA-256 is known, to recognise them later.

    Against a disk or a memory that errs, at the speed of memory; not against people, although the
    seed is this process's secret. It stays in the process that computed it.
    """
    return xxhash.xxh3_128_digest(data, seed=_SEED)


def fragments_root(digests: Sequence[bytes]) -> bytes:
    """Return the Merkle root over the fragments' digests, in index order."""
    return merkle_root(digests)


def split_digests(joined: bytes, *, expected: int) -> tuple[bytes, ...]:
    """Cut concatenated digests apart.

    Raises:
        RejectedError: There are not `expected` of them.
    """
    if len(joined) != expected * DIGEST_BYTES:
        raise RejectedError(
            f"expected {expected:,} fragment digests of {DIGEST_BYTES} bytes, "
            f"got {len(joined):,} bytes"
        )
    return tuple(joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES))


def pack_missing(missing: Sequence[bool]) -> bytes:
    """Return one bit a fragment, index order, least significant bit first."""
    packed = bytearray((len(missing) + 7) // 8)
    for index, is_missing in enumerate(missing):
        packed[index // 8] |= int(is_missing) << (index % 8)
    return bytes(packed)


def unpack_missing(packed: bytes, fragments: int) -> list[int]:
    """Return the indices below `fragments` whose bit is set."""
    return [i for i in range(min(fragments, 8 * len(packed))) if packed[i // 8] >> (i % 8) & 1]
