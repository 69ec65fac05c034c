"""Where tensors lie in the parameter vector."""

import hashlib
from itertools import pairwise

import pytest

from tapestry.errors import RejectedError
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout, TensorSpec

SMALL = ParameterLayout.from_shapes([("b", (4,)), ("a", (2, 3)), ("c", ())])


def test_tensors_lie_in_the_order_of_their_names_without_gaps() -> None:
    assert SMALL.tensors == (
        TensorSpec("a", (2, 3), 0),
        TensorSpec("b", (4,), 6),
        TensorSpec("c", (), 10),
    )
    assert SMALL.elements == 11  # 6 + 4 + 1


def test_the_order_of_the_shapes_given_does_not_matter() -> None:
    again = ParameterLayout.from_shapes([("c", ()), ("a", (2, 3)), ("b", (4,))])
    assert again == SMALL
    assert again.digest == SMALL.digest


def test_names_are_ordered_by_code_point() -> None:
    layout = ParameterLayout.from_shapes([("layers.2", (1,)), ("layers.10", (1,)), ("Z", (1,))])
    assert [spec.name for spec in layout.tensors] == ["Z", "layers.10", "layers.2"]


def test_the_digest_is_the_sha256_of_names_and_shapes() -> None:
    text = b'[["a",[2,3]],["b",[4]],["c",[]]]'
    assert SMALL.digest == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "other", [[("a", (3, 2)), ("b", (4,)), ("c", ())], [("a", (2, 3)), ("b", (4,)), ("d", ())]]
)
def test_another_name_or_shape_is_another_digest(other: list[tuple[str, tuple[int, ...]]]) -> None:
    assert ParameterLayout.from_shapes(other).digest != SMALL.digest


@pytest.mark.parametrize(
    ("elements", "fragments", "last"),
    [
        (1, 1, 1),
        (FRAGMENT_ELEMENTS, 1, FRAGMENT_ELEMENTS),
        (FRAGMENT_ELEMENTS + 1, 2, 1),
        (3 * FRAGMENT_ELEMENTS - 5, 3, FRAGMENT_ELEMENTS - 5),
    ],
)
def test_fragments_cover_the_vector_once(elements: int, fragments: int, last: int) -> None:
    layout = ParameterLayout.from_shapes([("w", (elements,))])
    assert layout.fragments == fragments
    bounds = [layout.bounds(index) for index in range(fragments)]
    assert bounds[0][0] == 0
    assert bounds[-1] == (elements - last, elements)
    assert all(a[1] == b[0] for a, b in pairwise(bounds))


@pytest.mark.parametrize("index", [-1, 2])
def test_a_fragment_that_does_not_exist_is_refused(index: int) -> None:
    layout = ParameterLayout.from_shapes([("w", (FRAGMENT_ELEMENTS + 1,))])
    with pytest.raises(RejectedError, match="fragments 0 to 1"):
        layout.bounds(index)


def test_a_layout_is_read_back_as_it_was_written() -> None:
    assert ParameterLayout.from_json(SMALL.to_json()) == SMALL


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "not a list"),
        ([], "not a list"),
        ({"a": [1]}, "not a list"),
        ([["a"]], "not a name and a shape"),
        ([[1, [1]]], "not a name and a shape"),
        ([["a", 3]], "no valid shape"),
        ([["a", [0]]], "no valid shape"),
        ([["a", [-1]]], "no valid shape"),
        ([["a", [True]]], "no valid shape"),
        ([["a", [1.0]]], "no valid shape"),
        ([["b", [1]], ["a", [1]]], "not sorted"),
        ([["a", [1]], ["a", [1]]], "not unique"),
    ],
)
def test_a_layout_from_outside_is_validated(value: object, complaint: str) -> None:
    with pytest.raises(RejectedError, match=complaint):
        ParameterLayout.from_json(value)


def test_a_vector_without_tensors_is_empty() -> None:
    empty = ParameterLayout.from_shapes([])
    assert (empty.elements, empty.fragments) == (0, 0)
