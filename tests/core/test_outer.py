"""Outer optimizers, by hand and against torch's."""

import numpy as np
import pytest
import torch

from tapestry.aggregation.outer import OuterOptimizer, default_learning_rate
from tapestry.params.codecs import Float32Array
from tapestry.params.deltas import pseudo_gradient


def vector(*values: float) -> Float32Array:
    return np.array(values, np.float32)


def test_sgd_with_a_rate_of_one_lands_on_the_local_model() -> None:
    base, local = vector(1.0, -2.0, 0.5), vector(0.25, -1.0, 4.0)
    OuterOptimizer(name="sgd", learning_rate=1.0).step(
        base, pseudo_gradient(base, local), np.zeros(3, np.float32)
    )
    np.testing.assert_array_equal(base, local)


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_the_base_moves_towards_the_local_model(name: str) -> None:
    base, local = vector(1.0, 1.0), vector(2.0, -3.0)
    before = np.abs(base - local)
    optimizer = OuterOptimizer(name=name, learning_rate=0.4, momentum=0.9)  # type: ignore[arg-type]
    optimizer.step(base, pseudo_gradient(base, local), np.zeros(2, np.float32))
    assert (np.abs(base - local) < before).all()


def test_sgd_by_hand() -> None:
    base, buffer = vector(1.0, 2.0), vector(7.0, 7.0)
    OuterOptimizer(name="sgd", learning_rate=0.5).step(base, vector(2.0, -4.0), buffer)
    np.testing.assert_array_equal(base, vector(0.0, 4.0))  # 1 - .5 * 2, 2 + .5 * 4
    np.testing.assert_array_equal(buffer, vector(7.0, 7.0))


def test_nesterov_by_hand_over_two_rounds() -> None:
    optimizer = OuterOptimizer(name="nesterov", learning_rate=0.5, momentum=0.5)
    base, buffer = vector(10.0), vector(0.0)
    optimizer.step(base, vector(4.0), buffer)
    # buffer 4; step 4 + .5 * 4 = 6; 10 - .5 * 6 = 7
    assert (buffer[0], base[0]) == (4.0, 7.0)
    optimizer.step(base, vector(2.0), buffer)
    # buffer .5 * 4 + 2 = 4; step 2 + .5 * 4 = 4; 7 - .5 * 4 = 5
    assert (buffer[0], base[0]) == (4.0, 5.0)


def test_nesterov_without_momentum_is_sgd() -> None:
    first, second = vector(1.0, 2.0), vector(1.0, 2.0)
    OuterOptimizer(name="nesterov", learning_rate=0.3, momentum=0.0).step(
        first, vector(0.1, 0.2), np.zeros(2, np.float32)
    )
    OuterOptimizer(name="sgd", learning_rate=0.3).step(
        second, vector(0.1, 0.2), np.zeros(2, np.float32)
    )
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
        optimizer.step(base, aggregate, buffer)
        torch.testing.assert_close(torch.from_numpy(base), parameter.data, rtol=1e-5, atol=1e-5)


def test_steady_pseudo_gradients_are_amplified_by_momentum() -> None:
    # the buffer of a constant 1 tends to 1 / (1 - .9) = 10, a step to lr * (1 + .9 * 10)
    optimizer = OuterOptimizer(name="nesterov", learning_rate=0.1, momentum=0.9)
    base, buffer = vector(0.0), vector(0.0)
    for _ in range(300):
        previous = base.copy()
        optimizer.step(base, vector(1.0), buffer)
    assert buffer[0] == pytest.approx(10.0, rel=1e-4)
    assert (previous - base)[0] == pytest.approx(1.0, rel=1e-3)


def test_only_nesterov_keeps_a_state() -> None:
    assert OuterOptimizer(name="nesterov", learning_rate=1.0, momentum=0.9).has_state
    assert not OuterOptimizer(name="sgd", learning_rate=1.0).has_state


def test_everything_stays_float32() -> None:
    base, aggregate, buffer = vector(1.0), vector(0.1), vector(0.0)
    OuterOptimizer(name="nesterov", learning_rate=0.7, momentum=0.9).step(base, aggregate, buffer)
    assert base.dtype == aggregate.dtype == buffer.dtype == np.float32


@pytest.mark.parametrize(
    ("members", "rate"), [(1, 0.4), (2, 0.6), (4, 0.6), (7, 0.6), (8, 0.8), (100, 0.8)]
)
def test_the_default_rate_of_nesterov_grows_with_the_cohort(members: int, rate: float) -> None:
    assert default_learning_rate("nesterov", members) == rate
    assert default_learning_rate("sgd", members) == 1.0
