"""Entries, tiles, witnesses, evidence and proofs of a ledger."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestry.errors import UntrustedError
from tapestry.ledger.entries import CHECKPOINT, CONTRIBUTION, Entry, exclusion_digest, read_entry
from tapestry.ledger.evidence import verify_evidence, write_evidence
from tapestry.ledger.folder import LedgerFolder
from tapestry.ledger.merkle import Tree
from tapestry.ledger.proof import verify_ledger_proof, write_proof
from tapestry.ledger.tiles import bundle, read_bundle, tile_path, widths
from tapestry.ledger.witness import (
    ForkedError,
    Growth,
    ShrunkError,
    UnprovedError,
    follow,
    grow,
)
from tests.core.ledgers import (
    ORIGIN,
    PUBLIC,
    cosigned,
    digest_of,
    entries,
    head_of,
    public_key,
    tree_of,
)


def test_an_entry_is_the_bytes_that_the_protocol_writes() -> None:
    entry = Entry(kind=CONTRIBUTION, round=7, payload_digest="ab" * 32, member_id="fr-bnf")
    assert entry.leaf() == (
        b'{"kind":"contribution","member_id":"fr-bnf","payload_digest":"'
        + b"ab" * 32
        + b'","round":7,"version":1}'
    )
    assert read_entry(entry.leaf(), what="entry") == entry


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"round":7', b'"round":7.0'),
        (b'"round":7', b'"round":true'),
        (b'"round":7', b'"round":-1'),
        (b'"round":7', b'"round": 7'),
        (b'"version":1', b'"version":2'),
        (b'"version":1', b'"version":1,"x":1'),
        (b'"plan"', b'"Plan"'),
        (b"abab", b"ABAB"),
        (b'{"kind"', b'{"round":8,"kind"'),
        (b'"kind":"plan",', b""),
        (b"}", b""),
    ],
)
def test_another_spelling_of_an_entry_is_refused(old: bytes, new: bytes) -> None:
    leaf = Entry(kind="plan", round=7, payload_digest="ab" * 32).leaf()
    with pytest.raises(UntrustedError, match=r"^entry: "):
        read_entry(leaf.replace(old, new, 1), what="entry")


@given(st.binary(max_size=300))
def test_any_bytes_are_an_entry_or_refused(data: bytes) -> None:
    with pytest.raises(UntrustedError):
        read_entry(data, what="entry")


def test_an_exclusion_has_a_digest_that_its_member_can_make_too() -> None:
    assert exclusion_digest(round_number=3, member_id="a", kind="refused", reason="NaN") == (
        digest_of('{"kind":"refused","member_id":"a","reason":"NaN","round":3}')
    )


# Tiles


@pytest.mark.parametrize(
    ("level", "number", "width", "path"),
    [
        (0, 0, 256, "tile/0/000"),
        (1, 5, 17, "tile/1/005.p/17"),
        (0, 1234067, 256, "tile/0/x001/x234/067"),  # the example of tlog-tiles
        ("entries", 1000, 3, "tile/entries/x001/000.p/3"),
    ],
)
def test_tiles_are_named_as_c2sp_has_it(level: int, number: int, width: int, path: str) -> None:
    assert tile_path(level, number, width) == path  # type: ignore[arg-type]


def test_a_tree_has_the_tiles_that_c2sp_counts() -> None:
    tiles = list(widths(70_000))
    assert sum(1 for level, _n, width in tiles if (level, width) == (0, 256)) == 273
    assert [one for one in tiles if one[2] != 256] == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert sum(1 for level, _n, width in tiles if (level, width) == (1, 256)) == 1
    assert list(widths(256)) == [(0, 0, 256), (1, 0, 1)]


def test_bundles_that_are_cut_short_are_refused() -> None:
    data = bundle([b"one", b"two"])
    assert data == b"\x00\x03one\x00\x03two"
    assert read_bundle(data, what="bundle") == [b"one", b"two"]
    for cut in (1, 4, 6, 9):
        with pytest.raises(UntrustedError, match=r"^bundle: cut short"):
            read_bundle(data[:cut], what="bundle")


def written(folder: Path, *sizes: int) -> LedgerFolder:
    leaves = entries(max(sizes))
    tree, mirror = tree_of(leaves), LedgerFolder(folder)
    for size in sizes:
        mirror.write(tree, lambda begin, end: leaves[begin:end], head_of(tree, size))
    return mirror


def test_a_mirror_grows_and_is_read_back_whole(tmp_path: Path) -> None:
    mirror = written(tmp_path, 3, 250, 256, 600)
    stored = mirror.read(origin=ORIGIN, public_key=PUBLIC)
    assert stored.entries == entries(600)
    assert stored.tree.root() == stored.head.head.root
    assert mirror.require_tiles(stored) == 4  # two full ones, one of 88, one of 2 above
    names = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert names == {
        "checkpoint",
        "tile/0/000",
        "tile/0/001",
        "tile/0/002.p/88",
        "tile/1/000.p/1",
        "tile/1/000.p/2",
        "tile/entries/000",
        "tile/entries/001",
        "tile/entries/002.p/88",
    }


def test_a_mirror_that_lost_files_is_mended_by_the_next_head(tmp_path: Path) -> None:
    mirror = written(tmp_path, 300)
    (tmp_path / "tile/0/000").unlink()
    with pytest.raises(UntrustedError, match="tile/0/000: cannot be read"):
        mirror.require_tiles(mirror.read(origin=ORIGIN, public_key=PUBLIC))
    written(tmp_path, 301).require_tiles(mirror.read(origin=ORIGIN, public_key=PUBLIC))


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000", "tile/1/000.p/1", "tile/entries/000"])
def test_a_flipped_bit_in_a_mirror_is_found_and_named(tmp_path: Path, name: str) -> None:
    mirror = written(tmp_path, 260)
    data = bytearray((tmp_path / name).read_bytes())
    data[30] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(UntrustedError, match=name):
        mirror.require_tiles(mirror.read(origin=ORIGIN, public_key=PUBLIC))


def test_reordered_and_truncated_entries_are_found(tmp_path: Path) -> None:
    mirror = written(tmp_path, 5)
    path = tmp_path / "tile/entries/000.p/5"
    leaves = entries(5)
    path.write_bytes(bundle([leaves[1], leaves[0], *leaves[2:]]))
    with pytest.raises(UntrustedError, match="do not have the root that the head signs"):
        mirror.read(origin=ORIGIN, public_key=PUBLIC)
    path.write_bytes(bundle(leaves[:4]))
    with pytest.raises(UntrustedError, match="4 entries, expected 5"):
        mirror.read(origin=ORIGIN, public_key=PUBLIC)


# Witnesses


def test_a_witness_follows_a_ledger_that_only_grows() -> None:
    tree = tree_of(entries(40))
    known = None
    for size in (0, 1, 1, 7, 8, 39, 40):
        new = head_of(tree, size)
        old = 0 if known is None else known.head.size
        follow(known, new, Growth(tree.root(old), tree.consistency(old, size)))
        known = new


def test_a_witness_refuses_a_shorter_ledger() -> None:
    tree = tree_of(entries(40))
    with pytest.raises(ShrunkError, match="ledger of 30 entries, this node has accepted one of 40"):
        follow(head_of(tree, 40), head_of(tree, 30), Growth(tree.root(30), ()))


@pytest.mark.parametrize(("known", "shown"), [(12, 12), (12, 40), (16, 17), (1, 40)])
def test_two_histories_are_proved_to_anybody(known: int, shown: int) -> None:
    mine = head_of(tree_of(entries(known)))
    lie = tree_of(entries(shown, history="two", since=known - 1))
    with pytest.raises(ForkedError, match="two histories") as caught:
        follow(mine, head_of(lie), Growth(lie.root(known), lie.consistency(known)))
    fork = verify_evidence(caught.value.evidence, origin=ORIGIN, public_key=PUBLIC, what="file")
    assert (fork.first, fork.second) == (mine.head, head_of(lie).head)
    assert fork.root == lie.root(known)


def test_an_honest_coordinator_cannot_be_framed() -> None:
    tree = tree_of(entries(40))
    first, second = head_of(tree, 12), head_of(tree, 40)
    with pytest.raises(ValueError, match="not proved"):
        write_evidence(first, second, root=tree.root(12), path=tree.consistency(12))
    lie = tree_of(entries(40, history="two", since=3))
    with pytest.raises(ValueError, match="not proved"):
        write_evidence(first, second, root=lie.root(12), path=lie.consistency(12))
    true = json.loads(
        write_evidence(first, head_of(lie), root=lie.root(12), path=lie.consistency(12))
    )
    for change in (
        {"second": second.body},
        {"second": first.body},
        {"root": tree.root(12).hex()},
        {"path": true["path"][:-1]},
        {"path": []},
        {"first": head_of(lie, 12).body},
        {"first": head_of(lie, 12).body, "root": tree.root(12).hex()},
        {"version": 2},
        {"kind": "x"},
        {"path": "x"},
        {"root": "00"},
    ):
        data = json.dumps({**true, **change}).encode()
        with pytest.raises(UntrustedError, match=r"^file: "):
            verify_evidence(data, origin=ORIGIN, public_key=PUBLIC, what="file")
    with pytest.raises(UntrustedError, match="not signed by"):
        verify_evidence(
            json.dumps(true).encode(), origin=ORIGIN, public_key=public_key("x"), what="file"
        )


def test_a_proof_of_nothing_is_no_evidence() -> None:
    mine, lie = head_of(tree_of(entries(12))), tree_of(entries(40, history="two", since=11))
    with pytest.raises(UnprovedError, match="does not show how"):
        follow(mine, head_of(lie), Growth(bytes(32), lie.consistency(12)[1:]))


def test_a_witness_takes_entries_only_if_they_lead_to_the_head() -> None:
    leaves, tree = entries(40), tree_of(entries(12))
    known, whole = head_of(tree), tree_of(leaves)
    for wrong in (leaves[12:39], leaves[11:40], [*leaves[12:39], leaves[0]], []):
        with pytest.raises(UnprovedError, match="do not lead from the 12"):
            grow(tree, known, head_of(whole), wrong)
        assert (tree.size, tree.root()) == (12, known.head.root)
    grow(tree, known, head_of(whole), leaves[12:])
    assert tree.root() == whole.root()
    with pytest.raises(ShrunkError, match="entries are gone"):
        grow(tree, head_of(whole), known, [])


# Proofs


def proof(size: int = 40, index: int = 8, *members: str) -> tuple[bytes, Tree]:
    leaves = entries(size)
    tree = tree_of(leaves)
    head = cosigned(head_of(tree), *members)
    return write_proof(tree, leaf=leaves[index], index=index, head=head), tree


def verified(data: bytes, **changes: object) -> object:
    given = {
        "manifest_digest": digest_of("one 8"),
        "round_number": 2,
        "coordinator_key": PUBLIC,
        "origin": ORIGIN,
        "witnesses": {name: public_key(name) for name in ("a", "b")},
        "quorum": 0,
        **changes,
    }
    return verify_ledger_proof(data, **given)  # type: ignore[arg-type]


def test_a_checkpoint_is_proved_to_be_in_the_ledger() -> None:
    data, tree = proof(40, 8, "a", "stranger")
    found = verify_ledger_proof(
        data,
        manifest_digest=digest_of("one 8"),
        round_number=2,
        coordinator_key=PUBLIC,
        origin=ORIGIN,
        witnesses={"a": public_key("a")},
        quorum=1,
    )
    assert (found.index, found.head.head.size, found.head.head.root) == (8, 40, tree.root())
    assert found.cosigned == {"a": 1_750_000_000}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quorum": 2}, "1 of the members have cosigned the head .a., 2 are asked for"),
        ({"manifest_digest": digest_of("one 12")}, "not this checkpoint's manifest"),
        ({"round_number": 3}, "under round 2, it is of round 3"),
        ({"origin": "tapestry/other/00"}, "of the ledger"),
        ({"coordinator_key": public_key("a")}, "not signed by"),
        ({"witnesses": {}, "quorum": 1}, "0 of the members"),
    ],
)
def test_a_proof_counts_for_its_own_checkpoint_alone(
    changes: dict[str, object], words: str
) -> None:
    data, _tree = proof(40, 8, "a")
    with pytest.raises(UntrustedError, match=words):
        verified(data, **changes)


def test_a_contribution_does_not_pass_for_a_checkpoint() -> None:
    data, _tree = proof(40, 9)
    with pytest.raises(UntrustedError, match="proves contribution"):
        verified(data, manifest_digest=digest_of("one 9"))


def test_every_step_of_a_proof_counts() -> None:
    data, _tree = proof()
    value = json.loads(data)
    for place, step in enumerate(value["path"]):
        flipped = f"{int(step[0], 16) ^ 1:x}{step[1:]}"
        for path in (
            [*value["path"][:place], flipped, *value["path"][place + 1 :]],
            [*value["path"][:place], *value["path"][place + 1 :]],
        ):
            with pytest.raises(UntrustedError, match="does not lead from entry 8"):
                verified(json.dumps({**value, "path": path}).encode())
    for index in (-1, 7, 9, 2**60):
        with pytest.raises(UntrustedError, match="does not lead"):
            verified(json.dumps({**value, "index": index}).encode())


@given(st.integers(0, 100_000), st.integers(0, 7))
def test_one_flipped_bit_in_a_proof_is_refused_or_changes_nothing(place: int, bit: int) -> None:
    data, tree = proof(40, 8, "a")
    raw = bytearray(data)
    raw[place % len(raw)] ^= 1 << bit
    try:
        found = verified(bytes(raw))
    except UntrustedError:
        return
    assert found.head.head.root == tree.root()  # type: ignore[attr-defined]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_proof_and_evidence_or_refused(data: bytes) -> None:
    with pytest.raises(UntrustedError):
        verified(data)
    with pytest.raises(UntrustedError):
        verify_evidence(data, origin=ORIGIN, public_key=PUBLIC, what="file")
    with pytest.raises(UntrustedError):
        verified(json.dumps({"entry": {"kind": CHECKPOINT}, "version": 1}).encode())
