"""What a node refuses, whatever the federation plans, and the file that says so."""

import tomllib
from pathlib import Path

import pytest

from tapestry.checkpoints.statements import InnerSettings, RoundPlan, SharedSlice
from tapestry.config import load_settings
from tapestry.errors import ConfigError, RejectedError
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeSettings, NodeTable, Policy

INNER = InnerSettings(
    steps=20, sequences=8, sequence_tokens=128, learning_rate=1e-3, warmup_steps=20
)
TOKENS = 20 * 8 * 128


def usual_plan(**changes: object) -> RoundPlan:
    """Return a plan such as a federation of the size `tiny` makes."""
    plan = RoundPlan(
        genesis="a" * 64,
        round=3,
        attempt=1,
        base="b" * 64,
        layout="c" * 64,
        policy="d" * 64,
        cohort=("fr-bnf", "is-lbs", "ukr-vnlu"),
        quorum=2,
        grace_seconds=300.0,
        deadline=1_750_003_600.0,
        objective="causal-lm",
        inner=INNER,
        codec="int8",
        max_element=10.0,
        shared=SharedSlice(fraction=0.25, pool_digest="d" * 64, pool_bytes=5_000_000),
        seed=1,
    )
    return plan.model_copy(update=changes)


def refusal(policy: Policy, plan: RoundPlan) -> str:
    """Return why `policy` refuses `plan`."""
    with pytest.raises(RejectedError) as caught:
        policy.require(plan)
    return str(caught.value)


def test_the_defaults_accept_a_usual_plan_with_and_without_a_pool() -> None:
    Policy().require(usual_plan())
    Policy().require(usual_plan(shared=None))


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_the_defaults_accept_every_codec_of_this_version(codec: str) -> None:
    Policy().require(usual_plan(codec=codec))


@pytest.mark.parametrize(
    ("setting", "limit", "says"),
    [
        ("min_quorum", 3, "min_quorum = 3, the plan has 2"),
        ("min_inner_steps", 21, "min_inner_steps = 21, the plan has 20"),
        ("max_inner_steps", 19, "max_inner_steps = 19, the plan has 20"),
        ("max_tokens", TOKENS - 1, "max_tokens = 20,479, the plan has 20,480"),
        ("max_shared_fraction", 0.2, "max_shared_fraction = 0.2, the plan has 0.25"),
        ("max_pool_bytes", 4_999_999, "max_pool_bytes = 4,999,999, the plan has 5,000,000"),
    ],
)
def test_a_plan_beyond_a_limit_is_refused_with_the_setting_and_both_numbers(
    setting: str, limit: float, says: str
) -> None:
    said = refusal(Policy(**{setting: limit}), usual_plan())
    assert said == f"this node's policy refuses round 3: {says}"


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ("min_quorum", 2),
        ("min_inner_steps", 20),
        ("max_inner_steps", 20),
        ("max_tokens", TOKENS),
        ("max_shared_fraction", 0.25),
        ("max_pool_bytes", 5_000_000),
    ],
)
def test_a_plan_exactly_at_a_limit_is_accepted(setting: str, limit: float) -> None:
    Policy(**{setting: limit}).require(usual_plan())


def test_tokens_are_counted_over_all_micro_batches_of_the_round() -> None:
    plan = usual_plan(inner=INNER.model_copy(update={"accumulation": 4}))
    said = refusal(Policy(max_tokens=TOKENS), plan)
    assert "max_tokens = 20,480, the plan has 81,920" in said  # 20 steps * 4 * 8 * 128


def test_what_is_not_listed_is_refused_by_name() -> None:
    said = refusal(Policy(), usual_plan(objective="jepa"))
    assert "objectives: 'jepa' is not listed" in said
    said = refusal(Policy(codecs=("int8",)), usual_plan(codec="float32"))
    assert "codecs: 'float32' is not listed" in said


def test_limits_of_the_pool_do_not_matter_without_one() -> None:
    Policy(max_shared_fraction=0.0, max_pool_bytes=0).require(usual_plan(shared=None))


def test_a_pool_can_be_forbidden_altogether() -> None:
    said = refusal(Policy(max_shared_fraction=0.0), usual_plan())
    assert "max_shared_fraction = 0.0, the plan has 0.25" in said


def test_a_new_node_gets_a_file_that_loads_back_as_the_defaults(tmp_path: Path) -> None:
    assert NodeHome(tmp_path).load_settings() == NodeSettings()
    assert load_settings(tmp_path / "node.toml", NodeSettings) == NodeSettings()


def test_every_key_of_the_file_has_a_comment_above_it(tmp_path: Path) -> None:
    NodeHome(tmp_path).load_settings()
    text = (tmp_path / "node.toml").read_text(encoding="utf-8")
    lines = text.splitlines()
    table = tomllib.loads(text)
    assert set(table) == {"node", "policy"}
    assert set(table["node"]) == set(NodeTable.model_fields)
    assert set(table["policy"]) == set(Policy.model_fields)
    for key in (*table["node"], *table["policy"]):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{key} = ")]
        assert lines[at - 1].startswith("# "), key


def test_what_an_institution_writes_is_kept(tmp_path: Path) -> None:
    home = NodeHome(tmp_path)
    settings = NodeSettings(
        node=NodeTable(language='français "ancien"\n', threads=3, held_out_fraction=0.25),
        policy=Policy(codecs=("int8",), statistics=("a", "b"), report_progress=False),
    )
    home.save_settings(settings)
    assert home.load_settings() == settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[policy]\nmin_quorm = 3", "policy.min_quorm: unknown key; did you mean min_quorum?"),
        ("[policy]\nmax_token = 3", "policy.max_token: unknown key; did you mean max_tokens?"),
        ("[node]\nlanguages = 'fra'", "node.languages: unknown key; did you mean language?"),
        ("[polcy]\nmin_quorum = 3", "polcy: unknown key; did you mean policy?"),
        ("[policy]\nmin_quorum = 0", "policy.min_quorum: "),
        ("[policy]\nmax_shared_fraction = nan", "policy.max_shared_fraction: "),
        ("[node]\nheld_out_fraction = 0.5", "node.held_out_fraction: "),
        ("[policy]\nreport_evaluation = 'perhaps'", "policy.report_evaluation: "),
        ("[policy", "not valid TOML"),
        (
            "[policy]\nmin_inner_steps = 50\nmax_inner_steps = 10",
            "policy: min_inner_steps = 50 and max_inner_steps = 10 contradict each other",
        ),
        (
            "[policy]\nmin_tokens = 2_000\nmax_tokens = 1_000",
            "policy: min_tokens = 2,000 and max_tokens = 1,000 contradict each other",
        ),
        ("[policy]\nobjectives = []", "policy: objectives is empty: no plan could be accepted"),
    ],
)
def test_a_mistake_in_the_file_is_named_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        NodeHome(tmp_path).load_settings()
    said = str(caught.value)
    assert said.startswith(f"{path}: {says}")
    assert len(said.splitlines()) == 1
