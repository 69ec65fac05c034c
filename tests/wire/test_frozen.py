"""A node fetches a checkpoint whose frozen part is not what genesis signs."""

from pathlib import Path

import pytest

from tapestry.errors import UntrustedError
from tapestry.identity.membership import Membership
from tapestry.wire.fetching import Fetcher
from tapestry_coordinator import founding
from tapestry_node.consensus import Consensus, Standing
from tapestry_node.home import NodeHome
from tests.coordinator.small import found_in_part
from tests.wire.serving import Coordinator


def test_a_node_keeps_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(founding, "beside_digest", lambda _extras: "0" * 64)  # it lies from genesis
    coordinator = Coordinator(found_in_part(tmp_path / "fed"))
    genesis = coordinator.desk.genesis
    home = NodeHome(tmp_path / "node")
    home.make_folders()
    membership = Membership(
        federation="loom",
        member_id="a",
        address=coordinator.address,
        coordinator_key=genesis.coordinator_key.hex(),
        genesis=genesis.genesis_digest,
    )
    try:
        with coordinator.join("a").connected() as line:
            fetcher = Fetcher(line.channel, coordinator.address)
            consensus = Consensus(
                home, membership, Standing(home), fetcher=lambda: fetcher, tell=lambda _words: None
            )
            envelope, _card = fetcher.describe()
            manifest = consensus.take(envelope)
            said = r"model\.safetensors: frozen parameters are not those of genesis"
            with pytest.raises(UntrustedError, match=said):
                consensus.checkpoint(manifest, envelope)
    finally:
        coordinator.stop()
    assert not home.checkpoint(0).exists()
