"""Local finish: some more steps from the consensus on the node's own text, for itself alone."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, TapestryError
from tapestry.identity.certificates import create_authority
from tapestry_node.finishing import finish_locally
from tapestry_node.home import NodeHome, NodeState
from tests.conftest import Federation
from tests.members import joined_member

pytestmark = pytest.mark.usefixtures("threads_given_back")

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "our text.txt"
    texts = [f"vefarinn vefur, {number}. " * 5 for number in range(40)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture
def home(tmp_path: Path, federation: Federation) -> NodeHome:
    """A member's folder after it has taken part in round 1."""
    verified = verify_checkpoint(federation.newest)
    made = joined_member(
        tmp_path / "node",
        create_authority("loom", now=NOW),
        member_id="is-lbs",
        issued=NOW,
        coordinator_key=verified.lineage.coordinator_key.hex(),
        genesis=verified.genesis_digest,
    )
    shutil.copytree(federation.newest, made.checkpoint(1))
    made.save_state(
        NodeState(round=1, manifest=verified.manifest_digest, contributed=1, objective="causal-lm")
    )
    return made


def test_finishing_helps_on_the_own_text_and_names_the_parent(
    home: NodeHome, text: Path, tmp_path: Path, federation: Federation
) -> None:
    out = tmp_path / "finished"
    parentage = finish_locally(home, [text], out, steps=6)
    measured = parentage.held_out_bits_per_byte
    assert measured["after"] < measured["before"]
    assert (parentage.round, parentage.steps) == (1, 6)
    assert parentage.tokens == 6 * 8 * 128  # sequences and length of the federation's rounds
    assert parentage.data == ["our text.txt"]
    table = json.loads((out / "tapestry-parent.json").read_text(encoding="utf-8"))
    assert table["manifest"] == verify_checkpoint(federation.newest).manifest_digest
    base = open_vector_file(federation.newest / MODEL_FILE).vector
    assert not np.array_equal(open_vector_file(out / MODEL_FILE).vector, base)


def test_finishing_sends_nothing_and_leaves_the_node_as_it_was(
    home: NodeHome, text: Path, tmp_path: Path
) -> None:
    before = home.load_state()
    finish_locally(home, [text], tmp_path / "finished", steps=1)
    assert not home.egress.exists()
    assert home.load_state() == before
    assert not list((home.folder / "spool").iterdir())
    verify_checkpoint(home.checkpoint(1))


def test_finishing_reads_the_moments_of_the_last_round(
    home: NodeHome, text: Path, tmp_path: Path
) -> None:
    home.trainer_state(1).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"round-000001\.safetensors: not the optimizer state"):
        finish_locally(home, [text], tmp_path / "kept", steps=1)
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_exists_is_not_written_into(
    home: NodeHome, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="exists already; name a new folder"):
        finish_locally(home, [text], tmp_path / "taken", steps=1)


@pytest.mark.parametrize("round_number", [-1, 0, 7])
def test_without_a_consensus_checkpoint_there_is_nothing_to_finish(
    home: NodeHome, text: Path, tmp_path: Path, round_number: int
) -> None:
    home.save_state(NodeState(round=round_number, objective="causal-lm"))
    with pytest.raises(ConfigError, match="no consensus checkpoint is here yet"):
        finish_locally(home, [text], tmp_path / "finished", steps=1)


def test_steps_that_are_none_are_refused(home: NodeHome, text: Path, tmp_path: Path) -> None:
    with pytest.raises(TapestryError):
        finish_locally(home, [text], tmp_path / "finished", steps=-5)
    assert not (tmp_path / "finished").exists()
