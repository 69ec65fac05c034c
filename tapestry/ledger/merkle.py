"""The Merkle tree of RFC 6962 (Certificate Transparency), over SHA-256.

A root of 32 bytes stands for a list of leaves of any length; a path of at most log2(n) digests
proves that one leaf is in it. Leaves and inner nodes are hashed under different prefixes, so that
neither can pass for the other, and no leaf is ever duplicated to fill a level.

Levels are built from the leaves up, pairing neighbours; a node without one moves up as it is.
That gives the same tree as the RFC's recursive split at the largest power of two.
"""

import hashlib
from collections.abc import Sequence

_LEAF_PREFIX = b"\x00"
_NODE_PREFIX = b"\x01"
_DIGEST_BYTES = 32


def leaf_hash(data: bytes) -> bytes:
    """Return the digest of a leaf that holds `data`."""
    return hashlib.sha256(_LEAF_PREFIX + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the digest of the node above the digests `left` and `right`."""
    return hashlib.sha256(_NODE_PREFIX + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over the data of `leaves`; an empty tree has the SHA-256 of nothing."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = [leaf_hash(data) for data in leaves]
    while len(level) > 1:
        level = _level_above(level)
    return level[0]


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the digests that lead from leaf `index` (from 0) to the root, lowest first."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"leaf {index} of a tree of {len(leaves)} leaves")
    level = [leaf_hash(data) for data in leaves]
    path = []
    while len(level) > 1:
        neighbour = index ^ 1
        if neighbour < len(level):
            path.append(level[neighbour])
        level = _level_above(level)
        index //= 2
    return path


def verify_inclusion(
    leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> bool:
    """Tell whether `path` proves that `leaf` is number `index` (from 0) of the tree `root`.

    Args:
        leaf: The leaf's data.
        index: Its position.
        size: How many leaves the tree has.
        path: What `inclusion_path` gave, from a source that need not be trusted.
        root: The tree's root, from a source that is trusted.
    """
    if not 0 <= index < size:
        return False
    digest = leaf_hash(leaf)
    remaining = iter(path)
    last = size - 1
    while last > 0:
        if index != last or index % 2 == 1:  # it has a neighbour on this level
            neighbour = next(remaining, None)
            if neighbour is None or len(neighbour) != _DIGEST_BYTES:
                return False
            is_right = index % 2 == 1
            digest = node_hash(neighbour, digest) if is_right else node_hash(digest, neighbour)
        index //= 2
        last //= 2
    return next(remaining, None) is None and digest == root


def _level_above(level: list[bytes]) -> list[bytes]:
    pairs = zip(level[::2], level[1::2], strict=False)
    above = [node_hash(left, right) for left, right in pairs]
    if len(level) % 2 == 1:
        above.append(level[-1])
    return above
