"""A federation that trains a part of its model: the rest is the same in every checkpoint."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tapestry.checkpoints.archive import Archive
from tapestry.checkpoints.folder import file_entry, write_statements
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.record import verify_round
from tapestry.checkpoints.replay import replay
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import UnavailableError, UntrustedError
from tapestry_coordinator.card import write_card
from tapestry_coordinator.continuing import open_origin
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tests.coordinator.small import (
    FOUNDED_AT,
    Small,
    TwoPartsObjective,
    found_in_part,
    settings_for,
)


@pytest.fixture(params=["float32", "delta-int8"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Small:
    return found_in_part(tmp_path / "fed", downlink=request.param)


def change_frozen(path: Path) -> None:
    """Change the last of the frozen numbers in a model's file: they stand at its end."""
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\x80\x3f")  # 1.0


def test_the_frozen_part_is_the_same_in_every_checkpoint(small: Small) -> None:
    for _round in range(2):
        small.publisher.publish(small.closed({"a": [0.25, 0.5]}))
    for number in range(3):
        tensors = load_file(small.home.checkpoint(number) / MODEL_FILE)
        assert tensors["still"].tolist() == [7.0, 8.0, 9.0]
        assert (tensors["numbers"].tolist() == [1.0, 1.0]) == (number == 0)
        verified = verify_checkpoint(small.home.checkpoint(number))
        assert verified.manifest.elements == 2
    round_ = verify_round(verified.folder, verified.lineage)
    assert round_ is not None
    assert replay(verified, round_, Archive(small.home.folder)).is_state_compared
    origin = verified.lineage.origin
    assert origin.trained_of(2) == "2 of 5 parameters are trained: num*"
    bill = json.loads((verified.folder / "bom.cdx.json").read_text(encoding="utf-8"))
    said = {one["name"]: one["value"] for one in bill["metadata"]["component"]["properties"]}
    assert [value for name, value in said.items() if name.endswith(":parameters")] == ["5"]
    assert [value for name, value in said.items() if name.endswith("trained-parameters")] == ["2"]


def test_a_coordinator_that_changes_the_frozen_part_is_not_believed(small: Small) -> None:
    envelope = small.publisher.publish(small.closed({"a": [0.25, 0.5]}))
    folder = small.home.checkpoint(1)
    lineage = [*small.lineage[:-1]]
    manifest = Manifest.parsed(envelope.payload, what="manifest")
    change_frozen(folder / MODEL_FILE)
    files = [file_entry(folder, entry.name) for entry in manifest.files]
    forged = manifest.model_copy(update={"files": tuple(files)}).signed(small.key)
    write_statements(folder, [*lineage, forged])
    write_card(folder, [*lineage, forged], [], small.key, notes=small.home.notes(1))
    with pytest.raises(UntrustedError, match=r"frozen parameters are not those of genesis"):
        verify_checkpoint(folder)


def test_a_frozen_part_that_a_disk_has_damaged_is_not_published(small: Small) -> None:
    change_frozen(small.home.checkpoint(0) / MODEL_FILE)
    closed = small.closed({"a": [0.25, 0.5]})
    with pytest.raises(UnavailableError, match=r"round-000000/model\.safetensors: damaged on this"):
        small.publisher.publish(closed)
    assert not small.home.checkpoint(1).exists()


def test_a_federation_upon_it_trains_the_same_part(small: Small, tmp_path: Path) -> None:
    small.publisher.publish(small.closed({"a": [0.25, 0.5]}))
    origin = open_origin(small.home.checkpoint(1))
    founding = Founding(
        federation="north",
        objective=TwoPartsObjective(),
        create={},
        pool=[],
        seed=1,
        start=origin.start(),
    )
    found(tmp_path / "next", founding, settings_for, now=FOUNDED_AT)
    verified = verify_checkpoint(CoordinatorHome(tmp_path / "next").checkpoint(0))
    assert verified.lineage.origin.beside == origin.lineage.origin.beside
    assert verified.lineage.origin.settings == {"trainable": "num*"}
