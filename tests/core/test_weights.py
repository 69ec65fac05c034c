"""Each member's share in the average, and the clip."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestry.aggregation.weights import (
    clip_factors,
    default_cap,
    staleness_discount,
    token_weights,
)
from tapestry.errors import ConfigError


def test_equal_tokens_give_equal_weights() -> None:
    weights = token_weights({"a": 7, "b": 7, "c": 7, "d": 7}, gamma=0.5, cap=1.0)
    assert weights == {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}


def test_gamma_zero_ignores_tokens() -> None:
    assert token_weights({"a": 1, "b": 1000}, gamma=0.0, cap=1.0) == {"a": 0.5, "b": 0.5}


def test_gamma_one_is_proportional() -> None:
    assert token_weights({"a": 1, "b": 3}, gamma=1.0, cap=1.0) == {"a": 0.25, "b": 0.75}


def test_gamma_one_half_is_proportional_to_the_square_root() -> None:
    # roots 1, 2, 3, 4; their sum is 10
    weights = token_weights({"a": 1, "b": 4, "c": 9, "d": 16}, gamma=0.5, cap=1.0)
    assert weights == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4})


def test_what_a_capped_member_loses_goes_to_the_others_in_proportion() -> None:
    # shares .6 .3 .1; a is capped to .5, and .5 is divided 3 : 1
    weights = token_weights({"a": 6, "b": 3, "c": 1}, gamma=1.0, cap=0.5)
    assert weights == pytest.approx({"a": 0.5, "b": 0.375, "c": 0.125})


def test_a_member_that_redistribution_lifts_over_the_cap_is_capped_too() -> None:
    # shares .70 .16 .07 .07; a to .4 leaves .6 as 16:7:7 -> b .32; with cap .3, a and b are .3
    # each and c and d share .4
    weights = token_weights({"a": 70, "b": 16, "c": 7, "d": 7}, gamma=1.0, cap=0.3)
    assert weights == pytest.approx({"a": 0.3, "b": 0.3, "c": 0.2, "d": 0.2})


def test_several_members_are_capped_at_once() -> None:
    # shares .45 .45 .05 .05; a and b to .4 each, c and d share .2
    weights = token_weights({"a": 45, "b": 45, "c": 5, "d": 5}, gamma=1.0, cap=0.4)
    assert weights == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.1, "d": 0.1})


def test_a_cap_of_an_equal_share_makes_all_equal() -> None:
    weights = token_weights({"a": 1, "b": 10, "c": 100}, gamma=1.0, cap=1 / 3)
    assert weights == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


def test_a_single_member_has_all_the_weight() -> None:
    assert token_weights({"a": 5}, gamma=0.5, cap=1.0) == {"a": 1.0}


def test_a_cap_that_cannot_hold_is_refused_with_what_to_do() -> None:
    # two weights of at most .3 sum to .6; four members are needed, or a cap of a half
    advice = r"influence_cap = 0.3 cannot hold with 2 .* raise quorum to 4 or influence_cap to 0.5"
    with pytest.raises(ConfigError, match=advice):
        token_weights({"a": 100, "b": 100}, gamma=0.5, cap=0.3)


def test_the_advice_for_a_third_is_three_members() -> None:
    with pytest.raises(ConfigError, match=r"raise quorum to 3 or influence_cap to 0\.5"):
        token_weights({"a": 1, "b": 1}, gamma=0.5, cap=1 / 3)


@pytest.mark.parametrize(("members", "cap"), [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25), (9, 0.25)])
def test_the_default_cap_is_a_quarter_or_an_equal_share(members: int, cap: float) -> None:
    assert default_cap(members) == cap
    token_weights({f"m{n}": 10**n for n in range(members)}, gamma=1.0, cap=cap)


@pytest.mark.parametrize("seed", range(100))
def test_weights_sum_to_one_and_none_is_above_the_cap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    members = int(rng.integers(1, 30))
    tokens = {f"m{n:02}": int(10.0 ** rng.uniform(0, 12)) for n in range(members)}
    cap = float(rng.uniform(1 / members, 1))
    gamma = float(rng.uniform(0, 1))
    weights = token_weights(tokens, gamma=gamma, cap=cap)
    assert list(weights) == sorted(tokens)
    assert math.fsum(weights.values()) == pytest.approx(1.0, abs=1e-12)
    assert all(0 < weight <= cap for weight in weights.values())
    by_tokens = sorted(tokens, key=lambda member: tokens[member])
    for fewer, more in itertools.pairwise(by_tokens):
        assert weights[fewer] <= weights[more] * (1 + 1e-12)  # more tokens never weigh less


def test_the_order_in_which_members_are_given_does_not_matter() -> None:
    tokens = {"a": 3, "b": 500, "c": 70, "d": 11}
    expected = token_weights(tokens, gamma=0.5, cap=0.4)
    for order in itertools.permutations(tokens):
        shuffled = {member: tokens[member] for member in order}
        assert token_weights(shuffled, gamma=0.5, cap=0.4) == expected


def test_norms_are_brought_down_to_a_multiple_of_the_median() -> None:
    # the median of 1 2 3 10 is 2.5; one and a half of it is 3.75
    factors = clip_factors({"a": 1.0, "b": 2.0, "c": 3.0, "d": 10.0}, clip=1.5)
    assert factors == {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.375}


def test_with_an_odd_number_the_median_is_the_middle_norm() -> None:
    assert clip_factors({"a": 8.0, "b": 1.0, "c": 2.0}, clip=1.0) == {"a": 0.25, "b": 1.0, "c": 1.0}


def test_a_clip_of_zero_turns_clipping_off() -> None:
    assert clip_factors({"b": 1e9, "a": 1.0}, clip=0) == {"a": 1.0, "b": 1.0}


def test_members_that_did_nothing_are_not_divided_by() -> None:
    assert clip_factors({"a": 0.0, "b": 0.0, "c": 1.0}, clip=1.5) == {"a": 1.0, "b": 1.0, "c": 0.0}


@pytest.mark.parametrize("seed", range(50))
def test_no_clipped_norm_is_above_the_limit_and_no_factor_above_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    norms = {f"m{n}": float(10 ** rng.uniform(-6, 6)) for n in range(int(rng.integers(1, 12)))}
    limit = 1.5 * float(np.median(list(norms.values())))
    for member, factor in clip_factors(norms, clip=1.5).items():
        assert 0 < factor <= 1
        assert factor * norms[member] <= limit * (1 + 1e-12)
        assert factor == 1 or norms[member] > limit


def test_a_group_has_no_more_than_its_cap_and_shares_it_by_tokens() -> None:
    # f1 and f2 would have .6 and .2; together they may have .5, as 3 : 1; c and d share the rest
    weights = token_weights(
        {"c": 1, "d": 1, "f1": 6, "f2": 2},
        gamma=1.0,
        cap=1.0,
        groups={"f1": "france", "f2": "france"},
        group_cap=0.5,
    )
    assert weights == pytest.approx({"c": 0.25, "d": 0.25, "f1": 0.375, "f2": 0.125})
    assert list(weights) == ["c", "d", "f1", "f2"]


def test_inside_a_group_the_cap_of_a_member_holds_too() -> None:
    weights = token_weights(
        {"c": 1, "d": 1, "f1": 6, "f2": 2},
        gamma=1.0,
        cap=0.3,
        groups={"f1": "france", "f2": "france"},
        group_cap=0.5,
    )
    assert weights == pytest.approx({"c": 0.25, "d": 0.25, "f1": 0.3, "f2": 0.2})


def test_what_the_caps_of_all_groups_leave_goes_to_nobody() -> None:
    weights = token_weights(
        {"f1": 1, "f2": 1}, gamma=1.0, cap=1.0, groups={"f1": "x", "f2": "x"}, group_cap=0.4
    )
    assert weights == pytest.approx({"f1": 0.2, "f2": 0.2})


def test_a_member_alone_is_not_in_the_group_that_has_its_name() -> None:
    weights = token_weights({"a": 1, "b": 1}, gamma=1.0, cap=1.0, groups={"b": "a"}, group_cap=0.25)
    assert weights == pytest.approx({"a": 0.75, "b": 0.25})


@given(
    tokens=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**9), min_size=1),
    groups=st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y"])),
    gamma=st.sampled_from([0.0, 0.5, 1.0]),
    group_cap=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
)
def test_no_cap_is_ever_broken(
    tokens: dict[str, int], groups: dict[str, str], gamma: float, group_cap: float
) -> None:
    cap = default_cap(len(tokens))
    weights = token_weights(tokens, gamma=gamma, cap=cap, groups=groups, group_cap=group_cap)
    assert set(weights) == set(tokens)
    assert sum(weights.values()) <= 1 + 1e-9
    assert all(0 < weight <= cap + 1e-12 for weight in weights.values())
    for group in ("x", "y"):
        together = sum(w for member, w in weights.items() if groups.get(member) == group)
        assert together <= group_cap + 1e-12


# Lateness


def test_a_late_contribution_is_discounted_by_the_rounds_it_is_late() -> None:
    assert [staleness_discount(s, discount=0.25) for s in (0, 1, 2, 4)] == pytest.approx(
        [1, 0.8, 2 / 3, 0.5]
    )
    assert staleness_discount(9, discount=0.0) == 1


def test_what_a_late_one_loses_goes_to_those_below_their_cap() -> None:
    weights = token_weights(dict.fromkeys("abcd", 1), gamma=0.5, cap=0.5, discounts={"d": 0.8})
    assert weights == pytest.approx({"a": 1 / 3.8, "b": 1 / 3.8, "c": 1 / 3.8, "d": 0.8 / 3.8})
    assert sum(weights.values()) == pytest.approx(1)


def test_what_a_late_one_loses_goes_to_nobody_where_all_are_at_their_cap() -> None:
    weights = token_weights(dict.fromkeys("abcd", 1), gamma=0.5, cap=0.25, discounts={"d": 0.8})
    assert weights == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.2})


def test_who_is_late_alone_is_not_amplified() -> None:
    assert token_weights({"a": 7}, gamma=0.5, cap=1.0, discounts={"a": 0.8}) == {"a": 0.8}
    all_late = token_weights({"a": 1, "b": 1}, gamma=1, cap=0.5, discounts={"a": 0.5, "b": 0.8})
    assert all_late == pytest.approx({"a": 0.25, "b": 0.4})


def test_a_late_giant_stays_below_its_discounted_cap() -> None:
    weights = token_weights(
        {"a": 10**9, "b": 1, "c": 1, "d": 1}, gamma=1, cap=0.4, discounts={"a": 0.5}
    )
    assert weights["a"] == pytest.approx(0.2)  # 0.4 * 0.5
    assert weights["b"] == weights["c"] == weights["d"] == pytest.approx(0.8 / 3)
