"""How checkpoints come down to a node: by steps where it can, whole where it must, always right."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.stepping import STEP_FILE
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tapestry.wire.fetching import Fetcher
from tapestry_coordinator.events import Published
from tapestry_node.home import NodeHome
from tests.coordinator.small import found_small
from tests.wire.serving import Coordinator

ELEMENTS = FRAGMENT_ELEMENTS + 2
DELTA = np.linspace(-0.5, 0.5, ELEMENTS).tolist()


@contextmanager
def serving(folder: Path, downlink: str, *, rounds: int) -> Iterator[Coordinator]:
    """A federation with so many published rounds."""
    small = found_small(folder, ELEMENTS, downlink=downlink)
    coordinator = Coordinator(small)
    for number in range(1, rounds + 1):
        closed = small.closed({"a": [number * x for x in DELTA]})
        envelope = small.publisher.publish(closed)
        digest = payload_digest(envelope)
        coordinator.registry.record_event(
            number, Published(manifest=digest), now=1.0, manifest=(digest, envelope)
        )
    fresh = coordinator.restarted()
    try:
        yield fresh
    finally:
        fresh.stop()


@pytest.fixture
def node(tmp_path: Path) -> NodeHome:
    home = NodeHome(tmp_path / "node")
    home.make_folders()
    return home


def fetched(coordinator: Coordinator, fetcher: Fetcher, node: NodeHome, number: int) -> int:
    """Fetch a checkpoint and compare it with the published one; return the bytes that came."""
    theirs = coordinator.home.checkpoint(number)
    envelope = read_envelope(theirs / MANIFEST_FILE, what="manifest")
    manifest = Manifest.parsed(envelope.payload, what="manifest")
    target = node.checkpoint(manifest.round)
    came = node.fetch(fetcher, manifest, envelope, target=target)
    ours = node.checkpoint(number)
    for entry in manifest.files:
        assert (ours / entry.name).read_bytes() == (theirs / entry.name).read_bytes(), entry.name
    assert not list((node.checkpoints / ".parts").iterdir()), "nothing is left over"
    return came


@pytest.mark.parametrize(
    ("downlink", "bits"),
    [("float32", 32), ("bfloat16", 16), ("delta-int8", 8.125), ("delta-int4", 4.125)],
)
def test_every_checkpoint_is_the_published_one_and_only_what_is_needed_comes(
    tmp_path: Path, node: NodeHome, downlink: str, bits: float
) -> None:
    with (
        serving(tmp_path / "fed", downlink, rounds=2) as coordinator,
        coordinator.join("b").connected() as line,
    ):
        fetcher = Fetcher(line.channel, "the coordinator")
        came = [fetched(coordinator, fetcher, node, number) for number in (0, 1, 2)]
    assert came[0] == pytest.approx(4 * ELEMENTS, rel=0.01), "genesis comes whole"
    for size in came[1:]:
        assert size == pytest.approx(bits / 8 * ELEMENTS, rel=0.01)


def test_a_newcomer_takes_the_newest_whole(tmp_path: Path, node: NodeHome) -> None:
    with (
        serving(tmp_path / "fed", "delta-int4", rounds=2) as coordinator,
        coordinator.join("b").connected() as line,
    ):
        came = fetched(coordinator, Fetcher(line.channel, "the coordinator"), node, 2)
    assert came == pytest.approx(4 * ELEMENTS, rel=0.01)


@pytest.mark.parametrize("damage", ["parent", "step"])
def test_a_step_that_leads_elsewhere_is_not_taken(
    tmp_path: Path, node: NodeHome, damage: str
) -> None:
    with (
        serving(tmp_path / "fed", "delta-int8", rounds=1) as coordinator,
        coordinator.join("b").connected() as line,
    ):
        fetcher = Fetcher(line.channel, "the coordinator")
        fetched(coordinator, fetcher, node, 0)
        path = node.checkpoint(0) / MODEL_FILE
        if damage == "step":
            path = coordinator.home.checkpoint(1) / STEP_FILE
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        came = fetched(coordinator, fetcher, node, 1)
    assert came == pytest.approx((4 + 8.125 / 8) * ELEMENTS, rel=0.01), "both came"
