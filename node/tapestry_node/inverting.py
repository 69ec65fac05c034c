"""How much of a small batch of the institution's text an update shows: an attempt to get it back.

One batch is drawn, and attacked through vectors that sum up more and more: its gradient, a step of
the round's optimizer upon it, more steps on further text, and the contribution that left. From each
the tokens are read off the rows of the embedding (`embedding_rows`), and the text is rebuilt by the
span check (`spans`). Of what is rebuilt only shares are told, no text.

Shapes: P elements of the vector, D width, V vocabulary, B sequences, T tokens of a sequence.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tapestry.checkpoints.statements import InnerSettings
from tapestry.objectives.training import InnerOptimizer
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.layout import ParameterLayout
from tapestry.params.modules import flat_float32, from_model, to_model
from tapestry_node.embedding_rows import decay_of, embedding_place, unlike_the_others
from tapestry_node.spans import Guess, Ids, Reader, guess, readers_of

Told = Callable[[str, int, int], None]
"""What is done, how far that is, of how much."""

_MOST_SEQUENCES, _MOST_TOKENS, _MOST_STEPS = 4, 16, 32
_WRITTEN = 64
"""Texts that the model writes by itself, to guess from."""


def inversion(
    trainer: Any,  # noqa: ANN401 - Trainer, which imports this room
    base: Float32Array,
    inner: InnerSettings,
    *,
    contribution: Float32Array,
    codec: str,
    seed: int,
    on_progress: Told = lambda _doing, _done, _of: None,
) -> dict[str, Any]:
    """Return what the attempts came to, vector by vector.

    Args:
        trainer: With its model built and its corpus packed; the model is changed.
        base: Parameters that all of it starts from: [P].
        inner: Of the round.
        contribution: The pseudo-gradient that left: [P].
        codec: Through which it went; the steps that are taken here go through it too.
        seed: Draws the batches and where the search starts.
        on_progress: Told how far the search is.
    """
    module, layout = trainer.module, trainer.layout
    embedding = module.get_input_embeddings()
    sequences, tokens = batch_size(embedding.embedding_dim, inner.sequence_tokens)
    rng, most = np.random.default_rng(seed), min(inner.steps, _MOST_STEPS)
    batches = [_windows(trainer.corpus.train, sequences, tokens, rng) for _ in range(most)]
    to_model(base, module, layout)
    readers = readers_of(module.eval(), layout)
    shown = partial(shown_by_rows, module, layout, base, np.unique(batches[0]))

    vector = gradient(trainer, base, batches[0])
    one_gradient, by_steps = shown(vector, is_gradient=True), {}
    matrices = {"one_gradient": [reader.rows(vector) for reader in readers]}
    for taken, vector in after_steps(trainer, base, batches, inner, codec):
        by_steps[str(taken)] = shown(vector)
        if taken in {1, most}:
            name = "one_step" if taken == 1 else "steps"
            matrices[name] = [reader.rows(vector) for reader in readers]
    matrices["contribution"] = [reader.rows(contribution) for reader in readers]
    rebuilt = None
    if len(readers) == 2:
        to_model(base, module, layout)
        attack = Attack(trainer, readers, batches[0][:, :-1], seed=seed)
        rebuilt = attack.on_all(matrices, on_progress)
    return {
        "seed": seed,
        "sequences": sequences,
        "sequence_tokens": tokens,
        "distinct_tokens": len(np.unique(batches[0])),
        "chance": len(np.unique(batches[0])) / embedding.num_embeddings,
        "one_gradient": one_gradient,
        "by_steps": by_steps,
        "small_steps": most,
        "steps_of_the_round": inner.steps,
        "rebuilt": rebuilt,
    }


def batch_size(width: int, sequence_tokens: int) -> tuple[int, int]:
    """Return sequences and tokens of a batch that the span check can take: half of the width."""
    tokens = max(2, min(_MOST_TOKENS, sequence_tokens, width // 2))
    return max(1, min(_MOST_SEQUENCES, width // 2 // tokens)), tokens


def _windows(tokens: Any, sequences: int, length: int, rng: np.random.Generator) -> Ids:  # noqa: ANN401
    """Return stretches of the text with the token after each: [B, T + 1]."""
    starts = rng.integers(0, max(1, len(tokens) - length), sequences)
    return np.stack([np.asarray(tokens[s : s + length + 1]) for s in starts]).astype(np.int64)


# Vectors that show less and less


def gradient(trainer: Any, base: Float32Array, batch: Ids) -> Float32Array:  # noqa: ANN401
    """Return the gradient of the loss of `batch` [B, T + 1] at `base`: [P]."""
    module, layout = trainer.module, trainer.layout
    to_model(base, module, layout)
    module.train()
    module.zero_grad(set_to_none=True)
    _loss(trainer, batch).backward()  # type: ignore[no-untyped-call]
    parameters, vector = dict(module.named_parameters()), np.zeros_like(base)
    for spec in layout.tensors:
        found = parameters[spec.name].grad
        if found is not None:
            vector[spec.offset : spec.offset + spec.size] = flat_float32(found)
    module.zero_grad(set_to_none=True)
    return vector


def after_steps(
    trainer: Any,  # noqa: ANN401
    base: Float32Array,
    batches: Sequence[Ids],
    inner: InnerSettings,
    codec: str,
) -> Iterator[tuple[int, Float32Array]]:
    """Yield how many steps were taken, and the pseudo-gradient [P] as who receives it decodes it.

    After 1, 2, 4, 8, 16 and all of the steps, each on a batch of its own.
    """
    module, layout = trainer.module, trainer.layout
    to_model(base, module, layout)
    module.train()
    optimizer = InnerOptimizer(module, inner.model_copy(update={"warmup_steps": 0}))
    for taken, batch in enumerate(batches, start=1):
        optimizer.backward(_loss(trainer, batch))
        optimizer.step()
        if taken in {1, 2, 4, 8, 16, len(batches)}:
            yield taken, passed(base - from_model(module, layout), layout, codec)


def _loss(trainer: Any, batch: Ids) -> torch.Tensor:  # noqa: ANN401
    device = next(trainer.module.parameters()).device
    loss: torch.Tensor = trainer.objective.loss(trainer.module, torch.from_numpy(batch).to(device))
    return loss


def passed(delta: Float32Array, layout: ParameterLayout, codec_name: str) -> Float32Array:
    """Return the pseudo-gradient [P] after it went through a codec."""
    codec = codec_named(codec_name)
    for index in range(layout.fragments):
        start, stop = layout.bounds(index)
        codec.decode_into(codec.encode(delta[start:stop]), delta[start:stop])
    return delta


# What they show


def shown_by_rows(
    module: Any,  # noqa: ANN401
    layout: ParameterLayout,
    base: Float32Array,
    wanted: Ids,
    vector: Float32Array,
    *,
    is_gradient: bool = False,
) -> float | None:
    """Return which share of the tokens `wanted` the embedding's rows in `vector` [P] name.

    As many rows are picked as there are tokens: those that moved least like the others. None: the
    vector has no embedding.
    """
    place = embedding_place(module, layout)
    if place is None:
        return None
    bounds, shape, _is_tied = place
    rows_VD = vector[bounds].reshape(shape)
    if not is_gradient:
        base_VD = base[bounds].reshape(shape)
        rows_VD = rows_VD - np.median(decay_of(rows_VD, base_VD)) * base_VD
    picked = np.argsort(-unlike_the_others(rows_VD))[: len(wanted)]
    return float(np.isin(picked, wanted).mean())


class Attack:
    """The span check, on one batch through several vectors, beside guessing without any."""

    def __init__(self, trainer: Any, readers: list[Reader], batch: Ids, *, seed: int) -> None:  # noqa: ANN401
        """Look for `batch` [B, T] with the model as it is: what the vectors start from."""
        self._module, self._corpus = trainer.module.eval(), trainer.corpus
        self._readers, self._batch, self._seed = readers, batch, seed

    def on_all(
        self, matrices: dict[str, list[torch.Tensor]], on_progress: Told
    ) -> dict[str, dict[str, float]]:
        """Return the figures by vector, and those of guessing."""
        sequences, tokens = self._batch.shape
        found = {"guessing": self._figures(self.guessed())}
        of = len(matrices) * tokens
        for number, (name, rows) in enumerate(matrices.items()):

            def tell(done: int, before: int = number * tokens) -> None:
                on_progress("looking for your text in vectors", before + done, of)

            made = guess(
                self._module,
                self._readers,
                rows,
                sequences=sequences,
                sequence_tokens=tokens,
                seed=self._seed,
                on_position=tell,
            )
            found[name] = self._figures(made)
        return found

    def _figures(self, made: Guess) -> dict[str, float]:
        wanted = np.unique(self._batch)
        same = self._batch[:, None] == made.sequences[None]
        return {
            "tokens": float(np.isin(made.tokens[: len(wanted)], wanted).mean()),
            "in_place": float(same.mean(2).max(1).mean()),
            "sequences": float(same.all(2).any(1).mean()),
            "standing": standing(self._corpus.train, made.sequences),
        }

    def guessed(self) -> Guess:
        """Return what somebody would say who has the model and no vector.

        Tokens by how often they are in texts that the model writes by itself after the end of a
        text; sequences: some of these texts.
        """
        sequences, tokens = self._batch.shape
        device = next(self._module.parameters()).device
        generator = torch.Generator().manual_seed(self._seed)
        ids = torch.full((_WRITTEN, 1), self._corpus.end_of_text_id, device=device)
        past, said = None, []
        with torch.inference_mode():
            for _ in range(tokens):
                out = self._module(input_ids=ids, past_key_values=past, use_cache=True)
                chances = out.logits[:, -1].float().softmax(-1).cpu()
                said.append(torch.multinomial(chances, 1, generator=generator))
                past, ids = out.past_key_values, said[-1].to(device)
        written = torch.cat(said, 1).numpy()
        often = np.bincount(
            written.ravel(), minlength=self._module.get_input_embeddings().num_embeddings
        )
        return Guess(tokens=np.argsort(-often, kind="stable"), sequences=written[:sequences])


def standing(tokens: Any, wanted: Iterable[Sequence[int]]) -> int:  # noqa: ANN401 - memory-mapped
    """Return how many of the sequences stand somewhere in the text that is trained on."""
    sought = [np.asarray(one, tokens.dtype).tobytes() for one in wanted]
    path = getattr(tokens, "filename", None)
    if path is None:
        return _count(tokens.tobytes(), sought, tokens.itemsize)
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        return _count(text, sought, tokens.itemsize)


def _count(text: bytes | mmap.mmap, sought: list[bytes], token_bytes: int) -> int:
    count = 0
    for one in sought:
        at = text.find(one)
        while at >= 0 and at % token_bytes:  # across two tokens
            at = text.find(one, at + 1)
        count += at >= 0
    return count
