"""A node's folder: who may read it, what survives a restart, what is removed."""

import stat
from pathlib import Path

import pytest

from tapestry.errors import ConfigError
from tapestry.storage.locks import alone
from tapestry_node.home import NodeHome, NodeState, require_node

FOLDERS = ("checkpoints", "pool", "corpus", "trainer", "spool", "receipts")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    made = NodeHome(tmp_path / "node")
    made.make_folders()
    return made


def put_checkpoint(home: NodeHome, number: int) -> None:
    home.checkpoint(number).mkdir()
    (home.checkpoint(number) / "model.safetensors").write_bytes(b"weights")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_owner_can_enter_the_folders(home: NodeHome) -> None:
    assert {name: oct(mode_of(home.folder / name)) for name in FOLDERS} == dict.fromkeys(
        FOLDERS, "0o700"
    )


def test_making_the_folders_again_loses_nothing(home: NodeHome) -> None:
    put_checkpoint(home, 4)
    home.make_folders()
    assert names(home.checkpoints) == ["round-000004"]


def test_folders_sort_by_round(home: NodeHome) -> None:
    assert home.checkpoint(9).name < home.checkpoint(10).name
    assert home.checkpoint(12) == home.folder / "checkpoints" / "round-000012"
    assert home.spool(12) == home.folder / "spool" / "round-000012"
    assert home.trainer_state(12) == home.folder / "trainer" / "round-000012.safetensors"


def test_a_new_node_knows_no_checkpoint(home: NodeHome) -> None:
    assert home.load_state() == NodeState(
        round=-1, manifest="", evaluated=-1, contributed=0, objective=""
    )


def test_where_the_node_stands_survives_a_restart(home: NodeHome) -> None:
    state = NodeState(round=7, manifest="a" * 64, evaluated=6, contributed=7, objective="causal-lm")
    home.save_state(state)
    assert NodeHome(home.folder).load_state() == state


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\0",
        b'{"round": 7, "manif',
        b"[]",
        b"null",
        b'{"round": 7, "colour": "red"}',
        b"\xff\xfe",
        b'{"round": "seven"}',
        b'{"manifest": 7}',
    ],
)
def test_a_damaged_state_says_what_to_do(home: NodeHome, content: bytes) -> None:
    path = home.folder / "state.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        home.load_state()
    said = str(caught.value)
    assert said.startswith(f"{path}: cannot be read (")
    assert "remove it, and the node takes its place in the federation up again" in said


def test_after_removing_a_damaged_state_the_node_is_as_new(home: NodeHome) -> None:
    (home.folder / "state.json").write_bytes(b"{")
    (home.folder / "state.json").unlink()
    assert home.load_state() == NodeState()


def test_the_two_newest_checkpoints_are_kept(home: NodeHome) -> None:
    for number in (8, 9, 10, 11):
        put_checkpoint(home, number)
    home.prune(contributed=11, newest=0)
    assert names(home.checkpoints) == ["round-000010", "round-000011"]


def test_unfinished_downloads_and_folders_are_not_checkpoints(home: NodeHome) -> None:
    for number in (1, 2):
        put_checkpoint(home, number)
    (home.checkpoints / ".parts").mkdir()
    (home.checkpoints / ".round-000003.part").mkdir()
    home.prune(contributed=2, newest=0)
    assert names(home.checkpoints) == [
        ".parts",
        ".round-000003.part",
        "round-000001",
        "round-000002",
    ]


def test_the_state_of_the_last_contribution_and_newer_ones_are_kept(home: NodeHome) -> None:
    for number in (3, 4, 5, 6):
        home.trainer_state(number).write_bytes(b"moments")
    home.prune(contributed=5, newest=0)  # round 6 is trained and not yet sent
    assert names(home.folder / "trainer") == [
        "round-000005.safetensors",
        "round-000006.safetensors",
    ]


def test_nothing_else_is_pruned(home: NodeHome) -> None:
    home.spool(6).mkdir()
    (home.folder / "receipts" / "round-000001.json").write_text("{}")
    (home.folder / "corpus" / "abc").mkdir()
    (home.folder / "pool" / f"{'d' * 64}.txt").write_text("text")
    home.prune(contributed=5, newest=0)
    assert names(home.folder / "spool") == ["round-000006"]
    assert names(home.folder / "receipts") == ["round-000001.json"]
    assert names(home.folder / "corpus") == ["abc"]
    assert names(home.folder / "pool") == [f"{'d' * 64}.txt"]


def test_pruning_an_empty_node_is_harmless(home: NodeHome) -> None:
    home.prune(contributed=0, newest=0)
    assert names(home.folder) == sorted(FOLDERS)


def test_a_folder_without_a_node_is_named_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no node here; join a federation first"):
        require_node(tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(ConfigError, match="no node here"):
        require_node(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_second_daemon_does_not_run_in_the_same_folder(home: NodeHome) -> None:
    home.make_folders()
    with (
        alone(home.folder, who="this node"),
        pytest.raises(ConfigError, match="this node runs already in another process"),
        alone(home.folder, who="this node"),
    ):
        pass
    with alone(home.folder, who="this node"):
        pass
