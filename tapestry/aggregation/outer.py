"""Outer optimizers: elementwise updates of a fragment by the aggregate.

Shapes: n elements of a fragment. Sign: the aggregate is gradient-like (base - local), so every
optimizer steps against it. All arithmetic is float32, elementwise, in the order written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tapestry.params.codecs import Float32Array

OptimizerName = Literal["sgd", "nesterov", "adam", "delayed-nesterov"]

_STATE_VECTORS: dict[OptimizerName, int] = {
    "sgd": 0,
    "nesterov": 1,
    "adam": 2,
    "delayed-nesterov": 2,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterOptimizer:
    """How the base moves against the aggregate.

    `sgd` is FedAvg (arXiv 1602.05629), `nesterov` DiLoCo (arXiv 2311.08105), `adam` FedAdam
    (arXiv 2003.00295, algorithm 2: without bias correction, its variance starts at epsilon**2).
    `delayed-nesterov` (arXiv 2401.09135) is for updates made of a few of the members each: their
    momentum, taken every time, would be that of the fastest. It is taken every `period` updates.
    """

    name: OptimizerName
    learning_rate: float
    momentum: float = 0.0
    """Of `nesterov`; of `adam` the share of the mean that stays (beta1)."""
    beta2: float = 0.99
    """Of `adam`: the share of the variance that stays."""
    epsilon: float = 1e-3
    """Of `adam`: elements well below it move as if there were no variance."""
    period: int = 1
    """Of `delayed-nesterov`: updates until all members have had their turn."""
    position: int = 1
    """Of `delayed-nesterov`: which of those updates this one is, from 1."""

    @property
    def state_vectors(self) -> int:
        """How many vectors are kept between rounds.

        None, momentum, mean and variance, or momentum and what it will take up.
        """
        return state_vectors(self.name)

    def initial_state(self, elements: int) -> tuple[Float32Array, ...]:
        """Return a fragment of the state before the first round."""
        zeros = tuple(np.zeros(elements, np.float32) for _ in range(self.state_vectors))
        if self.name == "adam":
            zeros[1].fill(np.float32(self.epsilon) * np.float32(self.epsilon))
        return zeros

    def step(
        self, base: Float32Array, aggregate: Float32Array, state: Sequence[Float32Array]
    ) -> None:
        """Update `base` and `state` in place.

        `sgd`: base -= lr * aggregate. `nesterov`: buffer = mu * buffer + aggregate, then
        base -= lr * (aggregate + mu * buffer), as torch.optim.SGD(nesterov=True) does. `adam`:
        mean = beta1 * mean + (1 - beta1) * aggregate, variance likewise of its square, then
        base -= lr * mean / (sqrt(variance) + epsilon). `delayed-nesterov`: part = aggregate /
        period, pending += part, and base -= lr * part; but with the last update of a period
        buffer = mu * buffer + pending, then base -= lr * (part + mu * buffer), pending = 0.

        Args:
            base: [n] float32, becomes the new consensus.
            aggregate: [n] float32, the combined pseudo-gradient; scratch space afterwards.
            state: `state_vectors` arrays [n] float32, first from `initial_state`.
        """
        if self.name == "nesterov":
            _nesterov(aggregate, *state, momentum=np.float32(self.momentum))
        elif self.name == "adam":
            self._adam(aggregate, *state)
        elif self.name == "delayed-nesterov":
            self._delayed_nesterov(aggregate, *state)
        np.multiply(aggregate, np.float32(self.learning_rate), out=aggregate)
        np.subtract(base, aggregate, out=base)

    def _delayed_nesterov(
        self, aggregate: Float32Array, buffer: Float32Array, pending: Float32Array
    ) -> None:
        """Put the direction of the step into `aggregate`."""
        np.divide(aggregate, np.float32(self.period), out=aggregate)
        np.add(pending, aggregate, out=pending)
        if self.position < self.period:
            return
        momentum = np.float32(self.momentum)
        np.multiply(buffer, momentum, out=buffer)
        np.add(buffer, pending, out=buffer)
        np.add(aggregate, buffer * momentum, out=aggregate)
        pending.fill(0)

    def _adam(self, aggregate: Float32Array, mean: Float32Array, variance: Float32Array) -> None:
        """Put the direction of the step into `aggregate`."""
        beta1, beta2 = np.float32(self.momentum), np.float32(self.beta2)
        scratch = np.multiply(aggregate, aggregate)
        np.multiply(scratch, np.float32(1) - beta2, out=scratch)
        np.multiply(variance, beta2, out=variance)
        np.add(variance, scratch, out=variance)
        np.multiply(aggregate, np.float32(1) - beta1, out=aggregate)
        np.multiply(mean, beta1, out=mean)
        np.add(mean, aggregate, out=mean)
        np.sqrt(variance, out=scratch)
        np.add(scratch, np.float32(self.epsilon), out=scratch)
        np.divide(mean, scratch, out=aggregate)


def _nesterov(aggregate: Float32Array, buffer: Float32Array, *, momentum: np.float32) -> None:
    """Put the direction of the step into `aggregate`."""
    np.multiply(buffer, momentum, out=buffer)
    np.add(buffer, aggregate, out=buffer)
    np.add(aggregate, buffer * momentum, out=aggregate)


def state_vectors(name: OptimizerName) -> int:
    """Return how many vectors the optimizer called `name` keeps between rounds."""
    return _STATE_VECTORS[name]


def default_learning_rate(name: OptimizerName, members: int) -> float:
    """Return the learning rate for a cohort of `members`.

    1 for `sgd`; for both kinds of Nesterov .4, .6 and .8 from 1, 2 and 8 members on, independent of
    the model's size (arXiv 2503.09799). For `adam` 1e-3, the default epsilon: elements well below
    epsilon then move as with `sgd`, and none moves further than about that.
    """
    if name == "sgd":
        return 1.0
    if name == "adam":
        return 1e-3
    return 0.4 if members < 2 else 0.6 if members < 8 else 0.8
