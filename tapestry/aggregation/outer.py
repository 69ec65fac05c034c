"""Outer optimizers: elementwise updates of a fragment by the aggregate.

Shapes: n elements of a fragment. Sign: the aggregate is gradient-like (base - local), so every
optimizer steps against it. All arithmetic is float32, elementwise, in the order written here.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tapestry.params.codecs import Float32Array


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterOptimizer:
    """`sgd` (FedAvg, arXiv 1602.05629) or `nesterov` (DiLoCo, arXiv 2311.08105)."""

    name: Literal["sgd", "nesterov"]
    learning_rate: float
    momentum: float = 0.0
    """Only `nesterov` has one."""

    @property
    def has_state(self) -> bool:
        """Whether a momentum vector is kept between rounds."""
        return self.name == "nesterov"

    def step(self, base: Float32Array, aggregate: Float32Array, buffer: Float32Array) -> None:
        """Update `base` and `buffer` in place.

        `sgd`: base -= lr * aggregate. `nesterov`: buffer = mu * buffer + aggregate, then
        base -= lr * (aggregate + mu * buffer), as torch.optim.SGD(nesterov=True) does.

        Args:
            base: [n] float32, becomes the new consensus.
            aggregate: [n] float32, the combined pseudo-gradient; scratch space afterwards.
            buffer: [n] float32 momentum, zero before the first round; unused by `sgd`.
        """
        if self.has_state:
            momentum = np.float32(self.momentum)
            np.multiply(buffer, momentum, out=buffer)
            np.add(buffer, aggregate, out=buffer)
            np.add(aggregate, buffer * momentum, out=aggregate)
        np.multiply(aggregate, np.float32(self.learning_rate), out=aggregate)
        np.subtract(base, aggregate, out=base)


def default_learning_rate(name: str, members: int) -> float:
    """Return the learning rate for a cohort of `members`.

    1 for `sgd`; for `nesterov` .4, .6 and .8 from 1, 2 and 8 members on, independent of the
    model's size (arXiv 2503.09799).
    """
    if name == "sgd":
        return 1.0
    return 0.4 if members < 2 else 0.6 if members < 8 else 0.8
