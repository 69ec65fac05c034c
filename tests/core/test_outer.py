"""Outer optimizers, by hand and against torch's."""

import numpy as np
import pytest
import torch

from tapestry.aggregation.outer import OptimizerName, OuterOptimizer, default_learning_rate
from tapestry.params.codecs import Float32Array
from tapestry.params.deltas import pseudo_gradient


def vector(*values: float) -> Float32Array:
    return np.array(values, np.float32)


def test_sgd_with_a_rate_of_one_lands_on_the_local_model() -> None:
    base, local = vector(1.0, -2.0, 0.5), vector(0.25, -1.0, 4.0)
    OuterOptimizer(name="sgd", learning_rate=1.0).step(base, pseudo_gradient(base, local), ())
    np.testing.assert_array_equal(base, local)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "delayed-nesterov"])
def test_the_base_moves_towards_the_local_model(name: OptimizerName) -> None:
    base, local = vector(1.0, 1.0), vector(2.0, -3.0)
    before = np.abs(base - local)
    optimizer = OuterOptimizer(name=name, learning_rate=0.4, momentum=0.9)
    optimizer.step(base, pseudo_gradient(base, local), optimizer.initial_state(2))
    assert (np.abs(base - local) < before).all()


def test_sgd_by_hand() -> None:
    base = vector(1.0, 2.0)
    OuterOptimizer(name="sgd", learning_rate=0.5).step(base, vector(2.0, -4.0), ())
    np.testing.assert_array_equal(base, vector(0.0, 4.0))  # 1 - .5 * 2, 2 + .5 * 4


def test_nesterov_by_hand_over_two_rounds() -> None:
    optimizer = OuterOptimizer(name="nesterov", learning_rate=0.5, momentum=0.5)
    base, buffer = vector(10.0), vector(0.0)
    optimizer.step(base, vector(4.0), [buffer])
    # buffer 4; step 4 + .5 * 4 = 6; 10 - .5 * 6 = 7
    assert (buffer[0], base[0]) == (4.0, 7.0)
    optimizer.step(base, vector(2.0), [buffer])
    # buffer .5 * 4 + 2 = 4; step 2 + .5 * 4 = 4; 7 - .5 * 4 = 5
    assert (buffer[0], base[0]) == (4.0, 5.0)


def test_nesterov_without_momentum_is_sgd() -> None:
    first, second = vector(1.0, 2.0), vector(1.0, 2.0)
    OuterOptimizer(name="nesterov", learning_rate=0.3, momentum=0.0).step(
        first, vector(0.1, 0.2), [np.zeros(2, np.float32)]
    )
    OuterOptimizer(name="sgd", learning_rate=0.3).step(second, vector(0.1, 0.2), ())
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("rate", "momentum"), [(0.8, 0.9), (0.4, 0.5), (1.0, 0.0)])
def test_nesterov_is_that_of_torch(rate: float, momentum: float) -> None:
    rng = np.random.default_rng(11)
    base = rng.standard_normal(500).astype(np.float32)
    buffer = np.zeros(500, np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(base.copy()))
    oracle = torch.optim.SGD(
        [parameter], lr=rate, momentum=momentum, nesterov=momentum > 0, dampening=0.0
    )
    optimizer = OuterOptimizer(name="nesterov", learning_rate=rate, momentum=momentum)
    for _ in range(10):
        aggregate = rng.standard_normal(500).astype(np.float32)
        parameter.grad = torch.from_numpy(aggregate.copy())
        oracle.step()
        optimizer.step(base, aggregate, [buffer])
        torch.testing.assert_close(torch.from_numpy(base), parameter.data, rtol=1e-5, atol=1e-5)


def test_steady_pseudo_gradients_are_amplified_by_momentum() -> None:
    # the buffer of a constant 1 tends to 1 / (1 - .9) = 10, a step to lr * (1 + .9 * 10)
    optimizer = OuterOptimizer(name="nesterov", learning_rate=0.1, momentum=0.9)
    base, buffer = vector(0.0), vector(0.0)
    for _ in range(300):
        previous = base.copy()
        optimizer.step(base, vector(1.0), [buffer])
    assert buffer[0] == pytest.approx(10.0, rel=1e-4)
    assert (previous - base)[0] == pytest.approx(1.0, rel=1e-3)


def test_the_state_is_nothing_or_momentum_or_mean_and_variance() -> None:
    shapes: dict[OptimizerName, int] = {"sgd": 0, "nesterov": 1, "adam": 2}
    for name, vectors in shapes.items():
        optimizer = OuterOptimizer(name=name, learning_rate=1.0)
        assert optimizer.state_vectors == vectors
        assert [v.shape for v in optimizer.initial_state(5)] == [(5,)] * vectors


def test_the_variance_of_adam_starts_at_epsilon_squared() -> None:
    optimizer = OuterOptimizer(name="adam", learning_rate=1.0, epsilon=0.5)
    mean, variance = optimizer.initial_state(2)
    assert (mean == 0).all()
    assert (variance == 0.25).all()


def test_adam_by_hand_over_two_rounds() -> None:
    optimizer = OuterOptimizer(
        name="adam", learning_rate=1.0, momentum=0.5, beta2=0.75, epsilon=1.0
    )
    base, state = vector(10.0), optimizer.initial_state(1)
    optimizer.step(base, vector(4.0), state)
    # mean .5 * 4 = 2; variance .75 * 1 + .25 * 16 = 4.75; 10 - 2 / (sqrt(4.75) + 1)
    assert state[0][0] == 2.0
    assert state[1][0] == 4.75
    first = 10 - 2 / (4.75**0.5 + 1)
    assert base[0] == pytest.approx(first, rel=1e-6)
    optimizer.step(base, vector(-2.0), state)
    # mean .5 * 2 - .5 * 2 = 0; variance .75 * 4.75 + .25 * 4
    assert state[0][0] == 0.0
    assert state[1][0] == 4.5625
    assert base[0] == pytest.approx(first, rel=1e-6)


def test_adam_is_that_of_torch_but_for_its_bias_correction() -> None:
    # torch divides mean and variance by 1 - beta**t; after 1500 rounds that is 1 to six digits
    rng = np.random.default_rng(5)
    base = rng.standard_normal(64).astype(np.float32)
    optimizer = OuterOptimizer(
        name="adam", learning_rate=0.01, momentum=0.9, beta2=0.99, epsilon=1e-3
    )
    state = optimizer.initial_state(64)
    parameter = torch.nn.Parameter(torch.from_numpy(base.copy()))
    oracle = torch.optim.Adam([parameter], lr=0.01, betas=(0.9, 0.99), eps=1e-3)
    for _ in range(1500):
        aggregate = rng.standard_normal(64).astype(np.float32)
        parameter.grad = torch.from_numpy(aggregate.copy())
        oracle.step()
        optimizer.step(base, aggregate, state)
    before, theirs = base.copy(), parameter.detach().clone()
    aggregate = rng.standard_normal(64).astype(np.float32)
    parameter.grad = torch.from_numpy(aggregate.copy())
    oracle.step()
    optimizer.step(base, aggregate, state)
    moved = torch.from_numpy(base - before)
    torch.testing.assert_close(moved, parameter.detach() - theirs, rtol=1e-3, atol=1e-6)


def test_no_step_of_adam_is_longer_than_the_rate_over_one_minus_beta() -> None:
    # |mean| <= |aggregate| and sqrt(variance) >= .1 |aggregate| with beta2 = .99
    optimizer = OuterOptimizer(name="adam", learning_rate=0.5, momentum=0.0)
    for size in (1e-30, 1e-3, 1.0, 1e6, 1e15):
        base, state = vector(0.0), optimizer.initial_state(1)
        optimizer.step(base, vector(size), state)
        assert abs(base[0]) <= 0.5 * 10 * (1 + 1e-6)
        assert np.isfinite([base[0], state[0][0], state[1][0]]).all()


def test_everything_stays_float32() -> None:
    names: tuple[OptimizerName, ...] = ("sgd", "nesterov", "adam")
    for name in names:
        optimizer = OuterOptimizer(name=name, learning_rate=0.7, momentum=0.9)
        base, aggregate, state = vector(1.0), vector(0.1), optimizer.initial_state(1)
        optimizer.step(base, aggregate, state)
        assert {array.dtype for array in (base, aggregate, *state)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("members", "rate"), [(1, 0.4), (2, 0.6), (4, 0.6), (7, 0.6), (8, 0.8), (100, 0.8)]
)
def test_the_default_rate_of_nesterov_grows_with_the_cohort(members: int, rate: float) -> None:
    assert default_learning_rate("nesterov", members) == rate
    assert default_learning_rate("sgd", members) == 1.0
    assert default_learning_rate("adam", members) == 1e-3


# Delayed Nesterov


def oracle(
    base: Float32Array, arrivals: list[Float32Array], *, rate: float, momentum: float, every: int
) -> list[np.ndarray]:
    """T11 as it is written down, in float64: a step an arrival, momentum after `every` of them."""
    theta, b, a, seen = base.astype(np.float64), np.zeros(base.size), np.zeros(base.size), []
    for count, g in enumerate(arrivals, 1):
        theta = theta - rate / every * g
        a = a + g / every
        if count % every == 0:
            b = momentum * b + a
            theta, a = theta - rate * momentum * b, np.zeros(base.size)
        seen.append(theta)
    return seen


def delayed(
    base: Float32Array, aggregates: list[Float32Array], *, every: int
) -> tuple[list[Float32Array], tuple[Float32Array, ...]]:
    seen, state = (
        [],
        OuterOptimizer(name="delayed-nesterov", learning_rate=0.7).initial_state(base.size),
    )
    for count, aggregate in enumerate(aggregates):
        OuterOptimizer(
            name="delayed-nesterov",
            learning_rate=0.7,
            momentum=0.9,
            period=every,
            position=count % every + 1,
        ).step(base, aggregate.copy(), state)
        seen.append(base.copy())
    return seen, state


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_delayed_nesterov_is_what_its_formulas_say(every: int) -> None:
    rng = np.random.default_rng(every)
    base = rng.standard_normal(400).astype(np.float32)
    arrivals = [rng.standard_normal(400).astype(np.float32) for _ in range(13)]
    expected = oracle(base, arrivals, rate=0.7, momentum=0.9, every=every)
    seen, _state = delayed(base, arrivals, every=every)
    for ours, theirs in zip(seen, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_delayed_nesterov_without_delay_is_nesterov_to_the_bit() -> None:
    rng = np.random.default_rng(5)
    first = rng.standard_normal(400).astype(np.float32)
    second, buffer = first.copy(), np.zeros(400, np.float32)
    aggregates = [rng.standard_normal(400).astype(np.float32) for _ in range(4)]
    _seen, state = delayed(first, aggregates, every=1)
    nesterov = OuterOptimizer(name="nesterov", learning_rate=0.7, momentum=0.9)
    for aggregate in aggregates:
        nesterov.step(second, aggregate.copy(), [buffer])
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state[0], buffer)
    assert not state[1].any()


def test_delayed_nesterov_by_hand() -> None:
    (first, second), (buffer, pending) = delayed(vector(10.0), [vector(4.0), vector(2.0)], every=2)
    assert first[0] == np.float32(10) - np.float32(0.7) * np.float32(2)  # 4 / 2, no momentum yet
    # pending 2 + 1 = 3 is the buffer; step 1 + .9 * 3 = 3.7; 8.6 - .7 * 3.7 = 6.01
    assert second[0] == pytest.approx(6.01, abs=1e-5)
    assert (buffer[0], pending[0]) == (3.0, 0.0)
