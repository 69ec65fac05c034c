"""A coordinator that takes over has what the one before had published, from the store or anew."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.storage.blobs import Blobs
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.database import database_url
from tapestry_coordinator.events import Arrived, Published, Tick
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.mirroring import Mirror
from tapestry_coordinator.publisher import Publisher
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.rounds import folded, tick
from tapestry_coordinator.settings import RoundsSettings
from tapestry_coordinator.settling import Settling
from tapestry_coordinator.uploads import FragmentStore
from tests.coordinator.small import FOUNDED_AT, Small, arriving, found_small

RULES = RoundsSettings(quorum=1, gather_seconds=0.0, grace_seconds=0.0).rules()


class Place:
    """One coordinator's folder, and what it works with; the registry is everybody's."""

    def __init__(self, small: Small, folder: Path, registry: Registry, blobs: Blobs) -> None:
        self.home = CoordinatorHome(folder)
        self.small, self.registry = small, registry
        self.store = FragmentStore(self.home.contributions, small.layout, blobs=blobs)
        self.publisher = Publisher(home=self.home, key=small.key, store=self.store)
        self.mirror = Mirror(self.home, blobs)
        self.settling = Settling(self.home, registry, self.publisher, self.mirror)

    def content(self) -> dict[str, bytes]:
        folders = (self.home.published, self.home.folder / "outer")
        return {
            str(path.relative_to(self.home.folder)): path.read_bytes()
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file()
        }

    def close_round(self, delta: list[float]) -> None:
        """Open a round, take one contribution, close; all as the service does it."""
        number = (self.registry.newest_round() or 0) + 1
        ready = Tick(ready=("a",), enrolled=1, rules=RULES)
        state, _effects = tick(folded(number, []), ready, now=FOUNDED_AT + 1)
        plan = self.small.plan(("a",))
        signed = plan.signed(self.small.key)
        opened = (state.attempt, payload_digest(signed), signed)
        self.registry.record_event(number, ready, now=FOUNDED_AT + 1, plan=opened)
        self.small.store = self.store
        stored = self.small.contributed(plan, "a", np.array(delta, np.float32))
        root, _norm = self.store.finished(number, "a") or (b"", 0.0)
        self.store.secure(number, "a", root=root.hex())
        arrived = Arrived(member_id="a", digest=stored.digest)
        self.registry.record_event(
            number, arrived, now=FOUNDED_AT + 2, contribution=arriving(stored)
        )

    def aggregate(self) -> Envelope:
        number = (self.registry.newest_round() or 0) + 1
        state = folded(number, self.registry.round_events(number))
        return self.publisher.publish(ClosedRound.recorded(self.registry, state))

    def publish(self, delta: list[float]) -> None:
        self.close_round(delta)
        envelope, number = self.aggregate(), (self.registry.newest_round() or 0) + 1
        published = Published(manifest=payload_digest(envelope))
        self.registry.record_event(
            number,
            published,
            now=FOUNDED_AT + 3,
            manifest=(published.manifest, envelope),
        )


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs((tmp_path / "store").as_uri())


@pytest.fixture
def north(tmp_path: Path, blobs: Blobs) -> Iterator[Place]:
    small = found_small(
        tmp_path / "north", downlink="delta-int8", optimizer="nesterov", learning_rate=0.5
    )
    with closing(Registry(database_url(small.home))) as registry:
        place = Place(small, small.home.folder, registry, blobs)
        place.settling.share(0)
        place.publish([0.5, 0.25])
        place.settling.share(1)
        yield place


@pytest.fixture
def south(tmp_path: Path, north: Place, blobs: Blobs) -> Place:
    """A folder as one makes it for a coordinator that stands by."""
    (tmp_path / "south").mkdir()
    for name in ("ca", "identity"):
        shutil.copytree(tmp_path / "north" / name, tmp_path / "south" / name)
    return Place(north.small, tmp_path / "south", north.registry, blobs)


def found(place: Place) -> None:
    place.mirror.bring_founding(place.registry.lineage()[0])
    place.settling.take_up()


def test_what_was_put_is_fetched_and_verified(north: Place, south: Place) -> None:
    found(south)
    assert south.content() == north.content()
    verify_checkpoint(south.home.checkpoint(1))
    assert not list((south.home.folder / ".incoming").iterdir())


def test_what_the_store_does_not_have_yet_is_made_again_to_the_bit(
    north: Place, south: Place
) -> None:
    north.publish([0.125, -1.0])  # and it dies before the store has it
    found(south)
    number, state = north.home.checkpoint(2), north.home.outer_state(2)
    for path in (number / MODEL_FILE, number / "tapestry" / "manifest.json", state):
        there = south.home.folder / path.relative_to(north.home.folder)
        assert there.read_bytes() == path.read_bytes(), path
    assert not south.mirror.has_checkpoint(2, south.registry.lineage()[2])


def test_a_closed_round_is_aggregated_from_what_another_took(north: Place, south: Place) -> None:
    north.close_round([0.125, -1.0])
    found(south)
    assert south.aggregate() == north.aggregate()


def test_a_contribution_of_another_try_gives_way_to_the_recorded_one(
    north: Place, south: Place
) -> None:
    found(south)
    north.close_round([0.125, -1.0])
    south.small.store = south.store
    south.small.contributed(south.small.plan(("a",)), "a", np.array([9.0, 9.0], np.float32))
    assert south.aggregate() == north.aggregate()


def test_a_checkpoint_that_nobody_recorded_is_not_taken_for_one(north: Place, south: Place) -> None:
    north.close_round([0.125, -1.0])
    north.aggregate()
    assert north.home.checkpoint(2).is_dir()
    north.settling.take_up()
    assert not north.home.checkpoint(2).exists()
    assert not north.home.outer_state(2).exists()
    found(south)
    assert sorted(path.name for path in south.home.published.iterdir()) == [
        "round-000000",
        "round-000001",
    ]


def test_what_is_damaged_in_the_store_is_not_used(
    north: Place, south: Place, tmp_path: Path
) -> None:
    (model,) = (tmp_path / "store" / "published").glob(f"round-000001-*/{MODEL_FILE}")
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UnavailableError, match=r"a checkpoint is damaged there: .*changed"):
        found(south)
    assert not south.home.checkpoint(1).exists()
    model.write_bytes((north.home.checkpoint(1) / MODEL_FILE).read_bytes())
    found(south)
    assert south.content() == north.content()


def test_a_store_of_another_federation_is_named(north: Place, south: Place, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store" / "published")
    with pytest.raises(UnavailableError, match=r"the genesis checkpoint .* is not there; is"):
        found(south)
    assert north.registry.newest_round() == 1


def test_without_a_store_it_says_what_to_set(north: Place, south: Place) -> None:
    shutil.copytree(north.home.checkpoint(0), south.home.checkpoint(0))
    alone = Settling(south.home, south.registry, south.publisher)
    with pytest.raises(ConfigError, match=r"round-000001 is not here, and \[storage\] blobs"):
        alone.take_up()


def test_pruning_keeps_genesis_and_what_the_next_round_needs(north: Place, blobs: Blobs) -> None:
    for delta in ([0.1, 0.2], [0.3, 0.4]):
        north.publish(delta)
        north.settling.share(north.registry.newest_round() or 0)
    north.mirror.prune(checkpoints_before=3, states_before=2)
    north.store.prune(before=3)

    def rounds(prefix: str) -> list[int]:
        return sorted({int(key.split("/")[1][6:12]) for key in blobs.names(prefix)})

    assert rounds("published") == [0, 3]
    assert rounds("outer") == [2, 3]
    assert rounds("contributions") == [3]
