"""From settings to a published round: every rule, its record, and its replay from the record."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.outer import OuterOptimizer
from tapestry.aggregation.pipeline import outer_step
from tapestry.aggregation.rules import RULE_NAMES, Rule
from tapestry.checkpoints.manifest import Manifest, RoundRecord
from tapestry.checkpoints.policy import (
    POLICY_FILE,
    AggregationPolicy,
    FederationPolicy,
    load_policy,
    save_policy,
)
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, UnavailableError
from tapestry.params.codecs import codec_named
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.publisher import Publisher
from tests.conftest import Federation

Publish = Callable[..., Manifest]


def home_of(folder: Path) -> CoordinatorHome:
    return CoordinatorHome(folder / "again")


@pytest.fixture
def publish(federation: Federation, tmp_path: Path) -> Publish:
    """Publish round 1 again, in a copy of the home, with other settings."""

    def published(**changes: Any) -> Manifest:
        home = home_of(tmp_path)
        shutil.copytree(
            federation.home.folder,
            home.folder,
            ignore=shutil.ignore_patterns("outer", federation.newest.name),
        )
        publisher = Publisher(
            home=home,
            key=federation.publisher.key,
            store=federation.publisher.store,
        )
        policy = FederationPolicy(aggregation=AggregationPolicy(**changes))
        publisher.publish(replace(federation.closed, policy=policy))
        return verify_checkpoint(home.checkpoint(1)).manifest

    return published


def made_by(manifest: Manifest) -> RoundRecord:
    assert manifest.made is not None
    return manifest.made


def replayed(federation: Federation, made: RoundRecord) -> bytes:
    """Return the new vector from the record alone, as an auditor would compute it."""
    base = open_vector_file(federation.genesis / MODEL_FILE)
    store = federation.publisher.store
    steps = outer_step(
        base.read_fragment,
        None,
        [
            WeightedContribution(
                member_id=part.member_id,
                weight=part.weight,
                clip_factor=part.clip_factor,
                codec=codec_named(made.codec),
                read_fragment=lambda index, who=part.member_id: store.read(1, who, index),  # type: ignore[misc]
                neighbours=part.neighbours,
            )
            for part in made.participation
        ],
        layout=base.layout,
        optimizer=OuterOptimizer(
            name=made.outer.optimizer,
            learning_rate=made.outer.learning_rate,
            momentum=made.outer.momentum,
            beta2=made.outer.beta2,
            epsilon=made.outer.epsilon,
        ),
        rule=Rule(**made.rule.model_dump()),
    )
    return b"".join(step.base.tobytes() for step in steps)


@pytest.mark.parametrize(
    "changes",
    [
        *({"rule": name, "byzantine": 0} for name in RULE_NAMES),
        *(
            {"rule": name, "byzantine": 0, "mixing": True}
            for name in ("mean", "trimmed-mean", "multi-krum")
        ),
        {"merge": "rda"},
        {"optimizer": "adam"},
        {"optimizer": "sgd"},
    ],
    ids=str,
)
def test_what_the_manifest_records_is_enough_to_repeat_the_round(
    federation: Federation, publish: Publish, tmp_path: Path, changes: dict[str, Any]
) -> None:
    manifest = publish(**changes)
    published = open_vector_file(home_of(tmp_path).checkpoint(1) / MODEL_FILE).vector
    assert replayed(federation, made_by(manifest)) == published.tobytes()


def test_the_defaults_are_the_clipped_mean_of_token_weights(publish: Publish) -> None:
    made = made_by(publish())
    assert made.rule.name == "mean"
    assert made.rule.merge == "mean"
    assert not made.rule.mixing
    assert made.outer.optimizer == "nesterov"
    assert made.clip == 1.5
    # cap 1/2 for two members: 100 : 50 after the root would be 2/3 : 1/3
    assert [part.weight for part in made.participation] == [0.5, 0.5]
    assert {part.neighbours for part in made.participation} == {()}


def test_a_rule_of_one_vote_each_says_so(publish: Publish) -> None:
    made = made_by(publish(rule="geometric-median"))
    assert (made.rule.name, made.gamma, made.influence_cap) == ("geometric-median", 0.0, 1.0)


def test_neighbours_are_recorded_for_a_coordinate_rule(publish: Publish) -> None:
    made = made_by(publish(rule="median", byzantine=0, mixing=True))
    assert {part.neighbours for part in made.participation} == {("fr-bnf", "is-lbs")}


def test_the_card_names_the_rule(publish: Publish, tmp_path: Path) -> None:
    publish(rule="trimmed-mean", byzantine=0)
    card = (home_of(tmp_path).checkpoint(1) / "README.md").read_text()
    assert "rule trimmed-mean for up to 0 liars" in card


def test_too_few_contributions_publish_nothing(publish: Publish, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="byzantine = 1 cannot hold with 2 contributions"):
        publish(rule="multi-krum", byzantine=1)
    assert not home_of(tmp_path).checkpoint(1).exists()


def test_older_manifests_without_a_rule_are_those_of_the_mean(publish: Publish) -> None:
    table = made_by(publish()).model_dump(mode="json")
    del table["rule"], table["outer"]["beta2"], table["outer"]["epsilon"]
    for part in table["participation"]:
        del part["neighbours"], part["reason"]
    made = RoundRecord.model_validate(table, strict=False)
    assert made.rule.name == "mean"
    assert made.outer.beta2 == 0.0


def test_the_state_has_as_many_vectors_as_the_optimizer(publish: Publish, tmp_path: Path) -> None:
    manifest = publish(optimizer="adam")
    home = home_of(tmp_path)
    size = 4 * manifest.elements
    assert home.outer_state(1).stat().st_size == 2 * size
    state = np.fromfile(home.outer_state(1), "<f4")
    assert (state != 0).mean() > 0.99


def test_a_lost_state_is_not_replaced_by_zeros(
    federation: Federation, publish: Publish, tmp_path: Path
) -> None:
    manifest = publish()
    home = home_of(tmp_path)
    home.outer_state(1).unlink()
    envelope = manifest.signed(federation.publisher.key)
    closed = replace(
        federation.closed,
        plan=federation.closed.plan.model_copy(update={"round": 2}),
        lineage=[*federation.closed.lineage, envelope],
    )
    publisher = replace(federation.publisher, home=home)
    with pytest.raises(UnavailableError, match="state is missing; restore it from a backup"):
        publisher.publish(closed)


def test_an_unknown_rule_in_the_settings_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"unknown rule 'krum'; did you mean multi-krum\?"):
        AggregationPolicy(rule="krum")  # type: ignore[arg-type]


def test_a_policy_says_what_a_quorum_is_too_small_for() -> None:
    trimmed = AggregationPolicy(rule="trimmed-mean", byzantine=1)
    policy = FederationPolicy(aggregation=trimmed)
    expected = r"aggregation.byzantine = 1 cannot hold with 2 \(the quorum\).* raise quorum to 3"
    with pytest.raises(ConfigError, match=expected):
        policy.require_quorum(2)
    policy.require_quorum(3)


def test_every_setting_is_written_with_its_meaning(federation: Federation, tmp_path: Path) -> None:
    policy = federation.home.load_policy()
    save_policy(tmp_path / POLICY_FILE, policy)
    text = (tmp_path / POLICY_FILE).read_text()
    for key in ("rule", "byzantine", "mixing", "merge", "radius", "beta2", "epsilon"):
        assert f"\n{key} = " in text
    assert load_policy(tmp_path / POLICY_FILE) == policy
