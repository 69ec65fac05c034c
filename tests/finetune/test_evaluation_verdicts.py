"""Figures item by item, their intervals, and the verdicts against the floor."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from tapestry.config import parse_settings
from tapestry.errors import ConfigError
from tapestry_finetune.evaluation.floor import Floor, VerdictRow, is_above_floor, judge
from tapestry_finetune.evaluation.series import (
    Measured,
    Series,
    interval,
    paired_interval,
    sliced,
)

ITEMS = 200


def texts(bits: list[float] | np.ndarray, text_bytes: float = 100.0) -> Series:
    ids = [str(number) for number in range(len(bits))]
    return sliced("bits_per_byte", "eng", ids, list(bits), [text_bytes] * len(bits))[0]


def answers(right: list[float] | np.ndarray, measure: str = "exact") -> Series:
    return sliced(measure, "all", [str(n) for n in range(len(right))], list(right))[0]


def verdict_on(before: Series, after: Series, floor: Floor | None = None) -> VerdictRow:
    base, candidate = Measured(), Measured()
    base.add([before])
    candidate.add([after])
    (row,) = judge(base, candidate, floor or Floor())
    return row


def test_a_figure_is_a_weighted_mean() -> None:
    series = sliced("bits_per_byte", "eng", ["a", "b"], [100.0, 50.0], [50.0, 100.0])[0]
    assert series.figure == 1.0  # 150 bits over 150 bytes, not the mean of 2 and 0.5


def test_a_figure_of_nothing_is_none() -> None:
    assert sliced("language", "eng", ["a"], [0.0], [0.0])[0].figure is None


def test_slices_are_made_where_there_are_several() -> None:
    tags = [{"language": "eng", "domain": "law"}, {"language": "nld", "domain": "law"}, {}]
    made = sliced("exact", "quiz", ["a", "b", "c"], [1.0, 0.0, 1.0], tags=[*tags[:2], tags[0]])
    assert [(one.slice, one.items) for one in made] == [
        ("quiz", ("a", "b", "c")),
        ("quiz, language eng", ("a", "c")),
        ("quiz, language nld", ("b",)),
    ]


def test_the_interval_is_that_of_the_textbook() -> None:
    draw = np.random.default_rng(1)
    before, after = draw.normal(200, 20, ITEMS), draw.normal(190, 20, ITEMS)
    low, high = paired_interval(answers(before), answers(after), resamples=4000, seed=0)
    change = after - before
    error = 1.96 * change.std(ddof=1) / math.sqrt(ITEMS)
    assert low == pytest.approx(change.mean() - error, abs=0.2 * error)
    assert high == pytest.approx(change.mean() + error, abs=0.2 * error)


def test_what_is_hard_for_both_widens_no_interval() -> None:
    hard = np.random.default_rng(2).uniform(50, 500, ITEMS)
    low, high = paired_interval(texts(hard), texts(hard * 0.97), resamples=500, seed=0)
    assert low == pytest.approx(-0.03)
    assert high == pytest.approx(-0.03)
    alone = interval(texts(hard), resamples=500, seed=0)
    assert alone[1] - alone[0] > 0.2


def test_the_same_seed_gives_the_same_interval() -> None:
    draw = np.random.default_rng(3)
    pair = answers(draw.integers(0, 2, 40)), answers(draw.integers(0, 2, 40))
    first = paired_interval(*pair, resamples=300, seed=7)
    assert first == paired_interval(*pair, resamples=300, seed=7)
    assert first != paired_interval(*pair, resamples=300, seed=8)


def test_other_items_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="measured on different items"):
        paired_interval(answers([1.0, 0.0]), answers([1.0]), resamples=100, seed=0)


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(0.95, "improved"), (1.0, "kept"), (1.015, "kept"), (1.03, "REGRESSED")],
)
def test_bits_may_grow_by_two_percent(factor: float, verdict: str) -> None:
    bits = np.random.default_rng(4).uniform(100, 300, ITEMS)
    row = verdict_on(texts(bits), texts(bits * factor))
    assert row.verdict == verdict
    assert row.change == pytest.approx(factor - 1)


def test_bits_that_may_have_grown_too_much_have_regressed() -> None:
    draw = np.random.default_rng(5)
    bits = draw.uniform(100, 300, 12)
    row = verdict_on(texts(bits), texts(bits * draw.normal(1.01, 0.08, 12)))
    assert row.change < 0.02 < row.high  # the measured loss is small, a larger one is possible
    assert row.verdict == "REGRESSED"


def test_a_share_regresses_when_the_loss_is_certain() -> None:
    right = np.ones(ITEMS)
    worse = right.copy()
    worse[:40] = 0
    assert verdict_on(answers(right), answers(worse)).verdict == "REGRESSED"
    assert verdict_on(answers(worse), answers(right)).verdict == "improved"
    assert verdict_on(answers(right), answers(worse), Floor(accuracy_points=40)).verdict == "kept"


def test_few_questions_are_said_to_be_few() -> None:
    row = verdict_on(answers([1.0, 1, 1, 0, 1]), answers([1.0, 1, 0, 0, 1]))
    assert row.verdict == "kept"
    assert row.note == "5 items are too few to exclude a loss of 60 points"
    strict = verdict_on(answers([1.0, 1, 1, 0, 1]), answers([1.0, 1, 0, 0, 1]), Floor(strict=True))
    assert strict.verdict == "REGRESSED"


def test_an_interval_of_few_documents_says_little() -> None:
    assert verdict_on(texts([100.0] * 5), texts([100.0] * 5)).note == (
        "of 5 texts only: the interval says little"
    )


def test_of_hardly_any_text_only_a_great_change_is_a_verdict() -> None:
    row = verdict_on(texts([100.0]), texts([103.0]))
    assert (row.verdict, row.note) == (
        "kept",
        "1 text is too few to tell; give more in [evaluation] text",
    )
    assert verdict_on(texts([100.0] * 3), texts([91.0] * 3)).verdict == "kept"
    assert verdict_on(texts([100.0] * 3), texts([89.0] * 3)).verdict == "improved"
    assert verdict_on(texts([100.0]), texts([111.0])).verdict == "REGRESSED"
    assert verdict_on(texts([100.0]), texts([103.0]), Floor(strict=True)).verdict == "REGRESSED"
    assert verdict_on(texts([100.0] * 4), texts([103.0] * 4)).verdict == "REGRESSED"


def test_one_more_leak_is_one_too_many() -> None:
    before, after = answers([0.0] * 20, "leaked"), answers([0.0] * 19 + [1.0], "leaked")
    assert verdict_on(before, after).verdict == "REGRESSED"
    assert verdict_on(after, before).verdict == "kept"


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_without_numbers_has_regressed(broken: float) -> None:
    row = verdict_on(texts([100.0] * 5), texts([100.0] * 4 + [broken]))
    assert (row.verdict, row.note) == ("REGRESSED", "the model gives no number")
    assert not is_above_floor([row])


def test_overrides_are_found_from_the_narrow_to_the_wide() -> None:
    floor = Floor(overrides={"bits_per_byte": 3.0, "bits_per_byte:eng": 5.0})
    assert floor.tolerance("bits_per_byte", "eng") == 0.05
    assert floor.tolerance("bits_per_byte", "nld") == 0.03
    assert floor.tolerance("exact", "quiz") == 0.02
    assert floor.tolerance("leaked", "all outputs") == 0.0


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"overrides": {"bits": 1.0}}, "'bits' names no measure"),
        ({"overrides": {"exact": -1.0}}, "a tolerance is 0 or more"),
        ({"accuracy_point": 1.0}, "did you mean accuracy_points"),
    ],
)
def test_a_floor_that_cannot_be_is_refused(table: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_settings(table, Floor, where="floor")


def test_a_floor_is_not_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Floor().accuracy_points = 50  # type: ignore[misc]
