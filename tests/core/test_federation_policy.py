"""The federation's policy: written for people, read back the same, hashed the same everywhere."""

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tapestry.checkpoints.policy import (
    FederationPolicy,
    InfluencePolicy,
    PrivacyPolicy,
    load_policy,
    save_policy,
)
from tapestry.errors import ConfigError

GROUPED = FederationPolicy(
    influence=InfluencePolicy(
        groups={"france": ("fr-bnf", "fr-inria"), "new zealand": ("nz-nlnz",)}, group_cap=0.4
    )
)


@pytest.mark.parametrize("policy", [FederationPolicy(), GROUPED], ids=["default", "grouped"])
def test_a_policy_is_read_as_it_was_written(tmp_path: Path, policy: FederationPolicy) -> None:
    save_policy(tmp_path / "policy.toml", policy)
    again = load_policy(tmp_path / "policy.toml")
    assert again == policy
    assert again.digest == policy.digest


def test_every_key_stands_in_the_file_with_its_meaning(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy.toml", GROUPED)
    lines = (tmp_path / "policy.toml").read_text(encoding="utf-8").splitlines()
    keys = [n for n, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(keys) == sum(len(table) for table in GROUPED.model_dump().values())
    assert all(lines[n - 1].startswith("#") for n in keys)


def test_the_digest_is_sha256_of_canonical_json() -> None:
    def whole(value: object) -> object:  # RFC 8785 writes 0.0 as 0
        if isinstance(value, dict):
            return {key: whole(inner) for key, inner in value.items()}
        return int(value) if isinstance(value, float) and value.is_integer() else value

    table = whole(GROUPED.model_dump(mode="json"))
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    assert GROUPED.digest == hashlib.sha256(text.encode()).hexdigest()
    assert GROUPED.digest != FederationPolicy().digest


def test_a_member_answers_to_one_group() -> None:
    assert GROUPED.influence.group_of("fr-inria") == "france"
    assert GROUPED.influence.group_of("is-lbs") is None
    with pytest.raises(ValidationError, match="fr-bnf is in the groups france and europe"):
        InfluencePolicy(groups={"france": ("fr-bnf",), "europe": ("fr-bnf",)})


def test_a_quorum_below_the_privacy_minimum_is_refused() -> None:
    policy = FederationPolicy(privacy=PrivacyPolicy(min_quorum=3))
    policy.require_quorum(3)
    with pytest.raises(ConfigError, match=r"privacy\.min_quorum = 3, but rounds\.quorum = 2"):
        policy.require_quorum(2)
