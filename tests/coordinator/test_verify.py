"""Whether a published folder is what its federation signed: every kind of damage is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapestry.checkpoints.folder import CARD_FILE, LINEAGE_FILE, MANIFEST_FILE
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import UntrustedError
from tapestry.ledger.proof import PROOF_FILE
from tapestry_coordinator.home import CoordinatorHome
from tests.conftest import Federation
from tests.coordinator.small import Small, found_small
from tests.coordinator.test_continuing import found_upon
from tests.damaging import flipped

STATEMENTS = {
    MANIFEST_FILE: "manifest",
    LINEAGE_FILE: "lineage|genesis manifest",
    CARD_FILE: "card",
}
FILES = [
    "README.md", "bom.cdx.json", "chat_template.jinja", "config.json", "generation_config.json",
    "model.safetensors", "model.sig", "tapestry/card.json", "tapestry/lineage.jsonl",
    "tapestry/manifest.json",
    "tapestry/model-signing.pub", "tapestry/policy.json", "tapestry/results.json",
    "tapestry/results.png", "tapestry/round.jsonl", "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


@pytest.fixture
def copy(federation: Federation, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(federation.newest, folder)
    return folder


def after_three_rounds(folder: Path, federation: str) -> Small:
    small = found_small(folder, federation=federation)
    for _round in range(3):
        small.publisher.publish(small.closed({"a": [0.1, 0.1]}))
    return small


@pytest.fixture(scope="module")
def three_rounds(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return after_three_rounds(tmp_path_factory.mktemp("small") / "fed", "loom")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Another federation after three rounds; not to be changed."""
    return after_three_rounds(tmp_path_factory.mktemp("other") / "fed", "warp")


@pytest.fixture
def small(three_rounds: Small, tmp_path: Path) -> Small:
    """A copy of a federation after three rounds."""
    shutil.copytree(three_rounds.home.folder, tmp_path / "fed")
    return Small(CoordinatorHome(tmp_path / "fed"))


def named(name: str) -> str:
    """What a refusal of that file must mention: its name, or which statement it is."""
    return STATEMENTS.get(name, name)


def test_a_copy_verifies_wherever_it_lies(copy: Path, federation: Federation) -> None:
    verified = verify_checkpoint(copy)
    assert verified.folder == copy
    assert verified.manifest.round == 1
    assert verified.genesis_digest == federation.closed.plan.genesis
    assert {entry.member_id for entry in verified.card.evaluations} == {"fr-bnf", "is-lbs"}
    assert verify_checkpoint(federation.genesis).manifest.made is None


def test_these_are_all_the_files_of_a_checkpoint(copy: Path) -> None:
    found = [p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()]
    assert sorted(found) == sorted([*FILES, PROOF_FILE])


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused_and_its_file_named(copy: Path, name: str) -> None:
    path = copy / name
    data = path.read_bytes()
    for share in (0.0, 0.31, 0.62, 1.0):
        bit = round(share * (8 * len(data) - 1))
        path.write_bytes(flipped(data, bit))
        with pytest.raises(UntrustedError, match=named(name)):
            verify_checkpoint(copy)
    path.write_bytes(data)
    verify_checkpoint(copy)


def test_one_flipped_bit_of_a_file_that_few_checkpoints_have_is_named(
    federation: Federation, tmp_path: Path
) -> None:
    """A step from the parent, an operator's image, an older federation's manifests."""
    small = found_small(tmp_path / "small", downlink="delta-int8")
    notes = small.home.notes(1)
    notes.mkdir(parents=True)
    (notes / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n and so on")
    small.publisher.publish(small.closed({"a": [0.5, 0.5]}))
    north = found_upon(federation.newest, tmp_path / "north", "north")
    folders = {
        "tapestry/step.bin": small.home.checkpoint(1),
        "tapestry/loss.png": small.home.checkpoint(1),
        "tapestry/ancestry.jsonl": north.genesis.folder,
    }
    for name, folder in folders.items():
        data = (folder / name).read_bytes()
        for bit in (0, 4 * len(data), 8 * len(data) - 1):
            (folder / name).write_bytes(flipped(data, bit))
            with pytest.raises(UntrustedError, match=name):
                verify_checkpoint(folder)
        (folder / name).write_bytes(data)
        verify_checkpoint(folder)


@pytest.mark.parametrize("name", [MANIFEST_FILE, LINEAGE_FILE, CARD_FILE])
def test_no_bit_of_a_statement_is_beyond_the_signature(small: Small, name: str) -> None:
    path = small.home.checkpoint(1) / name
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 101):
        path.write_bytes(flipped(data, bit))
        with pytest.raises(UntrustedError):
            verify_checkpoint(path.parents[1])


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_and_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UntrustedError, match=named(name)):
        verify_checkpoint(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_truncated_file_is_refused_and_named(copy: Path, name: str, share: float) -> None:
    path = copy / name
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(UntrustedError, match=named(name)):
        verify_checkpoint(copy)


@pytest.mark.parametrize("name", [n for n in FILES if n not in STATEMENTS])
def test_a_longer_file_is_refused_and_named(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(UntrustedError, match=rf"{name}: .* bytes, the manifest says"):
        verify_checkpoint(copy)


@pytest.mark.parametrize(
    "name", ["modeling.py", "tapestry/extra.json", ".hidden", "a/b/c.py", "model.safetensors.bak"]
)
def test_an_added_file_is_refused_and_named(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_text("import os")
    with pytest.raises(UntrustedError, match=rf"{name}: not a file of this checkpoint; remove it"):
        verify_checkpoint(copy)


@pytest.mark.parametrize("name", [n for n in FILES if n not in STATEMENTS])
def test_a_link_in_place_of_a_file_is_refused_and_named(
    copy: Path, tmp_path: Path, name: str
) -> None:
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedError, match=rf"{name}: missing, or not a plain file"):
        verify_checkpoint(copy)


def test_a_folder_in_place_of_a_file_is_refused_and_named(copy: Path) -> None:
    (copy / "README.md").unlink()
    (copy / "README.md").mkdir()
    with pytest.raises(UntrustedError, match=r"README\.md: missing, or not a plain file"):
        verify_checkpoint(copy)


@pytest.mark.parametrize("target", ["file", "folder", "nowhere"])
def test_an_added_link_is_refused_and_named(copy: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("import os")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "modeling.py").write_text("import os")
    (copy / "original").symlink_to(tmp_path / target)
    with pytest.raises(UntrustedError, match="original: not a file of this checkpoint"):
        verify_checkpoint(copy)


def test_a_folder_of_statements_that_is_a_link_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "tapestry").rename(tmp_path / "elsewhere")
    (copy / "tapestry").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedError, match="tapestry"):
        verify_checkpoint(copy)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match=r"manifest: .*manifest\.json cannot be read: No such"):
        verify_checkpoint(tmp_path)


# Lineage


def swap_lines(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1:3] = lines[2:0:-1]
    path.write_bytes(b"".join(lines))


def drop_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[2:]]))


def drop_genesis(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def repeat_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[0], *lines[1:]]))


def blank_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 1))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (swap_lines, "manifest after round 0: is of round 2; a link is missing"),
        (drop_line, "manifest after round 0: is of round 2; a link is missing"),
        (drop_genesis, "genesis manifest: is the manifest of round 1, not of genesis"),
        (repeat_line, "manifest after round 0: is of round 0; a link is missing"),
        (blank_line, "lineage, line 2"),
    ],
)
def test_a_changed_order_of_the_lineage_is_refused(
    small: Small, damage: Callable[[Path], None], cause: str
) -> None:
    folder = small.home.checkpoint(3)
    verify_checkpoint(folder)
    damage(folder / LINEAGE_FILE)
    with pytest.raises(UntrustedError, match=cause):
        verify_checkpoint(folder)


def test_a_lineage_of_another_federation_is_refused(small: Small, other: Small) -> None:
    folder = small.home.checkpoint(3)
    shutil.copyfile(other.home.checkpoint(3) / LINEAGE_FILE, folder / LINEAGE_FILE)
    with pytest.raises(UntrustedError, match="manifest after round 2: signed by key"):
        verify_checkpoint(folder)


@pytest.mark.parametrize("number", [0, 2])
def test_a_manifest_of_another_federation_is_refused(
    small: Small, other: Small, number: int
) -> None:
    folder = small.home.checkpoint(2)
    shutil.copyfile(other.home.checkpoint(number) / MANIFEST_FILE, folder / MANIFEST_FILE)
    with pytest.raises(UntrustedError, match="manifest after round 1: signed by key"):
        verify_checkpoint(folder)


def test_an_older_manifest_of_the_same_federation_is_refused(small: Small) -> None:
    folder = small.home.checkpoint(3)
    shutil.copyfile(small.home.checkpoint(2) / MANIFEST_FILE, folder / MANIFEST_FILE)
    with pytest.raises(UntrustedError, match="manifest after round 2: is of round 2"):
        verify_checkpoint(folder)


def test_a_card_of_another_checkpoint_is_refused(small: Small) -> None:
    folder = small.home.checkpoint(3)
    shutil.copyfile(small.home.checkpoint(2) / CARD_FILE, folder / CARD_FILE)
    with pytest.raises(UntrustedError, match=r"card\.json: the card of another checkpoint"):
        verify_checkpoint(folder)


def test_a_model_of_another_round_is_refused(small: Small) -> None:
    folder = small.home.checkpoint(3)
    shutil.copyfile(small.home.checkpoint(2) / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(UntrustedError, match=r"model\.safetensors: changed: SHA-256 .* fetch the"):
        verify_checkpoint(folder)


# Signatures


def strip_signature(table: dict[str, Any]) -> None:
    table["signatures"] = []


def empty_signature(table: dict[str, Any]) -> None:
    table["signatures"][0]["sig"] = ""


def second_signature(table: dict[str, Any]) -> None:
    table["signatures"] *= 2


def no_signatures(table: dict[str, Any]) -> None:
    del table["signatures"]


def other_type(table: dict[str, Any]) -> None:
    table["payloadType"] = "application/vnd.tapestry.receipt.v1+json"


@pytest.mark.parametrize("name", [MANIFEST_FILE, CARD_FILE])
@pytest.mark.parametrize(
    "damage", [strip_signature, empty_signature, second_signature, no_signatures, other_type]
)
def test_a_stripped_or_moved_signature_is_refused(
    small: Small, name: str, damage: Callable[[dict[str, Any]], None]
) -> None:
    path = small.home.checkpoint(1) / name
    table = json.loads(path.read_bytes())
    damage(table)
    path.write_text(json.dumps(table))
    with pytest.raises(UntrustedError, match=STATEMENTS[name]):
        verify_checkpoint(path.parents[1])


# The federation that is expected


def test_a_federation_is_named_by_its_digits(copy: Path) -> None:
    digest = verify_checkpoint(copy).genesis_digest
    for pin in (digest, digest[:16], digest[:16].upper(), digest[:40]):
        assert verify_checkpoint(copy, federation=pin).genesis_digest == digest
    changed = digest[:15] + ("0" if digest[15] != "0" else "1")
    for pin in (changed, digest[1:17], "0" * 64, digest + "0"):
        with pytest.raises(UntrustedError, match="checkpoint of another federation: its identity"):
            verify_checkpoint(copy, federation=pin)


@pytest.mark.parametrize("digits", [0, 15])
def test_too_few_digits_do_not_name_a_federation(copy: Path, digits: int) -> None:
    digest = verify_checkpoint(copy).genesis_digest
    with pytest.raises((UntrustedError, ValueError)):
        verify_checkpoint(copy, federation=digest[:digits])


def test_verification_needs_neither_torch_nor_grpc(copy: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from tapestry.checkpoints.verify import verify_checkpoint;"
        "print(verify_checkpoint(Path(sys.argv[1])).manifest.round);"
        "assert not {'torch', 'grpc', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
