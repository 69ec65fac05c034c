"""A coordinator that has moved to another address, and whoever else may answer there."""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tapestry.cli.main import main
from tapestry.wire.egress import read_ledger
from tapestry_node.home import NodeHome
from tapestry_node.joining import join
from tests.coordinator.small import found_small
from tests.wire.serving import Coordinator

_clock = time.time  # noqa: TID251 - the commands' own clock


@pytest.fixture
def node(coordinator: Coordinator, tmp_path: Path) -> NodeHome:
    """A member that dials the coordinator where it is now."""
    invitation = replace(coordinator.invite("fr-bnf"), address=coordinator.door)
    join(invitation, tmp_path / "node", now=_clock())
    home = NodeHome(tmp_path / "node")
    home.identity.change_address(coordinator.address)
    return home


def followed(node: NodeHome, address: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["node", "follow", address, "--dir", str(node.folder)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_member_follows_the_coordinator_to_another_address(
    coordinator: Coordinator, node: NodeHome, capsys: pytest.CaptureFixture[str], stack: ExitStack
) -> None:
    old = coordinator.address
    moved = coordinator.restarted()
    stack.callback(moved.stop)
    assert moved.address != old
    assert main(["node", "exclusions", str(node.folder)]) == 1
    assert f"{old} does not answer" in capsys.readouterr().err
    code, said = followed(node, moved.address, capsys)
    assert (code, said.splitlines()[0]) == (
        0,
        f"{moved.address} instead of {old}: the same coordinator, with checkpoint 0",
    )
    assert node.identity.load().address == moved.address
    assert main(["node", "exclusions", str(node.folder)]) == 0
    assert {one.to for one in read_ledger(node.egress)} > {moved.address}, "on record to whom"


def test_nobody_else_is_followed(
    coordinator: Coordinator,
    node: NodeHome,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stack: ExitStack,
) -> None:
    stranger = Coordinator(found_small(tmp_path / "other", federation="weft"))
    stack.callback(stranger.stop)
    node.save_state(replace(node.load_state(), round=3))
    for address, says in (
        ("localhost", "expected host:port"),
        ("127.0.0.1:1", "does not answer"),
        (stranger.address, "is not the coordinator of this federation"),
        (coordinator.address, "has checkpoint 0, and this node has verified 3: an old backup"),
    ):
        code, said = followed(node, address, capsys)
        assert code == 1
        assert says in said
        assert node.identity.load().address == coordinator.address
