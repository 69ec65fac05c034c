"""Inner steps on the node's own text alone, that are for no round of the federation."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tapestry.checkpoints.statements import InnerSettings
from tapestry.objectives.reports import StepReport
from tapestry.objectives.training import InnerOptimizer, train

if TYPE_CHECKING:
    from tapestry_node.trainer import Trainer


def train_alone(
    trainer: "Trainer",
    inner: InnerSettings,
    *,
    state: Path | None = None,
    on_step: Callable[[StepReport], bool] | None = None,
    rows: int = 0,
) -> tuple[InnerOptimizer, list[float]]:
    """Train on from the parameters that the trainer has loaded, without the open pool.

    Args:
        trainer: Whose module is changed.
        inner: How many steps, and how.
        state: The inner optimizer's state to go on with, if there is such a file.
        on_step: Called after each step; False ends the training early.
        rows: Sequences that are held in memory at once; 0: all of a micro-batch.

    Returns:
        The optimizer after the steps, and the loss of each.
    """
    trainer.module.zero_grad(set_to_none=True)  # an attempt that took too much memory leaves some
    optimizer = InnerOptimizer(trainer.module, inner)
    if state is not None and state.is_file():
        optimizer.load(state)
    batches = trainer.objective.batches(
        trainer.corpus,
        None,
        sequences=inner.sequences,
        sequence_tokens=inner.sequence_tokens,
        shared_fraction=0.0,
        seed=0,
    )
    losses = train(
        trainer.objective,
        trainer.module,
        optimizer,
        batches,
        first_batch=optimizer.steps_done * inner.accumulation,
        on_step=on_step,
        rows=rows,
    )
    return optimizer, losses
