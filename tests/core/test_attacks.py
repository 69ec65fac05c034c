"""What one member, or as many as a rule allows for, can do to the aggregate, whatever they send.

The suite is that of the literature: sign flip, scaling, ALIE (arXiv 1902.06156), inner-product
manipulation (arXiv 1903.03936), mimicry (arXiv 2006.09365), noise, one huge coordinate, and what
is not a vector at all.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from tapestry.aggregation.pipeline import decide
from tapestry.aggregation.rules import RULE_NAMES, Rule, RuleName
from tapestry.aggregation.weights import token_weights
from tapestry.checkpoints.statements import Contribution
from tapestry.errors import RejectedError, UntrustedError
from tapestry.params.codecs import codec_named
from tests.core.recorded import (
    Vectors,
    clipped,
    combined,
    member,
    recorded,
    replayed,
    vector_layout,
)

ELEMENTS = 400
HONEST = 8
CLIP = 1.5
LAYOUT = vector_layout(ELEMENTS)
ROBUST: tuple[RuleName, ...] = tuple(name for name in RULE_NAMES if name != "mean")
Attack = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def honest(*, members: int = HONEST, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return institutions that agree a little and differ a lot, as languages do."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(ELEMENTS) * 0.3
    return np.float64(common + rng.standard_normal((members, ELEMENTS)))


def alie(z: float) -> Attack:
    return lambda others: others.mean(axis=0) - z * others.std(axis=0)


def spike(others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lie = others.mean(axis=0)
    lie[0] = 3e38
    return lie


ATTACKS: dict[str, Attack] = {
    "sign flip": lambda others: -others.mean(axis=0),
    "sign flip, tenfold": lambda others: -10 * others.mean(axis=0),
    "model replacement": lambda others: 1e6 * others[0],
    "the largest floats": lambda others: np.full_like(others[0], -3.4e38),
    "ALIE 0.5": alie(0.5),
    "ALIE 1": alie(1.0),
    "ALIE 1.5": alie(1.5),
    "ALIE 3": alie(3.0),
    "inner product 0.1": lambda others: -0.1 * others.mean(axis=0),
    "inner product 0.5": lambda others: -0.5 * others.mean(axis=0),
    "inner product 1.1": lambda others: -1.1 * others.mean(axis=0),
    "mimicry": lambda others: others[0].copy(),
    "noise": lambda _others: np.random.default_rng(9).standard_normal(ELEMENTS) * 200,
    "opposite of the same length": lambda others: (
        -others.mean(axis=0)
        * np.linalg.norm(others, axis=1).mean()
        / np.linalg.norm(others.mean(axis=0))
    ),
    "one coordinate": spike,
    "nothing": lambda _others: np.zeros(ELEMENTS),
    "subnormal": lambda _others: np.full(ELEMENTS, 1e-44),
}
RULES = [
    *(Rule(name=name, byzantine=1) for name in RULE_NAMES),
    *(Rule(name=name, byzantine=1, mixing=True) for name in RULE_NAMES),
    Rule(merge="rda"),
    Rule(name="centred-clipping", merge="rda"),
]


def named(rule: Rule) -> str:
    return f"{rule.name}{' mixed' * rule.mixing}{' rda' * (rule.merge == 'rda')}"


def with_liars(attack: Attack, liars: int, *, members: int = HONEST) -> Vectors:
    others = honest(members=members)
    return np.vstack([others, *[attack(others)] * liars]).astype(np.float32)


@pytest.mark.parametrize("rule", RULES, ids=named)
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_single_liar_gives_nan_another_shape_or_more_than_a_clipped_length(
    attack: str, rule: Rule
) -> None:
    vectors = with_liars(ATTACKS[attack], 1)
    found = combined(clipped(vectors, clip=CLIP), rule, LAYOUT)
    assert found.shape == (ELEMENTS,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert np.linalg.norm(found) <= CLIP * np.median(norms) * (1 + 1e-5)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_liar_moves_the_mean_by_its_weight_times_the_clip_at_most(attack: str) -> None:
    vectors = with_liars(ATTACKS[attack], 1)
    cap = 0.25
    claimed = dict.fromkeys(map(member, range(HONEST)), 1000) | {member(HONEST): 10**15}
    weights = token_weights(claimed, gamma=0.5, cap=cap)
    parts = [replace(part, weight=weights[part.member_id]) for part in clipped(vectors, clip=CLIP)]
    silent = [
        replace(part, weight=0.0) if part.member_id == member(HONEST) else part for part in parts
    ]
    moved = replayed(parts, Rule(), LAYOUT).astype(np.float64) - replayed(silent, Rule(), LAYOUT)
    median = np.median(np.linalg.norm(vectors.astype(np.float64), axis=1))
    assert weights[member(HONEST)] <= cap
    assert np.linalg.norm(moved) <= cap * CLIP * median * (1 + 1e-5)


@pytest.mark.parametrize("liars", [1, 2, 3])
@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("attack", ATTACKS)
def test_allowed_for_liars_keep_the_result_near_the_honest_mean(
    attack: str,
    name: RuleName,
    mixing: bool,  # noqa: FBT001
    liars: int,
) -> None:
    # (f, kappa)-robustness, arXiv 2302.01772: |result - mean|^2 <= kappa * variance. The constant
    # is the weakest of the paper's for these rules, that of Krum: 6 (1 + f / (n - 2 f)).
    vectors = with_liars(ATTACKS[attack], liars)
    rule = Rule(name=name, byzantine=liars, mixing=mixing)
    found = combined(recorded(vectors), rule, LAYOUT).astype(np.float64)
    others = honest()
    count = HONEST + liars
    kappa = 6 * (1 + liars / (count - 2 * liars))
    variance = float(((others - others.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert float(((found - others.mean(axis=0)) ** 2).sum()) <= kappa * variance


def test_the_plain_mean_without_a_clip_is_what_the_rules_are_for() -> None:
    vectors = with_liars(ATTACKS["model replacement"], 1)
    others = honest()
    far = np.linalg.norm(combined(recorded(vectors), Rule(), LAYOUT) - others.mean(axis=0))
    assert far > 1000 * np.linalg.norm(others.mean(axis=0))


@pytest.mark.parametrize("name", ["multi-krum", "median", "trimmed-mean"])
def test_one_liar_more_than_allowed_for_is_out_of_the_guarantee(name: RuleName) -> None:
    # a majority of liars wins with any rule; nothing pretends otherwise
    vectors = with_liars(lambda _others: np.full(ELEMENTS, 1e6), 4, members=3)
    found = combined(recorded(vectors), Rule(name=name, byzantine=3), LAYOUT)
    assert np.linalg.norm(found) > 1e6


def test_a_slow_drift_does_not_build_up_in_centred_clipping() -> None:
    # the reference is the origin in every round, so ten rounds of it are ten times the same
    vectors = with_liars(ATTACKS["ALIE 1.5"], 1)
    rule = Rule(name="centred-clipping")
    rounds = {combined(recorded(vectors), rule, LAYOUT).tobytes() for _ in range(10)}
    assert len(rounds) == 1


@pytest.mark.parametrize("name", RULE_NAMES)
@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_bytes_that_are_no_contribution_are_refused(codec: str, name: RuleName) -> None:
    rule = Rule(name=name, byzantine=1)
    parts = recorded(honest().astype(np.float32), codec=codec)
    size = codec_named(codec).encoded_bytes(ELEMENTS)
    for data in (b"", b"\0", b"\xff" * size, b"\0" * (size - 1), b"\0" * (size + 4)):
        hostile = replace(parts[3], read_fragment=lambda _index, data=data: data)
        with pytest.raises(RejectedError):
            combined([*parts[:3], hostile, *parts[4:]], rule, LAYOUT)


def test_a_lonely_language_is_dropped_by_multi_krum_and_kept_by_the_gentler_rules() -> None:
    # seven institutions share a language; the eighth, as honest, has its own
    rng = np.random.default_rng(1)
    shared, own = rng.standard_normal((2, ELEMENTS))
    vectors = np.vstack([shared + 0.2 * rng.standard_normal((7, ELEMENTS)), own[None, :]]).astype(
        np.float32
    )
    weight = {
        name: decide(recorded(vectors), rule=Rule(name=name, byzantine=1), layout=LAYOUT)[7].weight
        for name in ("mean", "centred-clipping", "geometric-median", "multi-krum")
    }
    assert weight["mean"] == 0.125
    assert weight["multi-krum"] == 0.0
    assert 0 < weight["geometric-median"] < weight["mean"]
    assert 0 < weight["centred-clipping"] < weight["mean"]


def test_one_member_cannot_count_twice() -> None:
    first, second, *_ = recorded(honest())
    twin = replace(second, member_id=first.member_id)
    for rule in RULES[:6]:
        with pytest.raises(RejectedError, match="m00 has two contributions"):
            combined([first, twin, *recorded(honest())[2:]], rule, LAYOUT)


@pytest.mark.parametrize("rule", [Rule(), Rule(name="median"), Rule(name="geometric-median")])
def test_no_contribution_at_all_is_refused(rule: Rule) -> None:
    with pytest.raises(RejectedError, match="nothing to aggregate"):
        combined([], rule, LAYOUT)


@pytest.mark.parametrize("tokens", [-59, 0, 2**60, 10**30])
def test_absurd_token_counts_are_refused_before_they_become_weights(tokens: int) -> None:
    fields = {
        "genesis": "0" * 64, "round": 1, "base": "0" * 64, "member_id": "fr-bnf",
        "codec": "int8", "fragments": 1, "root": "0" * 64, "steps": 1, "norm": 1.0,
    }  # fmt: skip
    signed = Contribution(**fields, tokens=5).payload()
    assert Contribution.parsed(signed, what="contribution").tokens == 5
    absurd = signed.replace(b'"tokens":5', b'"tokens":%d' % tokens)
    with pytest.raises(UntrustedError, match="contribution: tokens: "):
        Contribution.parsed(absurd, what="contribution")
