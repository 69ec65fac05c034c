"""The Merkle tree of RFC 6962 (Certificate Transparency), over SHA-256.

A root of 32 bytes stands for a list of leaves of any length; a path of at most log2(n) digests
proves that one leaf is in it, another one that a tree only grew. Leaves and inner nodes are hashed
under different prefixes, so that neither can pass for the other, and no leaf is ever duplicated to
fill a level.

Levels are built from the leaves up, pairing neighbours; a node without one moves up as it is.
That gives the same tree as the RFC's recursive split at the largest power of two. `Tree` keeps the
digests of whole subtrees, so that it grows, and proves, in log2(n) steps.
"""

import hashlib
from collections.abc import Sequence

DIGEST_BYTES = 32

_LEAF_PREFIX = b"\x00"
_NODE_PREFIX = b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """Return the digest of a leaf that holds `data`."""
    return hashlib.sha256(_LEAF_PREFIX + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the digest of the node above the digests `left` and `right`."""
    return hashlib.sha256(_NODE_PREFIX + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over the data of `leaves`; an empty tree has the SHA-256 of nothing."""
    return root_of_hashes([leaf_hash(data) for data in leaves])


def root_of_hashes(level: Sequence[bytes]) -> bytes:
    """Return the root over leaves whose digests are `level`."""
    if not level:
        return hashlib.sha256(b"").digest()
    while len(level) > 1:
        level = _level_above(level)
    return level[0]


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the digests that lead from leaf `index` (from 0) to the root, lowest first."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"leaf {index} of a tree of {len(leaves)} leaves")
    level: Sequence[bytes] = [leaf_hash(data) for data in leaves]
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
            if neighbour is None or len(neighbour) != DIGEST_BYTES:
                return False
            is_right = index % 2 == 1
            digest = node_hash(neighbour, digest) if is_right else node_hash(digest, neighbour)
        index //= 2
        last //= 2
    return next(remaining, None) is None and digest == root


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]
) -> bool:
    """Tell whether `path` proves that the tree `new_root` begins with the tree `old_root`.

    Whoever accepts it knows that nothing of the first `old_size` leaves was changed, moved or taken
    out. An empty tree is the beginning of every other.

    Args:
        old_size: Leaves of the tree that is known.
        old_root: Its root.
        new_size: Leaves of the tree that is to follow from it.
        new_root: Its root.
        path: What `Tree.consistency` gave, from a source that need not be trusted.
    """
    if not 0 <= old_size <= new_size or any(len(one) != DIGEST_BYTES for one in path):
        return False
    if old_size == 0:
        return not path and old_root == root_of_hashes([])
    if old_size == new_size:
        return not path and old_root == new_root
    is_whole = old_size & (old_size - 1) == 0  # the old tree is one subtree of the new one
    digests = [old_root, *path] if is_whole else list(path)
    if not digests:
        return False
    return _grown(old_size - 1, new_size - 1, digests) == (old_root, new_root)


def _grown(old: int, new: int, digests: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """Return the roots of two trees, by their last leaves and the digests that both are made of."""
    while old % 2 == 1:
        old, new = old // 2, new // 2
    first = second = digests[0]
    for digest in digests[1:]:
        if new == 0:
            return None
        if old % 2 == 1 or old == new:
            first, second = node_hash(digest, first), node_hash(digest, second)
            while old % 2 == 0 and old != 0:
                old, new = old // 2, new // 2
        else:
            second = node_hash(second, digest)
        old, new = old // 2, new // 2
    return (first, second) if new == 0 else None


class Tree:
    """A tree that grows: the digests of all its whole subtrees, two for each leaf."""

    def __init__(self) -> None:
        """Begin empty."""
        self._levels: list[bytearray] = [bytearray()]

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0]) // DIGEST_BYTES

    def append(self, leaf: bytes) -> int:
        """Add a leaf that holds `leaf`; return its index, from 0."""
        return self.append_hash(leaf_hash(leaf))

    def append_hash(self, digest: bytes) -> int:
        """Add a leaf with that digest; return its index, from 0."""
        index = position = self.size
        for level in range(64):
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += digest
            if position % 2 == 0:
                return index
            digest = node_hash(self.subtree(level, position - 1), digest)
            position //= 2
        raise ValueError("a tree of more than 2**63 leaves")

    def truncate(self, size: int) -> None:
        """Take the last leaves back, so that `size` are left."""
        if not 0 <= size <= self.size:
            raise ValueError(f"{size} of a tree of {self.size} leaves")
        for number, level in enumerate(self._levels):
            del level[(size >> number) * DIGEST_BYTES :]

    def subtree(self, level: int, index: int) -> bytes:
        """Return the digest above the 2**level leaves from index * 2**level on, all there."""
        begin = index * DIGEST_BYTES
        digest = bytes(self._levels[level][begin : begin + DIGEST_BYTES])
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"subtree {index} of level {level} in a tree of {self.size} leaves")
        return digest

    def root(self, size: int | None = None) -> bytes:
        """Return the root, or the one that the tree had with `size` leaves."""
        size = self._sized(size)
        return self._hash(0, size) if size else root_of_hashes([])

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return what `verify_inclusion` asks for, of the tree with `size` leaves."""
        size = self._sized(size)
        if not 0 <= index < size:
            raise ValueError(f"leaf {index} of a tree of {size} leaves")
        begin, end, path = 0, size, []
        while end - begin > 1:
            middle = begin + _split(end - begin)
            if index < middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(begin, middle))
                begin = middle
        return path[::-1]

    def consistency(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """Return what `verify_consistency` asks for, from the tree with `old_size` leaves on."""
        new_size = self._sized(new_size)
        if not 0 <= old_size <= new_size:
            raise ValueError(f"from {old_size} to {new_size} leaves a tree does not grow")
        if old_size in (0, new_size):
            return []
        begin, end, path = 0, new_size, []
        while old_size != end:
            middle = begin + _split(end - begin)
            if old_size <= middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(begin, middle))
                begin = middle
        if begin > 0:  # else the verifier has it: it is the old root
            path.append(self._hash(begin, end))
        return path[::-1]

    def _sized(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise ValueError(f"{size} of a tree of {self.size} leaves")
        return size

    def _hash(self, begin: int, end: int) -> bytes:
        """Return the digest above some leaves that the RFC's split leads to."""
        count = end - begin
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self.subtree(level, begin >> level)
        middle = begin + _split(count)
        return node_hash(self._hash(begin, middle), self._hash(middle, end))


def _split(count: int) -> int:
    """Return the largest power of two smaller than `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _level_above(level: Sequence[bytes]) -> list[bytes]:
    pairs = zip(level[::2], level[1::2], strict=False)
    above = [node_hash(left, right) for left, right in pairs]
    if len(level) % 2 == 1:
        above.append(level[-1])
    return above
