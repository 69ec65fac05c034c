"""One outer step over the whole vector."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.outer import OuterOptimizer
from tapestry.aggregation.pipeline import ReadState, in_memory, outer_step
from tapestry.errors import RejectedError
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout

SHORT = 1003
LAYOUT = ParameterLayout.from_shapes([("w", (FRAGMENT_ELEMENTS + SHORT,))])
SMALL = ParameterLayout.from_shapes([("w", (SHORT,))])
NESTEROV = OuterOptimizer(name="nesterov", learning_rate=0.6, momentum=0.9)
SGD = OuterOptimizer(name="sgd", learning_rate=1.0)


@dataclass(frozen=True)
class Stepped:
    base: Float32Array
    state: list[Float32Array]

    @property
    def buffer(self) -> Float32Array:
        return self.state[0]


def noise(layout: ParameterLayout, *, seed: int, scale: float = 1.0) -> Float32Array:
    values = np.random.default_rng(seed).standard_normal(layout.elements, np.float32)
    return values * np.float32(scale)


def contribution(
    member_id: str,
    delta: Float32Array,
    layout: ParameterLayout,
    *,
    codec: str = "float32",
    weight: float = 1.0,
    clip_factor: float = 1.0,
) -> WeightedContribution:
    chosen = codec_named(codec)
    encoded = [
        chosen.encode(delta[slice(*layout.bounds(index))]) for index in range(layout.fragments)
    ]
    return WeightedContribution(
        member_id=member_id,
        weight=weight,
        clip_factor=clip_factor,
        codec=chosen,
        read_fragment=encoded.__getitem__,
    )


def stepped(
    base: Float32Array,
    buffer: Float32Array | None,
    contributions: Sequence[WeightedContribution],
    *,
    layout: ParameterLayout,
    optimizer: OuterOptimizer,
) -> Stepped:
    updates = list(
        outer_step(
            in_memory(base, layout),
            None if buffer is None else one_vector(buffer, layout),
            contributions,
            layout=layout,
            optimizer=optimizer,
        )
    )
    assert [update.index for update in updates] == list(range(layout.fragments))
    return Stepped(
        np.concatenate([update.base for update in updates]),
        [
            np.concatenate([update.state[v] for update in updates])
            for v in range(optimizer.state_vectors)
        ],
    )


def one_vector(buffer: Float32Array, layout: ParameterLayout) -> ReadState:
    read = in_memory(buffer, layout)
    return lambda index: (read(index),)


def test_a_round_by_hand() -> None:
    layout = ParameterLayout.from_shapes([("w", (2,))])
    parts = [
        contribution("a", np.float32([1.0, 0.0]), layout, weight=0.25),
        contribution("b", np.float32([2.0, 8.0]), layout, weight=0.75, clip_factor=0.5),
    ]
    after = stepped(np.float32([10.0, 10.0]), None, parts, layout=layout, optimizer=SGD)
    # a gives .25 and 0, b gives .75 * .5 of 2 and of 8: 10 - 1 and 10 - 3
    np.testing.assert_array_equal(after.base, np.float32([9.0, 7.0]))
    assert after.state == []


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8", "int4", "topk"])
def test_two_rounds_agree_with_float64(codec: str) -> None:
    base = noise(LAYOUT, seed=0)
    buffer: Float32Array | None = None
    exact_base, exact_buffer = base.astype(np.float64), np.zeros(LAYOUT.elements)
    chosen, shares = codec_named(codec), {"a": (0.5, 1.0), "b": (0.3, 0.7), "c": (0.2, 1.0)}
    for round_number in (1, 2):
        parts, total = [], np.zeros(LAYOUT.elements)
        for member, (weight, factor) in shares.items():
            delta = noise(LAYOUT, seed=100 * round_number + ord(member), scale=0.01)
            part = contribution(
                member, delta, LAYOUT, codec=codec, weight=weight, clip_factor=factor
            )
            parts.append(part)
            for index in range(LAYOUT.fragments):
                start, stop = LAYOUT.bounds(index)
                decoded = chosen.decode(part.read_fragment(index), stop - start)
                total[start:stop] += weight * factor * decoded.astype(np.float64)
        exact_buffer = 0.9 * exact_buffer + total
        exact_base -= 0.6 * (total + 0.9 * exact_buffer)
        after = stepped(base, buffer, parts, layout=LAYOUT, optimizer=NESTEROV)
        base, buffer = after.base, after.buffer
    np.testing.assert_allclose(base, exact_base, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(buffer, exact_buffer, rtol=1e-5, atol=1e-7)


def test_the_order_of_contributions_does_not_change_a_bit() -> None:
    base, buffer = noise(SMALL, seed=1), noise(SMALL, seed=2)
    parts = [
        contribution(name, noise(SMALL, seed=seed), SMALL, codec="int8", weight=weight)
        for name, seed, weight in [("c", 3, 0.15), ("a", 4, 0.6), ("d", 5, 0.05), ("b", 6, 0.2)]
    ]
    expected = stepped(base, buffer, parts, layout=SMALL, optimizer=NESTEROV)
    for order in itertools.permutations(parts):
        after = stepped(base, buffer, order, layout=SMALL, optimizer=NESTEROV)
        assert after.base.tobytes() == expected.base.tobytes()
        assert after.buffer.tobytes() == expected.buffer.tobytes()


def test_the_order_of_members_is_that_of_their_ids() -> None:
    # in float32, 1 - 1 + 2**-30 is 2**-30, and 2**-30 + 1 - 1 is 0
    layout = ParameterLayout.from_shapes([("w", (1,))])
    parts = [
        contribution("c", np.float32([2.0**-30]), layout),
        contribution("a", np.float32([1.0]), layout),
        contribution("b", np.float32([-1.0]), layout),
    ]
    zero = np.zeros(1, np.float32)
    assert stepped(zero, None, parts, layout=layout, optimizer=SGD).base[0] == -(2.0**-30)
    renamed = [replace(parts[0], member_id="0"), *parts[1:]]
    assert stepped(zero, None, renamed, layout=layout, optimizer=SGD).base[0] == 0.0


def test_the_last_fragment_is_as_short_as_the_vector_needs() -> None:
    part = contribution("a", noise(LAYOUT, seed=1), LAYOUT, codec="int8")
    base = noise(LAYOUT, seed=2)
    updates = list(
        outer_step(in_memory(base, LAYOUT), None, [part], layout=LAYOUT, optimizer=NESTEROV)
    )
    assert [update.base.size for update in updates] == [FRAGMENT_ELEMENTS, SHORT]
    assert [update.state[0].size for update in updates] == [FRAGMENT_ELEMENTS, SHORT]


def test_a_fragment_depends_on_nothing_outside_it() -> None:
    delta, base = noise(LAYOUT, seed=3), noise(LAYOUT, seed=4)
    whole = stepped(
        base, None, [contribution("a", delta, LAYOUT)], layout=LAYOUT, optimizer=NESTEROV
    )
    part = contribution("a", delta[FRAGMENT_ELEMENTS:], SMALL)
    alone = stepped(base[FRAGMENT_ELEMENTS:], None, [part], layout=SMALL, optimizer=NESTEROV)
    assert whole.base[FRAGMENT_ELEMENTS:].tobytes() == alone.base.tobytes()


def test_base_state_and_recorded_bytes_are_not_changed() -> None:
    base, buffer, delta = (noise(SMALL, seed=seed) for seed in (1, 2, 3))
    part = contribution("a", delta, SMALL)
    kept = [base.copy(), buffer.copy(), bytes(part.read_fragment(0))]
    stepped(base, buffer, [part], layout=SMALL, optimizer=NESTEROV)
    np.testing.assert_array_equal(base, kept[0])
    np.testing.assert_array_equal(buffer, kept[1])
    assert part.read_fragment(0) == kept[2]


def test_a_read_only_base_is_enough() -> None:
    base = noise(SMALL, seed=1)
    base.flags.writeable = False
    stepped(base, base, [contribution("a", base, SMALL)], layout=SMALL, optimizer=NESTEROV)


def test_a_recorded_fragment_that_does_not_decode_stops_the_step() -> None:
    part = replace(contribution("a", noise(SMALL, seed=1), SMALL), read_fragment=lambda _: b"short")
    with pytest.raises(RejectedError, match="has 4,012 bytes, got 5"):
        stepped(noise(SMALL, seed=2), None, [part], layout=SMALL, optimizer=SGD)
