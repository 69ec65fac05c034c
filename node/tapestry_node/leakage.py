"""What a contribution gives away, measured in the trainer's process on the institution's own text.

Four measurements, each one that somebody who receives contributions could make, or bounds one:
rows of the embedding (`embedding_rows`), exposure of canaries, verbatim continuation, and an
attempt to get a small batch back from an update (`inverting`). What they mean, and what not, is
said in words by `leakage_words`.

Shapes: P elements of the vector, V vocabulary, B sequences, T tokens of a sequence.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from tapestry.checkpoints.statements import InnerSettings
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.data.tokenizer import load_tokenizer
from tapestry.objectives.reports import StepReport
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.floats import Vector
from tapestry.params.layout import ParameterLayout
from tapestry.params.modules import from_model, to_model
from tapestry_node.alone import train_alone
from tapestry_node.embedding_rows import Bools, Floats, embedding_rows
from tapestry_node.inverting import Told, inversion, standing

if TYPE_CHECKING:
    from tapestry_node.trainer import Trainer

_LOOKED_AT_TOKENS = 2**20
_SAMPLES, _PREFIX_TOKENS = 32, 50
_AT_ONCE, _NOT_SCORED = 64, -100


def decoded(file: Path, codec_name: str, layout: ParameterLayout) -> Float32Array:
    """Return the pseudo-gradient [P] that encoded fragments hold."""
    codec, delta = codec_named(codec_name), np.empty(layout.elements, np.float32)
    with file.open("rb") as fragments:
        for index in range(layout.fragments):
            start, stop = layout.bounds(index)
            data = fragments.read(codec.encoded_bytes(stop - start))
            codec.decode_into(data, delta[start:stop])
    return delta


def examine(
    trainer: "Trainer",
    base: Path,
    consensus: Path | None,
    fragments: Path | None,
    *,
    codec: str,
    inner: InnerSettings,
    canaries: dict[str, list[str]] | None,
    seed: int,
    on_progress: Told = lambda _doing, _done, _of: None,
) -> dict[str, Any]:
    """Return the four figures.

    Args:
        trainer: Its model is changed.
        base: Checkpoint that the contribution was trained from.
        consensus: That came of it, if it is there.
        fragments: The contribution's encoded vector; None: it is made again, with fresh moments.
        codec: Of the fragments.
        inner: What was trained.
        canaries: `planted` and `references`, if there are some.
        seed: Draws the batch that is attacked.
        on_progress: Told how far the longest of it is.
    """
    start = np.array(trainer.load(base).vector, np.float32)
    if fragments is None:

        def on_step(report: StepReport) -> bool:
            on_progress("making the contribution again", report.step, inner.steps)
            return True

        train_alone(trainer, inner, on_step=on_step)
        delta = start - from_model(trainer.module, trainer.layout)
    else:
        delta = decoded(fragments, codec, trainer.layout)
    vectors: dict[str, Vector] = {"base": start, "contribution": start - delta}
    if consensus is not None:
        vectors["consensus"] = open_vector_file(consensus / MODEL_FILE).vector
    figures = _of_the_model(trainer, vectors, delta, load_tokenizer(base), canaries)
    figures["inversion"] = inversion(
        trainer,
        start,
        inner,
        contribution=delta,
        codec=codec,
        seed=seed,
        on_progress=on_progress,
    )
    to_model(start, trainer.module, trainer.layout)
    return figures


def _of_the_model(
    trainer: Any,  # noqa: ANN401
    vectors: dict[str, Vector],
    delta: Float32Array,
    tokenizer: Any,  # noqa: ANN401
    canaries: dict[str, list[str]] | None,
) -> dict[str, Any]:
    """Return the figures of the embedding, and of what the model remembers at each vector [P]."""
    module, layout, corpus = trainer.module, trainer.layout, trainer.corpus
    vocabulary = vocabulary_of(corpus.train, module.get_input_embeddings().num_embeddings)
    samples = stretches(corpus.train, end=corpus.end_of_text_id, count=_SAMPLES)
    figures: dict[str, Any] = {
        "embedding_rows": embedding_rows(
            module, layout, np.asarray(vectors["base"], np.float32), delta, vocabulary
        ),
        "verbatim": {},
        "canaries": None,
    }
    if canaries is not None:
        figures["canaries"] = {"found_in_text": _present(corpus, tokenizer, canaries["planted"])}
    for name, vector in vectors.items():
        to_model(vector, module, layout)
        figures["verbatim"][name] = verbatim(module, samples)
        if canaries is not None:
            figures["canaries"][name] = exposure(
                module, tokenizer, canaries["planted"], canaries["references"]
            )
    return figures


def vocabulary_of(tokens: Any, size: int) -> Bools:  # noqa: ANN401 - memory-mapped
    """Return which token ids the text has: [V]."""
    there = np.zeros(size, np.bool_)
    for start in range(0, len(tokens), _LOOKED_AT_TOKENS):
        there[np.unique(tokens[start : start + _LOOKED_AT_TOKENS])] = True
    return there


# Canaries


def exposure(
    module: torch.nn.Module,
    tokenizer: Any,  # noqa: ANN401
    planted: Sequence[str],
    references: Sequence[str],
) -> dict[str, Any]:
    """Return by how many bits a canary is likelier than other text of its form.

    log2(references + 1) - log2(rank), the rank that of the canary's loss among the references.
    """
    others = np.sort(summed_losses(module, tokenizer, references))
    own = summed_losses(module, tokenizer, planted)
    ranks = np.searchsorted(others, own) + 1
    bits = np.log2(len(others) + 1) - np.log2(ranks)
    return {
        "mean": float(bits.mean()),
        "median": float(np.median(bits)),
        "largest": float(bits.max()),
        "most_measurable": math.log2(len(others) + 1),
        "first_of_all": int((ranks == 1).sum()),
    }


def summed_losses(
    module: torch.nn.Module,
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
) -> Floats:
    """Return the loss of each text in nats, its first token aside."""
    device = next(module.parameters()).device
    ids = [one.ids for one in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    module.eval()
    losses = []
    with torch.inference_mode():
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            longest = max(map(len, some))
            batch = torch.zeros((len(some), longest), dtype=torch.long)
            targets = torch.full((len(some), longest), _NOT_SCORED)
            for row, one in enumerate(some):
                batch[row, : len(one)] = targets[row, : len(one)] = torch.tensor(one)
            logits = module(input_ids=batch.to(device), use_cache=False).logits[:, :-1].float()
            each = cross_entropy(
                logits.transpose(1, 2),
                targets[:, 1:].to(device),
                ignore_index=_NOT_SCORED,
                reduction="none",
            )
            losses.append(each.sum(1).cpu().numpy())
    return np.concatenate(losses)


def _present(corpus: Any, tokenizer: Any, planted: Sequence[str]) -> int:  # noqa: ANN401
    """Return how many canaries stand in the text that is trained on."""
    encoded = tokenizer.encode_batch(list(planted), add_special_tokens=False)
    return standing(corpus.train, [one.ids for one in encoded])


# Verbatim continuation


def stretches(tokens: Any, *, end: int, count: int) -> npt.NDArray[np.int64]:  # noqa: ANN401
    """Return `count` stretches of documents [B, T], T even: 100 tokens, or less in short texts."""
    rng = np.random.default_rng(0)
    first = int(rng.integers(0, max(1, len(tokens) - _LOOKED_AT_TOKENS)))
    part = np.asarray(tokens[first : first + _LOOKED_AT_TOKENS]).astype(np.int64)
    ends = np.flatnonzero(part == end)
    begins = np.concatenate([[0], ends + 1])[: len(ends)] if len(ends) else np.array([0])
    stops = ends if len(ends) else np.array([len(part)])
    lengths = stops - begins
    length = max(4, min(2 * _PREFIX_TOKENS, int(np.median(lengths)))) // 2 * 2
    usable = np.flatnonzero(lengths >= length)
    chosen = rng.permutation(usable)[:count]
    rows = [
        part[s : s + length]
        for s in (int(begins[i] + rng.integers(0, lengths[i] - length + 1)) for i in chosen)
    ]
    return np.stack(rows) if rows else np.empty((0, length), np.int64)


def verbatim(module: Any, samples: npt.NDArray[np.int64]) -> dict[str, Any]:  # noqa: ANN401
    """Return how much of the second half of each stretch [B, T] follows greedily from the first."""
    count, length = samples.shape
    half = length // 2
    if not count:
        return {"samples": 0, "prefix_tokens": half, "whole": 0.0, "tokens": 0.0}
    device = next(module.parameters()).device
    module.eval()
    ids = torch.from_numpy(samples[:, :half]).to(device)
    past, said = None, []
    with torch.inference_mode():
        for _ in range(length - half):
            out = module(input_ids=ids, past_key_values=past, use_cache=True)
            past, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            said.append(ids)
    same = torch.cat(said, 1).cpu().numpy() == samples[:, half:]
    return {
        "samples": count,
        "prefix_tokens": half,
        "whole": float(same.all(1).mean()),
        "tokens": float(same.mean()),
    }
