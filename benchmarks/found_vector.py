"""Found a federation whose model is a bare vector of so many parameters.

python benchmarks/found_vector.py COORDINATOR_FOLDER PARAMETERS
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tapestry.objectives.objective import Created, objective_named
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.settings import CoordinatorSettings, InnerTable, NetworkSettings

_ROWS = 4096


class Vector:
    """An objective that is created and never trained."""

    name = "vector"

    def __init__(self, parameters: int) -> None:
        """Of so many parameters."""
        self._parameters = parameters

    def create(self, _settings: Mapping[str, Any], *, seed: int) -> Created:
        """Return matrices of random weights."""
        torch.manual_seed(seed)
        module = torch.nn.Module()
        left, number = self._parameters, 0
        while left > 0:
            rows = min(_ROWS, left)
            columns = min(_ROWS, left // rows)
            weight = torch.empty(rows, columns).normal_(std=0.02)
            module.register_parameter(f"w{number:06d}", torch.nn.Parameter(weight))
            left, number = left - rows * columns, number + 1
        config = json.dumps({"model_type": "vector"}).encode()
        return Created(module=module, files={"config.json": config}, settings={"size": "tiny"})

    def non_averageable(self, _module: torch.nn.Module) -> frozenset[str]:
        """Return nothing."""
        return frozenset()

    def __getattr__(self, name: str) -> object:
        """Take every other hook from the objective that comes with Tapestry."""
        return getattr(objective_named("causal-lm"), name)


def settings_for(inner: InnerTable) -> CoordinatorSettings:
    """Return settings; the caller completes them."""
    network = NetworkSettings(address="localhost:1", enrolment_address="localhost:2")
    return CoordinatorSettings(network=network, inner=inner)


if __name__ == "__main__":
    founding = Founding(
        federation="bench",
        objective=Vector(int(sys.argv[2])),
        create={},
        pool=[],
        seed=0,
    )
    found(Path(sys.argv[1]), founding, settings_for, now=time.time())  # noqa: TID251
