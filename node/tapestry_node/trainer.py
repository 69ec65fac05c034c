"""The node's training: from a base checkpoint to an encoded pseudo-gradient, and measuring.

Shapes: P parameters of the vector.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tapestry.checkpoints.statements import RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE, VectorFile, open_vector_file
from tapestry.data.sources import CorpusSpec
from tapestry.data.usage import RoundUse
from tapestry.errors import RejectedError
from tapestry.objectives.fitting import (
    SHARDED_ELEMENTS,
    checkpoint_activations,
    compile_blocks,
    shard,
)
from tapestry.objectives.objective import Objective, OnPreparing, objective_named
from tapestry.objectives.places import Place
from tapestry.objectives.ranks import ALONE, Group, Ranks
from tapestry.objectives.reports import Evaluation, StepReport
from tapestry.objectives.training import (
    InnerOptimizer,
    choose_device,
    choose_threads,
    train,
)
from tapestry.params.codecs import codec_named
from tapestry.params.deltas import pseudo_gradient
from tapestry.params.modules import FragmentReader, load_extras, to_model
from tapestry.params.subset import freeze_beside
from tapestry.params.tensor_file import take_part
from tapestry_node.governing import corpus_spec, is_remembered, tell_left_out
from tapestry_node.home import NodeHome
from tapestry_node.messages import Made
from tapestry_node.policy import NodeTable
from tapestry_node.residual import fragment_encoder
from tapestry_node.unfinished import DamagedError, Done, Unfinished

_log = logging.getLogger(__name__)

_POOL_HELD_OUT = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A round whose inner steps can be taken."""

    plan: RoundPlan
    optimizer: InnerOptimizer
    base: VectorFile
    batches: Any
    unfinished: Unfinished
    done: Done


class Trainer:
    """Model, corpus and inner optimizer of one node."""

    def __init__(
        self,
        home: NodeHome,
        settings: NodeTable,
        objective_name: str,
        first_checkpoint: Path,
        data: Sequence[Path],
        *,
        sequence_tokens: int,
        place: Place | None = None,
        join: Callable[[torch.device], Ranks] = lambda _device: ALONE,
        on_packing: OnPreparing | None = None,
    ) -> None:
        """Build the model and pack the corpus (the first time, this reads all of it).

        Args:
            home: Of the node.
            settings: How this machine trains.
            objective_name: What the federation trains.
            first_checkpoint: Any checkpoint of the federation's.
            data: The institution's text.
            sequence_tokens: As in the plans.
            place: Of this process, if several train together.
            join: Forms their group, once the corpus is packed.
            on_packing: Told how far the text is read and packed.

        Raises:
            ConfigError: The data cannot be used; the message names the file.
        """
        self.home = home
        self.objective: Objective = objective_named(objective_name)
        first = open_vector_file(first_checkpoint / MODEL_FILE)
        self.layout = first.layout
        self.model_elements = first.model_elements
        place = place or Place()
        processes = place.local_size
        choose_threads(self.model_elements, wanted=settings.threads, processes=processes)
        self._sequence_tokens = sequence_tokens
        self._settings = settings
        self._first_checkpoint = first_checkpoint
        self._data = list(data)
        self._on_packing = on_packing
        self._spec = corpus_spec(home, self._data)
        tell_left_out(self._spec)
        self.corpus: Any = self._prepare(self._spec, settings.held_out_fraction)
        self.use: RoundUse | None = None
        """What of the corpus the newest round was trained on."""
        self._device = choose_device(settings.device, rank=place.local_rank, processes=processes)
        self.ranks = join(self._device)
        self.module = self.objective.build(first_checkpoint).to(self._device)
        own = self.objective.non_averageable(self.module)
        freeze_beside(self.module, self.layout, first.extras, own=own)
        self.is_sharded = self._fit()
        self._pool: tuple[str, Any] | None = None

    def _fit(self) -> bool:
        """Fit the model to this machine; return whether every process keeps a part only."""
        if self._settings.gradient_checkpointing:
            checkpoint_activations(self.module)
        if self._settings.compile:
            compile_blocks(self.module)
        if not isinstance(self.ranks, Group):
            return False
        is_large = self.model_elements >= SHARDED_ELEMENTS
        if self._settings.sharding == "off" or (self._settings.sharding == "auto" and not is_large):
            return False
        shard(self.module, self.ranks)
        return True

    def refresh_corpus(self) -> None:
        """Take up that a source was forgotten, has expired, or is described otherwise."""
        spec = corpus_spec(self.home, self._data)
        if spec != self._spec:
            tell_left_out(spec)
            self.corpus = self._prepare(spec, self._settings.held_out_fraction)
            self._spec = spec

    def _prepare(self, text: CorpusSpec | Sequence[Path], held_out_fraction: float) -> Any:  # noqa: ANN401
        return self.objective.prepare(
            text,
            self._first_checkpoint,
            cache=self.home.corpus,
            sequence_tokens=self._sequence_tokens,
            held_out_fraction=held_out_fraction,
            held_out_bytes=self._settings.held_out_bytes,
            on_progress=self._on_packing,
        )

    def use_pool(self, path: Path, digest: str) -> None:
        """Pack the federation's open pool, once for each digest."""
        if self._pool is None or self._pool[0] != digest:
            self._pool = (digest, self._prepare([path], _POOL_HELD_OUT))

    def load(self, checkpoint: Path) -> VectorFile:
        """Put a checkpoint's parameters into the model; return its mapped vector."""
        opened = open_vector_file(checkpoint / MODEL_FILE, self.layout)
        to_model(opened.vector, self.module, self.layout)
        load_extras(self.module, opened.extras)
        return opened

    def evaluate(self, checkpoint: Path) -> Evaluation:
        """Measure a checkpoint on this node's held-out text."""
        self.load(checkpoint)
        return self.objective.evaluate(self.module, self.corpus)

    def train_round(
        self,
        plan: RoundPlan,
        checkpoint: Path,
        *,
        previous_state: Path | None,
        on_step: Callable[[StepReport], bool],
        rows: int = 0,
    ) -> tuple[InnerOptimizer, VectorFile, list[float]]:
        """Take the plan's inner steps from `checkpoint`.

        Args:
            plan: What to train.
            checkpoint: Folder of its base.
            previous_state: The inner optimizer's state after the round before, if there is one.
            on_step: Called after each step; False ends the training early.
            rows: As in `tapestry.objectives.training.train`.

        Returns:
            The inner optimizer after them, the base, and each step's loss; fewer losses than
            steps if `on_step` ended it.
        """
        begun = self.begin(plan, checkpoint, previous_state=previous_state)
        return begun.optimizer, begun.base, self.take_steps(begun, on_step=on_step, rows=rows)

    def begin(
        self, plan: RoundPlan, checkpoint: Path, *, previous_state: Path | None = None
    ) -> Begun:
        """Prepare the plan's inner steps, or what an earlier process left of them.

        Raises:
            RejectedError: The plan cannot be trained here.
        """
        self.refresh_corpus()
        base = self.load(checkpoint)
        self.objective.begin_round(self.module, plan.statistics)
        optimizer = InnerOptimizer(
            self.module, plan.inner, precision=self._settings.precision, ranks=self.ranks
        )
        batches = self.batches(plan)
        unfinished = Unfinished(
            self.home.unfinished,
            plan,
            str(getattr(self.corpus, "digest", "")),
            module=self.module,
            optimizer=optimizer,
            ranks=self.ranks,
            every_seconds=60 * self._settings.save_every_minutes,
            may_keep=partial(is_remembered, self.home, self._spec),
        )
        try:
            done = unfinished.restore()
        except DamagedError as error:
            _log.warning("%s", error)
            return self.begin(plan, checkpoint, previous_state=previous_state)
        if not done.losses and previous_state is not None and previous_state.is_file():
            optimizer.load(previous_state)
        return Begun(
            plan=plan,
            optimizer=optimizer,
            base=base,
            batches=batches,
            unfinished=unfinished,
            done=done,
        )

    def take_steps(
        self,
        begun: Begun,
        *,
        on_step: Callable[[StepReport], bool] | None = None,
        rows: int = 0,
    ) -> list[float]:
        """Take the inner steps of a round that was begun; return each step's loss."""
        inner, before = begun.plan.inner, begun.optimizer.steps_done - len(begun.done.losses)
        first = before * inner.accumulation
        losses = train(
            self.objective,
            self.module,
            begun.optimizer,
            begun.batches,
            first_batch=first,
            on_step=on_step,
            rows=rows,
            ranks=self.ranks,
            done=begun.done.losses,
            keeper=begun.unfinished,
        )
        self.use = self.objective.used(
            self.corpus,
            begun.batches,
            first_batch=first,
            batches_taken=len(losses) * inner.accumulation,
        )
        return losses

    def batches(self, plan: RoundPlan) -> Any:  # noqa: ANN401
        """Return the batches of a plan: own text, and its share of the open pool.

        Raises:
            RejectedError: There is too little text for the plan's sequences.
        """
        shared = self._pool[1] if plan.shared is not None and self._pool is not None else None
        try:
            return self.objective.batches(
                self.corpus,
                shared,
                sequences=plan.inner.sequences,
                sequence_tokens=plan.inner.sequence_tokens,
                shared_fraction=plan.shared.fraction if plan.shared and shared is not None else 0.0,
                seed=plan.seed,
            )
        except ValueError as error:
            raise RejectedError(f"the plan does not fit this node's text: {error}") from error

    def write(
        self,
        plan: RoundPlan,
        base: VectorFile,
        optimizer: InnerOptimizer,
        losses: Sequence[float],
        file: Path,
        *,
        on_fragment: Callable[[int], None] | None = None,
    ) -> Made:
        """Write the pseudo-gradient, encoded, fragment after fragment.

        Args:
            plan: That was trained.
            base: What it was trained from.
            optimizer: After the inner steps; its state is kept for the next round.
            losses: Of each step.
            file: Empty; in the folder of the spool, where the residual goes too.
            on_fragment: Called when a fragment is in the file.

        Raises:
            RejectedError: Training has diverged.
        """
        reader = FragmentReader(self.module, self.layout)
        unread = iter(range(self.layout.fragments))
        try:
            self._encode(plan, base, reader, unread, file=file, on_fragment=on_fragment)
        except Exception:
            if self.is_sharded:  # the other processes go on to the end
                self._help(reader, unread, optimizer)
            raise
        optimizer.save(self.home.trainer_state(plan.round))
        return Made(
            tokens=len(losses) * plan.inner.tokens // plan.inner.steps,
            steps=len(losses),
            documents=self.use.documents if self.use is not None else 0,
            use=self.use,
            loss_first=losses[0],
            loss_last=losses[-1],
            statistics=dict(self.objective.round_statistics(self.module, self.batches(plan))),
        )

    def _encode(
        self,
        plan: RoundPlan,
        base: VectorFile,
        reader: FragmentReader,
        unread: Iterator[int],
        *,
        file: Path,
        on_fragment: Callable[[int], None] | None,
    ) -> None:
        codec = codec_named(plan.codec)
        with (
            file.open("r+b", buffering=0) as out,
            fragment_encoder(
                codec, residual=self.home.residual, spool=file.parent, layout=self.layout
            ) as encode,
        ):
            for index in unread:
                start, stop = self.layout.bounds(index)
                local = reader.read(index)
                delta = pseudo_gradient(np.asarray(base.vector[start:stop], np.float32), local)
                out.write(encode(index, delta))
                if on_fragment is not None:
                    on_fragment(index)

    def help_write(self, plan: RoundPlan, optimizer: InnerOptimizer) -> None:
        """Give one's part of a sharded model to the process that writes."""
        reader = FragmentReader(self.module, self.layout)
        self._help(reader, iter(range(self.layout.fragments)), optimizer)
        self.objective.round_statistics(self.module, self.batches(plan))

    def _help(
        self, reader: FragmentReader, unread: Iterator[int], optimizer: InnerOptimizer
    ) -> None:
        for index in unread:
            reader.read(index)
        take_part(optimizer.tensors())
