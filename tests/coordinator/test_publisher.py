"""From a closed round to a published checkpoint; genesis is a vector of two ones."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest, RoundRecord
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, TapestryError, UnavailableError
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.database import database_url
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.settings import RoundsSettings
from tests.conftest import Federation
from tests.coordinator.small import Small, changed_policy, found_small

SGD = {"optimizer": "sgd", "clip": 0.0}
NESTEROV = {"optimizer": "nesterov", "clip": 0.0, "learning_rate": 0.5, "momentum": 0.5}


def publish(small: Small, closed: ClosedRound) -> RoundRecord:
    """Publish, verify, and return how the checkpoint was made."""
    small.publisher.publish(closed)
    made = verify_checkpoint(small.home.checkpoint(closed.plan.round)).manifest.made
    assert made is not None
    return made


def outer_state(home: CoordinatorHome, number: int) -> list[float]:
    return [float(x) for x in np.fromfile(home.outer_state(number), "<f4")]


def copied(small: Small, folder: Path) -> Small:
    """The same coordinator in another folder."""
    shutil.copytree(small.home.folder, folder)
    return Small(CoordinatorHome(folder))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# The outer step


def test_plain_averaging_by_hand(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", **SGD)
    made = publish(small, small.closed({"a": [0.5, 0.0], "b": [0.0, -0.25]}))
    # each weighs 1/2: (1, 1) - 1 * (0.25, -0.125)
    assert small.vector(1) == [0.75, 1.125]
    assert (made.outer.optimizer, made.outer.learning_rate) == ("sgd", 1.0)
    assert (made.outer.momentum, made.outer.state_root) == (0.0, None)


def test_nesterov_momentum_over_two_rounds_by_hand(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", **NESTEROV)
    first = publish(small, small.closed({"a": [1.0, 0.0]}))
    # buffer 1; step .5 * (1 + .5 * 1) = .75
    assert small.vector(1) == [0.25, 1.0]
    assert outer_state(small.home, 1) == [1.0, 0.0]
    publish(small, small.closed({"a": [1.0, 2.0]}))
    # buffer .5 * 1 + 1 = 1.5; step .5 * (1 + .5 * 1.5) = .875; second: buffer 2, step 1.5
    assert small.vector(2) == [0.25 - 0.875, 1.0 - 1.5]
    assert outer_state(small.home, 2) == [1.5, 2.0]
    assert (first.outer.learning_rate, first.outer.momentum) == (0.5, 0.5)
    digest = fragment_digest(small.home.outer_state(1).read_bytes())
    assert first.outer.state_root == fragments_root([digest]).hex()


@pytest.mark.parametrize(("members", "rate"), [(1, 0.4), (2, 0.6), (8, 0.8)])
def test_the_outer_learning_rate_is_chosen_by_how_many_contributed(
    tmp_path: Path, members: int, rate: float
) -> None:
    small = found_small(tmp_path / "fed")
    made = publish(small, small.closed({f"m{i}": [0.1, 0.1] for i in range(members)}))
    assert (made.outer.learning_rate, made.outer.momentum) == (rate, 0.9)


def test_a_lossy_codec_is_aggregated_as_it_decodes(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", codec="int8", **SGD)
    publish(small, small.closed({"a": [1.27, 0.004]}))
    # one block: scale 1.27 / 127 = .01, codes 127 and 0 (0.4 rounds to 0)
    assert small.vector(1) == pytest.approx([1 - 1.27, 1.0], abs=1e-6)


# What the manifest says about it


def test_weights_are_roots_of_token_counts_under_the_cap(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", influence_cap=0.8, gamma=0.5, **SGD)
    made = publish(small, small.closed({"a": [1.0, 0.0], "b": [0.0, 1.0]}, tokens={"a": 9, "b": 1}))
    assert [(p.member_id, p.tokens, p.weight) for p in made.participation] == [
        ("a", 9, 0.75),  # 3 of 3 + 1
        ("b", 1, 0.25),
    ]
    assert (made.gamma, made.influence_cap, made.clip) == (0.5, 0.8, 0.0)
    assert small.vector(1) == [0.25, 0.75]


def test_no_member_weighs_more_than_the_cap(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", influence_cap=0.625, gamma=1.0, **SGD)
    made = publish(
        small, small.closed({"a": [1.0, 0.0], "b": [0.0, 1.0]}, tokens={"a": 70, "b": 10})
    )
    assert [p.weight for p in made.participation] == [0.625, 0.375]
    assert small.vector(1) == [1 - 0.625, 1 - 0.375]


@pytest.mark.parametrize(("members", "cap"), [(1, 1.0), (2, 0.5), (4, 0.25), (5, 0.25)])
def test_the_cap_that_is_chosen_is_in_the_manifest(
    tmp_path: Path, members: int, cap: float
) -> None:
    small = found_small(tmp_path / "fed")
    deltas = {f"m{i}": [0.1, 0.1] for i in range(members)}
    made = publish(small, small.closed(deltas, tokens={f"m{i}": 1 + 9 * i for i in range(members)}))
    assert made.influence_cap == cap
    assert sum(p.weight for p in made.participation) == pytest.approx(1.0)
    assert max(p.weight for p in made.participation) <= cap + 1e-12


def test_a_large_contribution_is_clipped_to_a_multiple_of_the_median(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", optimizer="sgd", clip=1.5)
    made = publish(small, small.closed({"a": [3.0, 4.0], "b": [0.0, 1.0]}))
    # norms 5 and 1, median 3, limit 4.5: a is multiplied by 4.5 / 5
    assert [(p.norm, p.clip_factor) for p in made.participation] == [(5.0, 0.9), (1.0, 1.0)]
    assert made.clip == 1.5
    # from ones: half of .9 of (3, 4), and half of (0, 1)
    assert small.vector(1) == pytest.approx([1 - 1.35, 1 - 1.8 - 0.5], abs=1e-6)


def test_who_is_absent_is_named_with_the_reason(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", **SGD)
    made = publish(
        small,
        small.closed({"b": [0.0, 0.0]}, declined={"a": "too many steps"}, silent=("c",)),
    )
    assert [(a.member_id, a.reason) for a in made.absent] == [
        ("a", "too many steps"),
        ("c", "no contribution before the round closed"),
    ]
    assert [p.member_id for p in made.participation] == ["b"]


def test_a_manifest_names_what_it_was_made_from(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", **SGD)
    closed = small.closed({"a": [0.5, 0.5]}, tokens={"a": 80})
    made = publish(small, closed)
    verified = verify_checkpoint(small.home.checkpoint(1))
    manifest = verified.manifest
    assert (manifest.round, manifest.elements) == (1, 2)
    assert manifest.parent == manifest.genesis == verified.genesis_digest
    assert manifest.created_at == closed.closed_at
    assert made.plan == closed.plan_digest
    assert (made.codec, made.quorum) == ("float32", 1)
    assert made.inner == closed.plan.inner
    (part,) = made.participation
    assert part.contribution == payload_digest(closed.contributions[0].envelope)
    assert verified.lineage.origin.federation == "loom"
    assert verified.lineage.newest_digest == verified.manifest_digest


def test_what_stays_the_same_is_carried_over(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", **SGD)
    for _round in (1, 2):
        publish(small, small.closed({"a": [0.5, 0.5]}))
    assert (small.home.checkpoint(2) / "config.json").read_bytes() == b"{}\n"
    assert small.vector(2) == [0.0, 0.0]


# Doing it again


def test_the_same_round_gives_the_same_bytes_in_two_folders(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    publish(small, small.closed({"a": [0.5, 0.1], "b": [0.3, 0.7]}))
    closed = small.closed({"a": [0.1, 0.2], "b": [0.3, -0.4]}, silent=("c",))
    twin = copied(small, tmp_path / "twin")
    for each in (small, twin):
        each.publisher.publish(closed)
    ours, theirs = (everything(each.home.folder) for each in (small, twin))
    assert "published/round-000002/model.safetensors" in ours
    assert "outer/round-000002.f32" in ours
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing == set()


def test_a_larger_round_gives_the_same_bytes_again(federation: Federation, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(federation.home.folder, twin)
    home = CoordinatorHome(twin)
    shutil.rmtree(home.checkpoint(1))
    home.outer_state(1).unlink()
    replace(federation.publisher, home=home).publish(federation.closed)
    for path in ("model.safetensors", MANIFEST_FILE, "tapestry/lineage.jsonl"):
        assert (home.checkpoint(1) / path).read_bytes() == (federation.newest / path).read_bytes()
    again = home.outer_state(1).read_bytes()
    assert again == federation.home.outer_state(1).read_bytes()


def test_a_checkpoint_that_lies_there_already_is_not_made_again(tmp_path: Path) -> None:
    # A crash after the folder took its name and before the registry knew of it.
    small = found_small(tmp_path / "fed")
    closed = small.closed({"a": [0.5, 0.1]})
    recorded = small.publisher.publish(closed)
    before = everything(small.home.folder)
    assert small.publisher.publish(closed) == recorded
    assert small.publisher.publish(closed) == read_envelope(
        small.home.checkpoint(1) / MANIFEST_FILE, what="manifest"
    )
    assert everything(small.home.folder) == before


def test_an_unfinished_folder_of_a_crash_is_thrown_away(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    closed = small.closed({"a": [0.5, 0.1]})
    twin = copied(small, tmp_path / "twin")
    unfinished = twin.home.published / ".round-000001.part"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half of it")
    (unfinished / "stray").write_bytes(b"x")
    twin.home.outer_state(1).parent.mkdir()
    twin.home.outer_state(1).write_bytes(b"of the crash")
    for each in (small, twin):
        publish(each, closed)
    assert everything(small.home.folder) == everything(twin.home.folder)


# Refusals


def test_an_infeasible_influence_cap_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", influence_cap=0.5)
    closed = small.closed({"a": [0.5, 0.1]})
    before = everything(small.home.folder)
    with pytest.raises(
        ConfigError, match=r"influence_cap = 0.5 cannot hold with 1 contributions.*influence_cap to"
    ):
        small.publisher.publish(closed)
    assert everything(small.home.folder) == before


def test_a_cap_that_the_quorum_cannot_hold_is_refused_before_any_round(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", influence_cap=0.3, rounds=RoundsSettings(quorum=2))
    registry = Registry(database_url(small.home))
    with pytest.raises(ConfigError, match=r"influence_cap = 0.3 .* raise rounds.quorum to 4 or"):
        Desk(small.home, small.home.load_settings(), registry, small.key, clock=lambda: 0.0)
    registry.close()


def damage(path: Path, offset: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_damaged_contribution_stops_the_round_and_nothing_is_left(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    closed = small.closed({"a": [0.5, 0.1], "b": [0.1, 0.1]})
    damage(small.home.contributions / "round-000001" / "b.contribution")
    before = everything(small.home.folder)
    restarted = Small(small.home)
    with pytest.raises(UnavailableError, match=r"b\.contribution: fragment 0 is damaged"):
        restarted.publisher.publish(closed)
    assert everything(small.home.folder) == before
    assert [path.name for path in small.home.published.iterdir()] == ["round-000000"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_base_checkpoint_is_not_built_upon(tmp_path: Path, name: str) -> None:
    small = found_small(tmp_path / "fed")
    publish(small, small.closed({"a": [0.5, 0.1]}))
    closed = small.closed({"a": [0.5, 0.1]})
    damage(small.home.checkpoint(1) / name)
    with pytest.raises(TapestryError, match=name):
        small.publisher.publish(closed)


def test_a_damaged_outer_state_is_not_built_upon(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    publish(small, small.closed({"a": [0.5, 0.1]}))
    closed = small.closed({"a": [0.5, 0.1]})
    damage(small.home.outer_state(1))
    with pytest.raises(TapestryError, match="outer"):
        small.publisher.publish(closed)


def test_a_lost_outer_state_is_not_taken_for_the_first_round(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    publish(small, small.closed({"a": [0.5, 0.1]}))
    closed = small.closed({"a": [0.5, 0.1]})
    small.home.outer_state(1).unlink()
    with pytest.raises((TapestryError, OSError), match="outer"):
        small.publisher.publish(closed)


def test_a_cut_outer_state_is_an_error_that_the_aggregator_survives(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    publish(small, small.closed({"a": [0.5, 0.1]}))
    closed = small.closed({"a": [0.5, 0.1]})
    small.home.outer_state(1).write_bytes(b"\x00" * 4)
    with pytest.raises((TapestryError, OSError), match="outer"):
        small.publisher.publish(closed)


def test_an_optimizer_with_momentum_may_follow_one_without(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", **SGD)
    publish(small, small.closed({"a": [0.5, 0.0]}))
    small.policy = changed_policy(small.policy, aggregation=NESTEROV)
    publish(small, small.closed({"a": [1.0, 0.0]}))
    assert small.vector(2) == [0.5 - 0.75, 1.0]  # no momentum yet, as in a first round


def test_manifests_of_a_federation_are_one_chain(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    for _round in range(3):
        publish(small, small.closed({"a": [0.1, 0.1]}))
    parsed = [Manifest.parsed(e.payload, what="manifest") for e in small.lineage]
    assert [m.round for m in parsed] == [0, 1, 2, 3]
    digests = [payload_digest(e) for e in small.lineage]
    assert [m.parent for m in parsed] == [None, *digests[:3]]
