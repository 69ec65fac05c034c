"""Aggregation rules: by hand, against byzfl's results, and for every input."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tapestry.aggregation.geometric_median import weiszfeld
from tapestry.aggregation.gram import gram_of
from tapestry.aggregation.mixing import mixing_shares
from tapestry.aggregation.pipeline import decide
from tapestry.aggregation.rules import COORDINATE_RULES, RULE_NAMES, Rule, RuleName, known_rule
from tapestry.errors import ConfigError
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tests.core.recorded import Vectors, combined, member, recorded, replayed, vector_layout

GOLDEN = json.loads((Path(__file__).parents[1] / "vectors" / "robust_rules.json").read_text())
ROBUST: tuple[RuleName, ...] = tuple(name for name in RULE_NAMES if name != "mean")
WEIGHTING = tuple(name for name in ROBUST if name not in COORDINATE_RULES)

vectors_of = npst.arrays(
    np.float32,
    st.tuples(st.integers(3, 9), st.integers(1, 6)),
    elements=st.floats(-100, 100, width=32),
)
unhurried = settings(deadline=None, max_examples=60, database=None, derandomize=True)


def aggregated(vectors: Vectors, rule: Rule, *, codec: str = "float32") -> Vectors:
    layout = vector_layout(vectors.shape[1])
    return combined(recorded(vectors, layout, codec=codec), rule, layout)


def weights_of(vectors: Vectors, rule: Rule) -> list[float]:
    layout = vector_layout(vectors.shape[1])
    return [part.weight for part in decide(recorded(vectors, layout), rule=rule, layout=layout)]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{len(case['vectors'])} members")
@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("name", [n for n in ROBUST if n != "geometric-median"])
def test_another_implementation_agrees(case: dict[str, Any], name: RuleName, mixing: bool) -> None:  # noqa: FBT001
    rule = Rule(name=name, byzantine=case["byzantine"], mixing=mixing)
    expected = case["after_mixing" if mixing else "plain"][name]
    found = aggregated(np.array(case["vectors"]), rule)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{len(case['vectors'])} members")
def test_another_implementation_finds_the_same_geometric_median(case: dict[str, Any]) -> None:
    vectors = np.array(case["vectors"], np.float32)
    gram = gram_of(recorded(vectors), vector_layout(vectors.shape[1]))
    weights = weiszfeld(gram, floor=case["floor"], steps=5000)
    np.testing.assert_allclose(weights @ vectors, case["plain"]["geometric-median"], atol=1e-4)
    mixing = mixing_shares(gram, byzantine=case["byzantine"])
    np.testing.assert_allclose(mixing @ vectors, case["mixtures"], atol=1e-5)
    mixed = weiszfeld(gram.mixed(mixing), floor=case["floor"], steps=5000) @ mixing
    np.testing.assert_allclose(mixed @ vectors, case["after_mixing"]["geometric-median"], atol=1e-3)


def test_multi_krum_by_hand() -> None:
    # on a line, f = 1: with its two nearest others 0 scores 1 + 4, 1 scores 1 + 1, 2 scores 4 + 1,
    # and 10 scores 64 + 81: it is dropped
    vectors = np.float32([[0], [1], [2], [10]])
    rule = Rule(name="multi-krum", byzantine=1)
    assert weights_of(vectors, rule) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert aggregated(vectors, rule)[0] == pytest.approx(1.0)


def test_equal_scores_go_by_the_order_of_ids() -> None:
    vectors = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    weights = weights_of(vectors, Rule(name="multi-krum", byzantine=1))
    assert weights == [0.5, 0.5, 0.0]


def test_the_geometric_median_of_three_on_a_line_is_the_middle_one() -> None:
    found = aggregated(np.float32([[0], [1], [50]]), Rule(name="geometric-median"))
    assert found[0] == pytest.approx(1.0, abs=0.01)


def test_the_geometric_median_of_a_square_and_a_far_point() -> None:
    # for four points of a convex quadrilateral it is where the diagonals cross: (1, 1)
    square = np.float32([[0, 0], [2, 2], [2, 0], [0, 2]])
    found = aggregated(square, Rule(name="geometric-median"))
    np.testing.assert_allclose(found, [1, 1], atol=1e-4)


@unhurried
@given(vectors_of)
def test_no_point_nearby_has_a_smaller_sum_of_distances(vectors: Vectors) -> None:
    found = aggregated(vectors, Rule(name="geometric-median")).astype(np.float64)

    def total(point: Vectors) -> float:
        return float(np.linalg.norm(vectors - point, axis=1).sum())

    spread = float(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).max())
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = rng.standard_normal(found.shape) * spread * 0.1
        assert total(found) <= total(found + step) + len(vectors) * (2e-2 * spread + 1e-4)


def test_centred_clipping_by_hand() -> None:
    # one step with all norms at the radius is the mean; a far one adds its radius and no more:
    # norms 1, 1, 9 have the median 1: v1 = (e1 + e2 + e3) / 3, and so on towards the honest
    vectors = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 9]])
    found = aggregated(vectors, Rule(name="centred-clipping"))
    assert found[0] == found[1] > 0.3
    assert found[2] < 5 / 3  # five steps of a third of the radius


def test_a_large_radius_is_the_mean() -> None:
    vectors = np.float32([[1, 5], [2, 7], [6, 0]])
    found = aggregated(vectors, Rule(name="centred-clipping", radius=1e6))
    np.testing.assert_allclose(found, [3, 4], rtol=1e-6)


def test_mixing_by_hand() -> None:
    # f = 1: each of 1, 2, 4, 20 with its two nearest: 7/3, 7/3, 7/3, 26/3; then the mean
    vectors = np.float32([[1], [2], [4], [20]])
    found = aggregated(vectors, Rule(byzantine=1, mixing=True))
    assert found[0] == pytest.approx((3 * 7 + 26) / 12, rel=1e-6)
    median = aggregated(vectors, Rule(name="median", byzantine=1, mixing=True))
    assert median[0] == pytest.approx(7 / 3, rel=1e-6)


def test_neighbours_of_a_coordinate_rule_are_recorded_by_name() -> None:
    layout = vector_layout(1)
    rule = Rule(name="trimmed-mean", byzantine=1, mixing=True)
    decided = decide(recorded(np.float32([[1], [2], [4], [20]])), rule=rule, layout=layout)
    assert decided[0].neighbours == (member(0), member(1), member(2))
    assert decided[3].neighbours == (member(1), member(2), member(3))
    assert {part.weight for part in decided} == {0.25}


def test_the_mean_keeps_the_weights_that_it_was_given() -> None:
    layout = vector_layout(1)
    parts = recorded(np.float32([[1], [3]]), weights=[0.75, 0.25])
    assert combined(parts, Rule(), layout)[0] == 1.5


@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_give_everybody_one_vote(name: RuleName) -> None:
    layout = vector_layout(4)
    vectors = np.random.default_rng(3).standard_normal((5, 4), np.float32)
    rule = Rule(name=name, byzantine=1)
    rich = combined(recorded(vectors, weights=[0.96, 0.01, 0.01, 0.01, 0.01]), rule, layout)
    equal = combined(recorded(vectors), rule, layout)
    assert rich.tobytes() == equal.tobytes()


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("name", RULE_NAMES)
def test_the_order_of_arrival_does_not_change_a_bit(name: RuleName, mixing: bool) -> None:  # noqa: FBT001
    layout = vector_layout(50)
    vectors = np.random.default_rng(4).standard_normal((4, 50), np.float32)
    rule = Rule(name=name, byzantine=1, mixing=mixing)
    parts = recorded(vectors, codec="int8", weights=[0.4, 0.3, 0.2, 0.1])
    expected = combined(parts, rule, layout).tobytes()
    for order in itertools.permutations(parts):
        assert combined(order, rule, layout).tobytes() == expected


@pytest.mark.parametrize("name", RULE_NAMES)
def test_who_repeats_the_step_from_the_record_gets_the_same_bytes(name: RuleName) -> None:
    layout = vector_layout(FRAGMENT_ELEMENTS + 300)
    vectors = np.random.default_rng(5).standard_normal((5, layout.elements), np.float32)
    rule = Rule(name=name, byzantine=1, mixing=name in COORDINATE_RULES)
    decided = decide(recorded(vectors, layout, codec="int8"), rule=rule, layout=layout)
    written = json.dumps([[p.member_id, p.weight, p.neighbours] for p in decided])
    again = [
        replace(part, weight=weight, neighbours=tuple(neighbours))
        for part, (_, weight, neighbours) in zip(
            recorded(vectors, layout, codec="int8"), json.loads(written), strict=True
        )
    ]
    assert replayed(again, rule, layout).tobytes() == replayed(decided, rule, layout).tobytes()


_REPLAY = """
import hashlib, numpy as np
from tapestry.aggregation.rules import RULE_NAMES, Rule
from tests.core.recorded import recorded, replayed, vector_layout
layout = vector_layout(70_001)
vectors = np.random.default_rng(6).standard_normal((7, 70_001), np.float32)
digest = hashlib.sha256()
for name in RULE_NAMES:
    rule = Rule(name=name, byzantine=2)
    digest.update(replayed(recorded(vectors, codec="int8"), rule, layout).tobytes())
digest.update(replayed(recorded(vectors), Rule(merge="rda"), layout).tobytes())
print(digest.hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    digests = set()
    for threads in ("1", "2", "3"):
        environment = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", _REPLAY],
            env=environment | {"PYTHONPATH": ":".join(sys.path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


@unhurried
@given(vectors_of, st.sampled_from(WEIGHTING), st.booleans())
def test_weights_are_shares(vectors: Vectors, name: RuleName, mixing: bool) -> None:  # noqa: FBT001
    weights = weights_of(vectors, Rule(name=name, byzantine=1, mixing=mixing))
    assert all(0 <= weight <= 1 for weight in weights)
    total = sum(weights)
    assert total <= 1 + 1e-9
    assert name == "centred-clipping" or total == pytest.approx(1)


@unhurried
@given(vectors_of, st.sampled_from(RULE_NAMES))
def test_what_all_agree_on_is_the_result(vectors: Vectors, name: RuleName) -> None:
    same = np.repeat(vectors[:1], 5, axis=0)
    found = aggregated(same, Rule(name=name, byzantine=2))
    np.testing.assert_allclose(found, vectors[0], rtol=1e-5, atol=1e-5)


@unhurried
@given(vectors_of, st.randoms(use_true_random=False), st.sampled_from(RULE_NAMES))
def test_who_sends_what_does_not_matter_only_what_is_sent(
    vectors: Vectors, random: Any, name: RuleName
) -> None:
    # multi-krum decides ties by id, so equal scores may give another of the same worth
    if name == "multi-krum":
        return
    order = list(range(len(vectors)))
    random.shuffle(order)
    rule = Rule(name=name, byzantine=1)
    spread = float(np.abs(vectors).max())
    np.testing.assert_allclose(
        aggregated(vectors[order], rule), aggregated(vectors, rule), atol=2e-3 * spread + 1e-6
    )


@unhurried
@given(vectors_of, st.sampled_from(sorted(COORDINATE_RULES)), st.floats(-1e30, 1e30))
def test_every_coordinate_stays_between_two_honest_values(
    vectors: Vectors, name: RuleName, lie: float
) -> None:
    liars = (len(vectors) - 1) // 2
    honest, sent = vectors[liars:], vectors.copy()
    sent[:liars] = lie
    found = aggregated(sent, Rule(name=name, byzantine=liars))
    slack = 1e-5 * np.abs(honest).max() + 1e-30
    assert (found >= honest.min(axis=0) - slack).all()
    assert (found <= honest.max(axis=0) + slack).all()


def test_an_unknown_rule_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown rule 'medain'; did you mean median\?"):
        known_rule("medain")
    assert [known_rule(name) for name in RULE_NAMES] == list(RULE_NAMES)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(name="trimmed-mean", byzantine=2),
        Rule(name="multi-krum", byzantine=2),
        Rule(name="geometric-median", byzantine=2, mixing=True),
        Rule(byzantine=2, mixing=True),
    ],
)
def test_too_few_contributions_are_refused_with_what_to_set(rule: Rule) -> None:
    advice = (
        r"byzantine = 2 cannot hold with 4 contributions: .* needs more than 4; "
        r"set byzantine <= 1 or raise quorum to 5"
    )
    parts = recorded(np.zeros((4, 3)))
    with pytest.raises(ConfigError, match=advice):
        decide(parts, rule=rule, layout=vector_layout(3))
    with pytest.raises(ConfigError, match=advice):
        replayed(parts, rule, vector_layout(3))


@pytest.mark.parametrize("name", ["mean", "median", "geometric-median", "centred-clipping"])
def test_rules_that_count_no_liars_take_any_number(name: RuleName) -> None:
    assert aggregated(np.float32([[3.0]]), Rule(name=name, byzantine=5))[0] == 3.0


@pytest.mark.parametrize("name", sorted(COORDINATE_RULES))
def test_a_rule_without_weights_cannot_keep_lengths(name: RuleName) -> None:
    with pytest.raises(ConfigError, match=f'merge = "rda" needs one weight .* {name} has none'):
        Rule(name=name, merge="rda")


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="byzantine = -1"):
        Rule(byzantine=-1)
    with pytest.raises(ConfigError, match="radius = 0"):
        Rule(name="centred-clipping", radius=0.0)
