"""`tapestry ledger`, over copies as coordinators and nodes leave them."""

import json
import shutil
from pathlib import Path

import pytest

from tapestry.cli.ledger import app
from tapestry.cli.running import run_app
from tapestry.identity.envelopes import to_json
from tapestry.ledger.folder import GENESIS_FILE, LedgerFolder
from tapestry.ledger.heads import Head, SignedHead, cosign_head, origin_of, sign_head
from tapestry.ledger.merkle import Tree
from tests.coordinator.small import Small, found_small
from tests.core.ledgers import entries, member_key, tree_of


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return found_small(tmp_path_factory.mktemp("cli") / "fed")


def head_of(small: Small, tree: Tree, *members: str) -> SignedHead:
    genesis = small.home.load_genesis()
    origin = origin_of(genesis.origin.federation, genesis.genesis_digest)
    head = sign_head(Head(origin, tree.size, tree.root()), small.key)
    lines = [cosign_head(head.head, member_id=m, key=member_key(m), now=9) for m in members]
    return head.with_cosignatures(lines)


def copy_of(small: Small, folder: Path, leaves: list[bytes]) -> Path:
    tree, mirror = tree_of(leaves), LedgerFolder(folder / "ledger")
    mirror.write(tree, lambda begin, end: leaves[begin:end], head_of(small, tree, "fr-bnf"))
    (mirror.path / GENESIS_FILE).write_bytes(to_json(small.lineage[0]))
    return folder


def called(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run_app(app, ["ledger", *arguments]) == code
    caught = capsys.readouterr()
    return caught.out if code == 0 else caught.err


def test_a_copy_is_shown_and_verified(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(small, tmp_path / "node", entries(300))
    said = called(capsys, "show", str(folder), "--last", "2")
    assert "entries     300" in said
    assert "cosigned    by fr-bnf" in said
    assert "299  contribution fr-bnf of round 74" in said
    shown = json.loads(called(capsys, "show", str(folder / "ledger"), "--last", "3", "--json"))
    assert [one["index"] for one in shown["entries"]] == [297, 298, 299]
    identity = small.home.load_genesis().genesis_digest
    said = called(capsys, "verify", str(folder), "--federation", identity[:16])
    assert "verified:" in said
    assert "3 files of digests" in said
    table = json.loads(called(capsys, "verify", str(folder), "--json"))
    assert (table["verified"], table["size"], table["pinned"]) == (True, 300, False)
    assert "of another federation" in called(
        capsys, "verify", str(folder), "--federation", "0" * 16, code=1
    )
    assert "at least 16 digits" in called(
        capsys, "verify", str(folder), "--federation", "00", code=1
    )
    assert "no ledger there" in called(capsys, "verify", str(tmp_path), code=1)


def test_a_changed_mirror_is_named(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(small, tmp_path / "node", entries(20))
    path = folder / "ledger/tile/entries/000.p/20"
    path.write_bytes(path.read_bytes().replace(b"fr-bnf", b"fr-bnx", 1))
    assert "000.p/20 or" in called(capsys, "verify", str(folder), code=1)


def test_two_copies_of_one_history_and_of_two(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = copy_of(small, tmp_path / "one", entries(20))
    longer = copy_of(small, tmp_path / "longer", entries(33))
    lie = copy_of(small, tmp_path / "lie", entries(33, history="two", since=7))
    out = tmp_path / "proof.json"
    said = called(capsys, "compare", str(longer), str(one), "--out", str(out))
    assert said == "one history: 20 entries are the first of 33\n"
    assert not out.exists()
    said = called(capsys, "compare", str(one), str(lie), "--out", str(out), code=1)
    assert "two histories" in said
    genesis = str(small.home.checkpoint(0))
    said = called(capsys, "evidence", str(out), "--genesis", genesis)
    assert "proved: the coordinator of tapestry/loom/" in said
    assert "it has shown two histories" in said
    table = json.loads(
        called(capsys, "evidence", str(out), "--genesis", str(one / "ledger"), "--json")
    )
    assert (table["proved"], table["sizes"]) == (True, [20, 33])


def test_evidence_that_proves_nothing_is_refused(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = copy_of(small, tmp_path / "one", entries(20))
    lie = copy_of(small, tmp_path / "lie", entries(20, history="two", since=7))
    out, genesis = tmp_path / "proof.json", str(small.home.checkpoint(0))
    called(capsys, "compare", str(one), str(lie), "--out", str(out), code=1)
    value = json.loads(out.read_text())
    out.write_text(json.dumps({**value, "second": value["first"]}))
    assert "nothing here proves" in called(
        capsys, "evidence", str(out), "--genesis", genesis, code=1
    )
    other = found_small(tmp_path / "other", federation="warp")
    out.write_text(json.dumps(value))
    said = called(capsys, "evidence", str(out), "--genesis", str(other.home.checkpoint(0)), code=1)
    assert "expected 'tapestry/warp/" in said
    shutil.rmtree(lie)
    assert "cannot be read" in called(capsys, "evidence", str(lie), "--genesis", genesis, code=1)
