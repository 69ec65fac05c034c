"""Averaging directions and lengths apart, tensor by tensor."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tapestry.aggregation.rda import is_directional, ordered_square_sum
from tapestry.aggregation.rules import Rule
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout, TensorSpec
from tests.core.recorded import Vectors, combined, member, recorded

RDA = Rule(merge="rda")
PAIR = ParameterLayout.from_shapes([("a.weight", (2, 2)), ("norm.weight", (2,))])


def exact(
    vectors: Vectors, weights: list[float], factors: list[float], layout: ParameterLayout
) -> Vectors:
    """Return RDA from its definition, in float64 on the whole matrix."""
    wide, w = vectors.astype(np.float64), np.array(weights)
    result = (w * np.array(factors)) @ wide
    for tensor in layout.tensors:
        if is_directional(tensor):
            columns = slice(tensor.offset, tensor.offset + tensor.size)
            part = wide[:, columns]
            norms = np.linalg.norm(part, axis=1)
            direction = (w / norms) @ part
            length = (w * np.array(factors)) @ norms
            result[columns] = direction / np.linalg.norm(direction) * length
    return result


def test_orthogonal_directions_keep_their_length() -> None:
    # two unit directions at a right angle: the mean would be 3 * sqrt(.5) long, RDA is 3 long
    vectors = np.float32([[3, 0, 0, 0, 1, 0], [0, 3, 0, 0, 3, 2]])
    found = combined(recorded(vectors, PAIR), RDA, PAIR)
    np.testing.assert_allclose(found[:4], [3 / math.sqrt(2), 3 / math.sqrt(2), 0, 0], rtol=1e-6)


def test_one_dimensional_tensors_take_the_plain_mean() -> None:
    vectors = np.float32([[3, 0, 0, 0, 1, 0], [0, 3, 0, 0, 3, 2]])
    found = combined(recorded(vectors, PAIR), RDA, PAIR)
    np.testing.assert_array_equal(found[4:], np.float32([2, 1]))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.mlp.up_proj.weight", (8, 4), True),
        ("model.layers.0.self_attn.q_proj.weight", (4, 4), True),
        ("model.layers.0.self_attn.q_proj.bias", (4,), False),
        ("model.layers.0.input_layernorm.weight", (4,), False),
        ("model.embed_tokens.weight", (100, 4), False),
        ("transformer.wte.weight", (100, 4), False),
        ("lm_head.weight", (100, 4), False),
        ("encoder.norm.scale", (4, 4), False),
    ],
)
def test_embeddings_heads_and_norms_are_plain(
    name: str, shape: tuple[int, ...], *, expected: bool
) -> None:
    assert is_directional(TensorSpec(name, shape, 0)) is expected


def test_it_agrees_with_its_definition_across_fragments() -> None:
    # the second tensor begins in the first fragment and ends in the second
    layout = ParameterLayout.from_shapes(
        [("a.weight", (300, 7)), ("b.weight", (1100, 1000)), ("c.bias", (9,)), ("d.weight", (3, 5))]
    )
    assert layout.fragments == 2
    assert layout.elements > FRAGMENT_ELEMENTS
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((3, layout.elements), np.float32)
    vectors *= np.float32([[0.1], [1.0], [5.0]])
    weights, factors = [0.5, 0.3, 0.2], [1.0, 1.0, 0.5]
    parts = recorded(
        vectors,
        layout,
        weights=weights,
        factors={member(k): factor for k, factor in enumerate(factors)},
    )
    found = combined(parts, RDA, layout)
    np.testing.assert_allclose(
        found, exact(vectors, weights, factors, layout), rtol=1e-4, atol=1e-6
    )


def test_it_takes_the_weights_of_a_rule_of_distances() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((4, 6)).astype(np.float32)
    vectors[3] *= 50
    rule = Rule(name="multi-krum", byzantine=1, merge="rda")
    found = combined(recorded(vectors, PAIR), rule, PAIR)
    shares, ones = [1 / 3, 1 / 3, 1 / 3], [1.0, 1.0, 1.0]
    np.testing.assert_allclose(found, exact(vectors[:3], shares, ones, PAIR), rtol=1e-5)


def test_directions_that_cancel_give_the_plain_mean() -> None:
    vectors = np.float32([[4, 0, 0, 0, 0, 0], [-2, 0, 0, 0, 0, 0]])
    found = combined(recorded(vectors, PAIR), RDA, PAIR)
    np.testing.assert_array_equal(found[:4], np.float32([1, 0, 0, 0]))


def test_a_contribution_that_did_not_move_a_tensor_has_no_direction_there() -> None:
    vectors = np.float32([[0, 0, 0, 0, 1, 1], [0, 4, 0, 0, 1, 1]])
    found = combined(recorded(vectors, PAIR), RDA, PAIR)
    np.testing.assert_allclose(found[:4], [0, 2, 0, 0], rtol=1e-6)  # mean length (0 + 4) / 2


def test_nothing_moved_is_nothing() -> None:
    assert not combined(recorded(np.zeros((3, 6)), PAIR), RDA, PAIR).any()


@settings(deadline=None, max_examples=100, database=None, derandomize=True)
@given(
    npst.arrays(
        np.float32,
        st.tuples(st.integers(2, 5), st.just(6)),
        elements=st.sampled_from([0.0, 1.0, -1.0, 1e-44, -1e-38, 1e-20, 3e-8, 1e5, -1e19, 3e38]),
    )
)
def test_no_lengths_however_unequal_give_nan_or_more_than_the_mean_length(
    vectors: Vectors,
) -> None:
    found = combined(recorded(vectors, PAIR), RDA, PAIR).astype(np.float64)
    assert np.isfinite(found).all()
    lengths = np.linalg.norm(vectors[:, :4].astype(np.float64), axis=1)
    assert np.linalg.norm(found[:4]) <= lengths.mean() * (1 + 1e-4) + 1e-30


@pytest.mark.parametrize("elements", [1, 2, 3, 1000, 2**14, 2**14 + 1, 100_003])
def test_the_ordered_sum_is_a_sum_of_squares(elements: int) -> None:
    values: Float32Array = np.random.default_rng(elements).standard_normal(elements, np.float32)
    exactly = math.fsum(float(value) ** 2 for value in values)
    assert ordered_square_sum(values) == pytest.approx(exactly, rel=1e-14)


def test_the_ordered_sum_by_hand() -> None:
    # 5 squares 1 4 9 16 25: halves fold to (1 + 16, 4 + 25, 9), then (17 + 9, 29), then 55
    assert ordered_square_sum(np.float32([1, 2, 3, 4, 5])) == 55.0
    # 2**54 + 1 is not a float64: ((2**54 + 1) + 1) would be 2**54, the tree adds 1 + 1 first
    assert ordered_square_sum(np.float32([2**27, 1, 0, 1])) == 2.0**54 + 2
