"""A federation founded upon another's checkpoint: the same vector, and the way there."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tapestry.checkpoints.ancestry import ANCESTRY_FILE, read_ancestry, require_ancestry
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_checkpoint
from tapestry.errors import ConfigError, UntrustedError
from tapestry.objectives.objective import objective_named
from tapestry_coordinator.continuing import open_origin
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tests.conftest import FOUNDED_AT, Federation, settings_for


@dataclass(frozen=True)
class Founded:
    home: CoordinatorHome
    genesis: VerifiedCheckpoint


def found_upon(checkpoint: Path, folder: Path, name: str) -> Founded:
    origin = open_origin(checkpoint)
    founding = Founding(
        federation=name,
        objective=objective_named(origin.lineage.origin.objective),
        create={},
        pool=[],
        seed=0,
        policy=origin.policy,
        start=origin.start(),
    )
    found(folder, founding, settings_for, now=FOUNDED_AT + 1000)
    home = CoordinatorHome(folder)
    return Founded(home, verify_checkpoint(home.checkpoint(0)))


@pytest.fixture(scope="module")
def north(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Founded:
    """A federation founded upon checkpoint 1 of loom."""
    return found_upon(federation.newest, tmp_path_factory.mktemp("north") / "fed", "north")


def test_genesis_is_the_older_checkpoint_and_names_it(
    federation: Federation, north: Founded
) -> None:
    old = verify_checkpoint(federation.newest)
    was = north.genesis.lineage.origin.continues
    assert was is not None
    assert (was.federation, was.genesis, was.manifest, was.round) == (
        "loom",
        old.genesis_digest,
        old.manifest_digest,
        1,
    )
    assert north.genesis.manifest.vector_root == old.manifest.vector_root
    assert north.genesis.manifest.round == 0
    assert north.genesis.genesis_digest != old.genesis_digest
    assert (north.genesis.folder / "tokenizer.json").is_file()


def test_settings_and_policy_are_taken_over(federation: Federation, north: Founded) -> None:
    made = verify_checkpoint(federation.newest).manifest.made
    assert made is not None
    assert north.home.load_settings().inner.settings() == made.inner
    assert north.home.load_policy() == federation.closed.policy


def test_a_third_federation_keeps_the_way_through_both(north: Founded, tmp_path: Path) -> None:
    third = found_upon(north.home.checkpoint(0), tmp_path / "fed", "east")
    older = require_ancestry(third.genesis.folder, third.genesis.lineage)
    assert [one.origin.federation for one in older] == ["loom", "north"]
    assert len(read_ancestry(third.genesis.folder)) == 3  # loom 0 and 1, north 0


@pytest.mark.parametrize("lines", [0, 1])
def test_an_ancestry_that_lacks_its_end_is_refused(
    north: Founded, tmp_path: Path, lines: int
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(north.home.checkpoint(0), copy)
    path = copy / ANCESTRY_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    with pytest.raises(UntrustedError, match="does not go on from the checkpoint"):
        require_ancestry(copy, north.genesis.lineage)
    with pytest.raises(UntrustedError, match=r"ancestry\.jsonl"):
        verify_checkpoint(copy)


def test_what_is_neither_export_nor_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: neither an export"):
        open_origin(tmp_path)
