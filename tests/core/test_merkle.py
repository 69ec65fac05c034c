"""The Merkle tree, against the roots of Certificate Transparency and the RFC's own recursion."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestry.ledger.merkle import (
    Tree,
    inclusion_path,
    leaf_hash,
    merkle_root,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

# The reference leaves of Certificate Transparency, and the roots of the first 0 to 8 of them.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATHS = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}

# Consistency between sizes of the same trees, as github.com/transparency-dev/merkle has them.
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 7): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}


def rfc_root(leaves: list[bytes]) -> bytes:
    """Compute MTH as RFC 6962, section 2.1, writes it."""
    if len(leaves) <= 1:
        return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    k = rfc_split(len(leaves))
    return hashlib.sha256(b"\x01" + rfc_root(leaves[:k]) + rfc_root(leaves[k:])).digest()


def rfc_path(leaves: list[bytes], m: int) -> list[bytes]:
    """Compute PATH as RFC 6962, section 2.1.1, writes it."""
    if len(leaves) == 1:
        return []
    k = rfc_split(len(leaves))
    if m < k:
        return [*rfc_path(leaves[:k], m), rfc_root(leaves[k:])]
    return [*rfc_path(leaves[k:], m - k), rfc_root(leaves[:k])]


def rfc_proof(m: int, leaves: list[bytes]) -> list[bytes]:
    """Compute PROOF as RFC 6962, section 2.1.2, writes it."""
    return rfc_subproof(m, leaves, is_known=True)


def rfc_subproof(m: int, leaves: list[bytes], *, is_known: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if is_known else [rfc_root(leaves)]
    k = rfc_split(len(leaves))
    if m <= k:
        return [*rfc_subproof(m, leaves[:k], is_known=is_known), rfc_root(leaves[k:])]
    return [*rfc_subproof(m - k, leaves[k:], is_known=False), rfc_root(leaves[:k])]


def rfc_split(n: int) -> int:
    return 1 << (n - 1).bit_length() - 1  # the largest power of two smaller than n


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert merkle_root(LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_paths_are_those_of_certificate_transparency(index: int, size: int) -> None:
    path = inclusion_path(LEAVES[:size], index)
    assert [digest.hex() for digest in path] == PATHS[index, size]


def test_leaves_and_nodes_are_hashed_under_different_prefixes() -> None:
    assert leaf_hash(b"ab") == hashlib.sha256(b"\x00ab").digest()
    assert node_hash(b"a", b"b") == hashlib.sha256(b"\x01ab").digest()


@pytest.mark.parametrize("size", [*range(1, 34), 100, 127, 128, 129])
def test_every_tree_is_the_rfcs_and_every_leaf_is_proved(size: int) -> None:
    leaves = [b"leaf %d" % number for number in range(size)]
    root = merkle_root(leaves)
    assert root == rfc_root(leaves)
    for index, leaf in enumerate(leaves):
        path = inclusion_path(leaves, index)
        assert path == rfc_path(leaves, index)
        assert verify_inclusion(leaf, index, size, path, root)


def grown(leaves: list[bytes]) -> Tree:
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_consistency_is_that_of_certificate_transparency(old: int, new: int) -> None:
    path = grown(LEAVES).consistency(old, new)
    assert [digest.hex() for digest in path] == CONSISTENCY[old, new]
    assert verify_consistency(old, bytes.fromhex(ROOTS[old]), new, bytes.fromhex(ROOTS[new]), path)


@pytest.mark.parametrize("size", [*range(35), 63, 64, 65, 127, 128, 129, 130])
def test_a_tree_that_grows_is_the_rfcs_at_every_size_that_it_had(size: int) -> None:
    leaves = [b"leaf %d" % number for number in range(130)]
    tree, begin = grown(leaves), leaves[:size]
    assert tree.root(size) == rfc_root(begin)
    for index in range(size):
        assert tree.inclusion(index, size) == rfc_path(begin, index)
    for old in range(1, size + 1):
        path = tree.consistency(old, size)
        assert path == rfc_proof(old, begin)
        assert verify_consistency(old, rfc_root(leaves[:old]), size, rfc_root(begin), path)
    assert verify_consistency(0, rfc_root([]), size, rfc_root(begin), [])


@given(st.integers(1, 130), st.integers(0, 130), st.data())
def test_no_changed_consistency_proof_is_accepted(new: int, old: int, data: st.DataObject) -> None:
    old = min(old, new - 1)
    leaves = [b"leaf %d" % number for number in range(new)]
    tree = grown(leaves)
    path, old_root, new_root = tree.consistency(old, new), tree.root(old), tree.root(new)
    assert verify_consistency(old, old_root, new, new_root, path)
    wrong = leaf_hash(b"another")
    for place in range(len(path)):
        bit = 1 << data.draw(st.integers(0, 7))
        flipped = bytes([path[place][0] ^ bit]) + path[place][1:]
        for forged in (
            [*path[:place], flipped, *path[place + 1 :]],
            [*path[:place], *path[place + 1 :]],
            [*path[:place], path[place][:-1], *path[place + 1 :]],
            [*path[:place], wrong, *path[place:]],
        ):
            assert not verify_consistency(old, old_root, new, new_root, forged)
    assert not verify_consistency(old, old_root, new, new_root, [*path, wrong])
    assert not verify_consistency(old, wrong, new, new_root, path)
    assert old == 0 or not verify_consistency(old, old_root, new, wrong, path)
    assert not verify_consistency(new, new_root, old, old_root, path)
    other = data.draw(st.integers(0, 130).filter(lambda size: size != old))
    assert not verify_consistency(other, old_root, new, new_root, path)


def test_a_changed_history_is_not_consistent() -> None:
    leaves = [b"leaf %d" % number for number in range(40)]
    for changed in range(13):
        other = grown([*leaves[:changed], b"another", *leaves[changed + 1 :]])
        path = other.consistency(13, 40)
        assert not verify_consistency(13, grown(leaves).root(13), 40, other.root(), path)


@given(st.lists(st.integers(0, 40), max_size=12))
def test_leaves_that_are_taken_back_leave_no_trace(sizes: list[int]) -> None:
    tree, kept = Tree(), list[bytes]()
    for turn, size in enumerate(sizes):
        kept = kept[:size]
        tree.truncate(min(size, tree.size))
        more = [b"%d of turn %d" % (number, turn) for number in range(size)]
        for leaf in more:
            tree.append(leaf)
        kept += more
        assert (tree.size, tree.root()) == (len(kept), merkle_root(kept))


@pytest.mark.parametrize("wrong", [-1, 4])
def test_what_a_tree_does_not_have_is_a_bug(wrong: int) -> None:
    tree = grown([b"a", b"b", b"c"])
    for ask in (tree.root, tree.inclusion, tree.consistency, tree.truncate):
        with pytest.raises(ValueError, match="leaves"):
            ask(wrong)
    with pytest.raises(ValueError, match="subtree 1 of level 1 in a tree of 3 leaves"):
        tree.subtree(1, 1)


def test_a_repeated_last_leaf_changes_the_root() -> None:
    assert merkle_root([b"a", b"b", b"c"]) != merkle_root([b"a", b"b", b"c", b"c"])


def test_an_inner_node_does_not_pass_for_a_leaf() -> None:
    root = merkle_root([b"a", b"b"])
    both = leaf_hash(b"a") + leaf_hash(b"b")
    assert not verify_inclusion(both, 0, 1, [], root)


@pytest.mark.parametrize("size", range(1, 18))
def test_a_proof_holds_for_its_own_leaf_place_and_tree_only(size: int) -> None:
    leaves = [b"leaf %d" % number for number in range(size)]
    root = merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        path = inclusion_path(leaves, index)
        assert not verify_inclusion(b"another", index, size, path, root)
        assert not verify_inclusion(leaf, index, size, path, leaf_hash(b"another"))
        assert not verify_inclusion(leaf, index, size, [*path, root], root)
        for other in range(-1, size + 1):
            if other != index:
                assert not verify_inclusion(leaf, other, size, path, root)
        for place in range(len(path)):
            assert not verify_inclusion(leaf, index, size, path[:place], root)
            forged = [*path[:place], leaf_hash(b"another"), *path[place + 1 :]]
            assert not verify_inclusion(leaf, index, size, forged, root)
            shortened = [*path[:place], path[place][:-1], *path[place + 1 :]]
            assert not verify_inclusion(leaf, index, size, shortened, root)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 1), (1, 1), (0, -1), (0, 2**80)])
def test_an_impossible_place_is_no_proof(index: int, size: int) -> None:
    assert not verify_inclusion(b"a", index, size, [], leaf_hash(b"a"))


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 3), (3, 3)])
def test_asking_for_the_path_of_a_leaf_that_is_not_there_is_a_bug(index: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"leaf {index} of a tree of {size} leaves"):
        inclusion_path([b"x"] * size, index)
