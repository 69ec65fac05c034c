"""Checkpoints of long ago: kept on the disk, not in the coordinator's memory."""

import shutil
from contextlib import ExitStack

import grpc
import pytest

from tapestry.checkpoints.verify import verify_checkpoint
from tapestry_coordinator import published_files
from tests.wire.serving import Coordinator, Line, gathered
from tests.wire.test_policy import contribute
from tests.wire.test_service import fetched


def model_of(coordinator: Coordinator, number: int) -> bytes:
    """The digest of the one file that is another in every round."""
    files = verify_checkpoint(coordinator.home.checkpoint(number)).manifest.files
    (entry,) = [entry for entry in files if entry.name == "model.safetensors"]
    return bytes.fromhex(entry.digest)


def fetch_all(coordinator: Coordinator, line: Line, number: int) -> None:
    verified = verify_checkpoint(coordinator.home.checkpoint(number))
    for entry in (*verified.manifest.files, *verified.card.files):
        data = b"".join(fetched(line, bytes.fromhex(entry.digest)))
        assert data == (coordinator.home.checkpoint(number) / entry.name).read_bytes(), entry.name


def test_their_files_are_served_to_whoever_asks_for_the_checkpoint(
    coordinator: Coordinator, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_files, "MOST_INDEXED", 2)
    _plan, lines = gathered(coordinator, stack)
    for number in range(1, 6):
        for line in lines.values():
            contribute(line, coordinator.plan)
        coordinator.aggregate()
        fetch_all(coordinator, lines["a"], number)
        coordinator.desk.pass_time()
    with pytest.raises(grpc.RpcError, match="no published file has the digest"):
        fetched(lines["a"], model_of(coordinator, 1))
    for number in (1, 2, 0, 5, 1):
        lines["a"].describe(number)
        fetch_all(coordinator, lines["a"], number)
    member = lines["b"].member
    stack.close()
    restarted = coordinator.restarted()
    with member.connected(restarted) as line:
        for number in (5, 0):
            fetch_all(restarted, line, number)
        line.describe(2)
        fetch_all(restarted, line, 2)
    restarted.stop()


def test_one_that_is_retired_while_it_is_described_is_said_not_to_be_kept(
    coordinator: Coordinator, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plan, lines = gathered(coordinator, stack)
    known = coordinator.desk.files.have

    def retired_after(number: int) -> None:
        known(number)
        shutil.rmtree(coordinator.home.checkpoint(number))

    monkeypatch.setattr(coordinator.desk.files, "have", retired_after)
    with pytest.raises(grpc.RpcError, match="checkpoint 0 is not kept any more"):
        lines["a"].describe(0)
