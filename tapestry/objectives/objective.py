"""What an objective is: the part of training that knows what is trained.

The federation moves and combines vectors and does not care what they mean. An objective does: it
creates the model of genesis, builds it again from a published folder, makes batches of a corpus,
computes the loss, and measures the result. Objectives are found by name in the entry-point group
`tapestry.objectives`, so that one can be added from another distribution.

Shapes: B sequences in a micro-batch, T tokens in a sequence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tapestry.data.sources import CorpusSpec
from tapestry.data.usage import RoundUse
from tapestry.errors import ConfigError
from tapestry.objectives.reports import Evaluation

OnPreparing = Callable[[str, int, int], None]
"""Told what is done with a corpus, with bytes done and bytes of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Created:
    """A model for genesis, with the files that rebuild it."""

    module: torch.nn.Module
    files: dict[str, bytes]
    """Published file name -> content: configuration, tokenizer, and the like."""
    settings: dict[str, str | int | float | bool | None]
    """What it was created with; goes into the genesis manifest."""


class Batches(Protocol):
    """Batch number -> batch; stateless, so that a restart needs only the number."""

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return micro-batch `step`."""
        ...


Statistics = Mapping[str, tuple[float, ...]]
"""Small additive statistics by name, shared beside the vector."""


class Objective(Protocol):
    """The hooks of an objective; `CausalLM` is the one that comes with Tapestry."""

    name: str

    def create(self, settings: Mapping[str, Any], *, seed: int) -> Created:
        """Return the model of genesis; the same settings and seed give the same model."""
        ...

    def build(self, folder: Path) -> torch.nn.Module:
        """Return the model that the files of a published `folder` describe, without its weights."""
        ...

    def prepare(
        self,
        text: CorpusSpec | Sequence[Path],
        checkpoint: Path,
        *,
        cache: Path,
        sequence_tokens: int,
        held_out_fraction: float,
        held_out_bytes: int,
        on_progress: OnPreparing | None = None,
    ) -> Any:  # noqa: ANN401 - a corpus is whatever the objective's own methods take
        """Turn the institution's text into a corpus, once; later calls find it in `cache`."""
        ...

    def batches(
        self,
        own: Any,  # noqa: ANN401
        shared: Any | None,  # noqa: ANN401
        *,
        sequences: int,
        sequence_tokens: int,
        shared_fraction: float,
        seed: int,
    ) -> Batches:
        """Return the training batches of a corpus, a fraction of each from the shared one."""
        ...

    def used(
        self,
        corpus: Any,  # noqa: ANN401
        batches: Any,  # noqa: ANN401
        *,
        first_batch: int,
        batches_taken: int,
    ) -> RoundUse:
        """Return what of a corpus some of its batches held, source by source."""
        ...

    def loss(self, module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a micro-batch, a scalar in nats per token."""
        ...

    def begin_round(self, module: torch.nn.Module, statistics: Statistics) -> None:
        """Take up the federation's statistics of the round before."""
        ...

    def round_statistics(self, module: torch.nn.Module, batches: Batches) -> Statistics:
        """Return statistics of the node's own data that the federation may add up."""
        ...

    def monitors(self, module: torch.nn.Module) -> dict[str, float]:
        """Return figures worth watching on the node; they stay there."""
        ...

    def non_averageable(self, module: torch.nn.Module) -> frozenset[str]:
        """Return names of parameters and buffers that must not be averaged between nodes."""
        ...

    def evaluate(self, module: torch.nn.Module, corpus: Any) -> Evaluation:  # noqa: ANN401
        """Measure the model on the corpus's held-out part."""
        ...


def objective_named(name: str) -> Objective:
    """Return the objective called `name`.

    Raises:
        ConfigError: None is installed under that name.
    """
    found = {point.name: point for point in entry_points(group="tapestry.objectives")}
    if name not in found:
        raise ConfigError(
            f"unknown objective {name!r:.60}: installed are {', '.join(sorted(found))}"
        )
    objective: Objective = found[name].load()()
    return objective
