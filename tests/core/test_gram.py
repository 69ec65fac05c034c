"""Inner products about a common centre, against float64."""

import numpy as np
import pytest

from tapestry.aggregation import gram as gram_module
from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.gram import gram_of
from tapestry.errors import RejectedError
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tests.core.recorded import Vectors, member, recorded, vector_layout


def noise(members: int, elements: int, *, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((members, elements), np.float32)


def exact_distances(vectors: Vectors) -> Vectors:
    points = np.vstack([vectors.astype(np.float64), np.zeros(vectors.shape[1])])
    return np.linalg.norm(points[:, None] - points[None, :], axis=2)


@pytest.mark.parametrize("members", [1, 2, 5, 40])
def test_distances_and_norms_are_those_of_float64(members: int) -> None:
    vectors = noise(members, 3000)
    gram = gram_of(recorded(vectors), vector_layout(3000))
    np.testing.assert_allclose(gram.distances(), exact_distances(vectors), rtol=1e-5, atol=1e-9)


def test_fragments_add_up() -> None:
    elements = FRAGMENT_ELEMENTS + 777
    vectors = noise(3, elements)
    gram = gram_of(recorded(vectors), vector_layout(elements))
    np.testing.assert_allclose(gram.distances(), exact_distances(vectors), rtol=1e-5)


def test_what_all_have_in_common_does_not_swallow_the_differences() -> None:
    # norms near 55,000, differences near 0.08: their squares are 12 digits apart
    vectors = noise(4, 3000) * np.float32(1e-3) + np.float32(1000)
    gram = gram_of(recorded(vectors), vector_layout(3000))
    exact = exact_distances(vectors)
    np.testing.assert_allclose(gram.distances()[:-1, :-1], exact[:-1, :-1], rtol=2e-2)
    uncentred = vectors @ vectors.T
    squared = np.diag(uncentred)[:, None] + np.diag(uncentred) - 2 * uncentred
    assert (squared < 0).any() or not np.allclose(squared, exact[:-1, :-1] ** 2, rtol=0.5)


def test_clip_factors_come_first() -> None:
    vectors = noise(2, 100)
    parts = recorded(vectors, factors={member(0): 0.25, member(1): 1.0})
    distances = gram_of(parts, vector_layout(100)).distances()
    assert distances[0, 2] == pytest.approx(0.25 * np.linalg.norm(vectors[0]), rel=1e-5)


def test_distances_to_a_combination_of_points() -> None:
    vectors = noise(4, 500)
    shares = np.array([0.1, 0.2, 0.3, 0.1, 0.3])  # the last is the origin's
    found = gram_of(recorded(vectors), vector_layout(500)).distances_to(shares)
    point = shares[:-1] @ vectors.astype(np.float64)
    np.testing.assert_allclose(found, np.linalg.norm(vectors - point, axis=1), rtol=1e-5)


def test_mixtures_have_the_distances_of_mixtures() -> None:
    vectors = noise(3, 500)
    mixing = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    mixed = gram_of(recorded(vectors), vector_layout(500)).mixed(mixing)
    np.testing.assert_allclose(
        mixed.distances(), exact_distances(mixing @ vectors), rtol=1e-4, atol=1e-9
    )


def test_squares_too_large_for_float32_are_still_right() -> None:
    vectors = noise(3, 200)
    vectors[2] *= np.float32(1e30)
    found = gram_of(recorded(vectors), vector_layout(200)).distances()
    np.testing.assert_allclose(found[2], exact_distances(vectors)[2], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_element_shows_even_if_no_codec_has_seen_it(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = noise(3, 200)
    parts = recorded(vectors)
    vectors[1, 17] = bad
    rows = {member(k): vector for k, vector in enumerate(vectors)}

    def lax(part: WeightedContribution, _index: int, out: Float32Array) -> None:
        np.copyto(out, rows[part.member_id])

    monkeypatch.setattr(gram_module, "decode_into", lax)
    with pytest.raises(RejectedError, match="NaN or infinite"):
        gram_of(parts, vector_layout(200))
