"""Digests of fragments, the root over them, and which are missing."""

import hashlib

import pytest

from tapestry.errors import RejectedError
from tapestry.ledger.merkle import inclusion_path, verify_inclusion
from tapestry.params.fragments import (
    fragment_digest,
    fragments_root,
    pack_missing,
    split_digests,
    unpack_missing,
)

DIGESTS = [fragment_digest(bytes([n])) for n in range(5)]


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_a_fragments_digest_is_the_sha256_of_its_bytes() -> None:
    # FIPS 180-2, appendix B.1
    assert fragment_digest(b"abc").hex().startswith("ba7816bf8f01cfea")


def test_the_root_of_three_fragments_by_hand() -> None:
    leaves = [sha256(b"\0" + digest) for digest in DIGESTS[:3]]
    left = sha256(b"\1" + leaves[0] + leaves[1])
    assert fragments_root(DIGESTS[:3]) == sha256(b"\1" + left + leaves[2])


def test_the_order_of_fragments_is_part_of_the_root() -> None:
    assert fragments_root(DIGESTS) != fragments_root(DIGESTS[::-1])


def test_one_fragment_can_be_proved_without_the_others() -> None:
    path = inclusion_path(DIGESTS, 3)
    assert verify_inclusion(DIGESTS[3], 3, 5, path, fragments_root(DIGESTS))
    assert not verify_inclusion(DIGESTS[2], 3, 5, path, fragments_root(DIGESTS))


def test_joined_digests_come_apart_again() -> None:
    assert split_digests(b"".join(DIGESTS), expected=5) == tuple(DIGESTS)


@pytest.mark.parametrize("joined", [b"", b"".join(DIGESTS)[:-1], b"".join(DIGESTS[:4])])
def test_another_number_of_digests_is_refused(joined: bytes) -> None:
    with pytest.raises(RejectedError, match=f"expected 5 .* got {len(joined)} bytes"):
        split_digests(joined, expected=5)


def test_missing_fragments_are_one_bit_each_lowest_first() -> None:
    missing = [True, False, True] + [False] * 6 + [True]  # bits 0 and 2; bit 1 of the next byte
    assert pack_missing(missing) == bytes([0b101, 0b10])
    assert unpack_missing(bytes([0b101, 0b10]), 10) == [0, 2, 9]


@pytest.mark.parametrize("fragments", [0, 1, 7, 8, 9, 64])
def test_what_is_packed_is_unpacked(fragments: int) -> None:
    missing = [index % 3 == 0 for index in range(fragments)]
    indices = [index for index, is_missing in enumerate(missing) if is_missing]
    assert unpack_missing(pack_missing(missing), fragments) == indices


def test_bits_beyond_the_last_fragment_are_ignored() -> None:
    assert unpack_missing(b"\xff\xff", 3) == [0, 1, 2]
    assert unpack_missing(b"\xff", 100) == list(range(8))
