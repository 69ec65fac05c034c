"""Sorting networks, by the zero-one principle and against numpy."""

import itertools

import numpy as np
import pytest

from tapestry.aggregation.median import median
from tapestry.aggregation.sorting import LARGEST_NETWORK, ascending_middle, comparators
from tapestry.aggregation.trimmed_mean import trimmed_mean
from tapestry.params.codecs import Float32Array


def noise(rows: int, columns: int) -> Float32Array:
    return np.random.default_rng(rows).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("wires", range(1, 13))
def test_every_pattern_of_zeros_and_ones_is_sorted(wires: int) -> None:
    # a network that sorts all of these sorts everything (Knuth, volume 3, 5.3.4)
    patterns = np.array(list(itertools.product((0, 1), repeat=wires)), np.float32).T
    rows = [row.copy() for row in patterns]
    middle = ascending_middle(rows, trim=0, spare=np.empty(patterns.shape[1], np.float32))
    np.testing.assert_array_equal(np.stack(middle), np.sort(patterns, axis=0))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 17, 32, LARGEST_NETWORK, LARGEST_NETWORK + 1, 90])
def test_the_middle_is_that_of_a_sort_whatever_is_trimmed(rows: int) -> None:
    values = noise(rows, 40)
    for trim in {0, rows // 4, (rows - 1) // 2}:
        middle = ascending_middle(
            [row.copy() for row in values], trim=trim, spare=np.empty(40, np.float32)
        )
        np.testing.assert_array_equal(np.stack(middle), np.sort(values, axis=0)[trim : rows - trim])


def test_a_median_needs_fewer_comparisons_than_a_sort() -> None:
    # of eight: 19 comparators with two results each; 28 of those 38 lead to the middle two
    assert sum(low + high for _, _, low, high in comparators(8, 0)) == 38
    assert sum(low + high for _, _, low, high in comparators(8, 3)) == 28


def test_the_trimmed_mean_by_hand() -> None:
    rows = [np.float32([value, 10 * value]) for value in (1e9, 1.0, 3.0, -4.0, 2.0)]
    out = np.empty(2, np.float32)
    trimmed_mean(rows, trim=1, out=out, spare=np.empty(2, np.float32))
    np.testing.assert_allclose(out, [2.0, 20.0], rtol=1e-6)  # (1 + 2 + 3) / 3, tenfold


@pytest.mark.parametrize(("values", "middle"), [((5, 1, 2), 2.0), ((7, 1, 2, 4), 3.0), ((9,), 9.0)])
def test_the_median_by_hand(values: tuple[float, ...], middle: float) -> None:
    out = np.empty(1, np.float32)
    median([np.float32([v]) for v in values], out=out, spare=np.empty(1, np.float32))
    assert out[0] == middle


def test_the_sign_of_zero_does_not_depend_on_the_processor() -> None:
    out = np.empty(1, np.float32)
    for values in itertools.product((0.0, -0.0), repeat=3):
        median([np.float32([v]) for v in values], out=out, spare=np.empty(1, np.float32))
        assert not np.signbit(out[0])


def test_the_largest_values_do_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    rows = [np.full(1, largest, np.float32) for _ in range(4)]
    out = np.empty(1, np.float32)
    trimmed_mean(rows, trim=0, out=out, spare=np.empty(1, np.float32))
    assert out[0] == largest
