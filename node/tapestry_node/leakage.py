"""What a contribution gives away, measured in the trainer's process on the institution's own text.

Four measurements, each one that somebody who receives contributions could make, or bounds one:
rows of the embedding, exposure of canaries, verbatim continuation, and the tokens of a small batch
from an update. What they mean, and what not, is said in words by `leakage_words`.

Shapes: P elements of the vector, V vocabulary, D width, B sequences, T tokens of a sequence.
"""

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from tapestry.checkpoints.statements import InnerSettings
from tapestry.data.tokenizer import load_tokenizer
from tapestry.objectives.training import InnerOptimizer
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.layout import ParameterLayout
from tapestry.params.modules import from_model, to_model

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_LOOKED_AT_TOKENS = 2**20
_SAMPLES, _PREFIX_TOKENS = 32, 50
_INVERTED_SEQUENCES, _INVERTED_TOKENS = 2, 16
_MOST_INVERTED_STEPS = 32
_EXACT = 1e-6
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
    trainer: Any,  # noqa: ANN401 - Trainer, which imports this room
    *,
    base: Float32Array,
    delta: Float32Array,
    inner: InnerSettings,
    canaries: dict[str, list[str]] | None,
    checkpoint: Path,
    consensus: Float32Array | None,
) -> dict[str, Any]:
    """Return the four figures.

    Args:
        trainer: With its model built and its corpus packed.
        base: What was trained from.
        delta: The pseudo-gradient that left, as whoever receives it decodes it.
        inner: What was trained.
        canaries: `planted` and `references`, if there are some.
        checkpoint: Whose tokenizer is used.
        consensus: The newest checkpoint, if it is one after the base.
    """
    module, layout, corpus = trainer.module, trainer.layout, trainer.corpus
    after = {} if consensus is None else {"consensus": consensus}
    vectors = {"base": base, "contribution": base - delta, **after}
    vocabulary = vocabulary_of(corpus.train, module.get_input_embeddings().num_embeddings)
    samples = stretches(corpus.train, end=corpus.end_of_text_id, count=_SAMPLES)
    figures: dict[str, Any] = {
        "embedding_rows": embedding_rows(module, layout, base, delta, vocabulary),
        "verbatim": {},
        "canaries": None,
    }
    tokenizer = load_tokenizer(checkpoint)
    if canaries is not None:
        figures["canaries"] = {"found_in_text": _present(corpus, tokenizer, canaries["planted"])}
    for name, vector in vectors.items():
        to_model(vector, module, layout)
        figures["verbatim"][name] = verbatim(module, samples)
        if canaries is not None:
            figures["canaries"][name] = exposure(
                module, tokenizer, canaries["planted"], canaries["references"]
            )
    figures["inversion"] = inversion(trainer, base, inner)
    to_model(base, module, layout)
    return figures


def vocabulary_of(tokens: Any, size: int) -> Bools:  # noqa: ANN401 - memory-mapped
    """Return which token ids the text has: [V]."""
    there = np.zeros(size, np.bool_)
    for start in range(0, len(tokens), _LOOKED_AT_TOKENS):
        there[np.unique(tokens[start : start + _LOOKED_AT_TOKENS])] = True
    return there


# Rows of the embedding


def embedding_rows(
    module: Any,  # noqa: ANN401
    layout: ParameterLayout,
    base: Float32Array,
    delta: Float32Array,
    vocabulary: Bools,
) -> dict[str, Any] | None:
    """Return how well the rows that moved tell which tokens the text has; None if none are sent."""
    found = _embedding(module, layout)
    if found is None:
        return None
    bounds, shape, is_tied = found
    base_VD, delta_VD = base[bounds].reshape(shape), delta[bounds].reshape(shape)
    return {"is_tied": is_tied, **told_apart(delta_VD, base_VD, vocabulary)}


def told_apart(delta_VD: Floats, base_VD: Floats, vocabulary: Bools) -> dict[str, Any]:
    """Return precision and recall of the better of two ways to pick the rows of the text's tokens.

    The first takes how far a row moved beyond a multiple of itself, which is all that weight decay
    can do. The second takes how far it moved from where most rows moved: with tied embeddings
    every row moves, those of absent tokens alike.
    """
    moved = _beyond_decay(delta_VD, base_VD)
    apart = np.linalg.norm(delta_VD - np.median(delta_VD, axis=0), axis=1)
    floor = _EXACT * max(float(np.linalg.norm(base_VD, axis=1).max()), 1e-30)
    is_exact = bool((moved <= floor).any())
    if is_exact:
        score = np.where(moved <= floor, 0.0, moved)
        way, bound = "rows that did not move at all", floor
    else:
        way, score = max(
            (("how far a row moved", moved), ("how unlike the others a row moved", apart)),
            key=lambda pair: abs(ranked(pair[1], vocabulary) - 0.5),
        )
        bound = _split(score)
    picked = score > bound
    quality = ranked(score, vocabulary)
    if quality < 0.5 and not is_exact:  # the rows of absent tokens stand out
        picked, quality = ~picked, 1 - quality
    hits = int((picked & vocabulary).sum())
    return {
        "rows": len(score),
        "vocabulary": int(vocabulary.sum()),
        "way": way,
        "picked": int(picked.sum()),
        "precision": hits / max(1, int(picked.sum())),
        "recall": hits / max(1, int(vocabulary.sum())),
        "chance": float(vocabulary.mean()),
        "ranking": quality,
        "picked_ids": np.flatnonzero(picked)[:50].tolist(),
    }


def _beyond_decay(delta_VD: Floats, base_VD: Floats) -> Floats:
    decay = _decay(delta_VD, base_VD)[:, None]
    beyond: Floats = np.linalg.norm(delta_VD - decay * base_VD, axis=1)
    return beyond


def _decay(delta_VD: Floats, base_VD: Floats) -> Floats:
    """Return by which multiple of itself each row moved; a row of padding is zero."""
    shares: Floats = (delta_VD * base_VD).sum(1) / np.maximum((base_VD * base_VD).sum(1), 1e-30)
    return shares


def ranked(score: Floats, is_positive: Bools) -> float:
    """Return how often a token of the text ranks above an absent one; 0.5 is chance."""
    positives = int(is_positive.sum())
    negatives = len(score) - positives
    if not positives or not negatives:
        return 0.5
    order = np.sort(score)
    low, high = np.searchsorted(order, score), np.searchsorted(order, score, "right")
    ranks = (low + high + 1) / 2
    wins = ranks[is_positive].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def _split(score: Floats) -> float:
    """Return the bound between two groups of scores that keeps each the most alike (Otsu)."""
    logs = np.sort(np.log(np.maximum(score, 1e-30)))
    counts = np.arange(1, len(logs))
    sums = np.cumsum(logs)
    left, right = sums[:-1] / counts, (sums[-1] - sums[:-1]) / (len(logs) - counts)
    best = int(np.argmax(counts * (len(logs) - counts) * (left - right) ** 2))
    return float(np.exp((logs[best] + logs[best + 1]) / 2))


def _embedding(
    module: Any,  # noqa: ANN401
    layout: ParameterLayout,
) -> tuple[slice, tuple[int, ...], bool] | None:
    """Return where the input embedding lies in the vector, and whether it is the output too."""
    weight = module.get_input_embeddings().weight
    output = module.get_output_embeddings()
    is_tied = output is not None and output.weight is weight
    names = {name for name, parameter in module.named_parameters() if parameter is weight}
    for spec in layout.tensors:
        if spec.name in names:
            return slice(spec.offset, spec.offset + spec.size), spec.shape, is_tied
    return None


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


def _present(corpus: Any, tokenizer: Any, planted: Sequence[str]) -> int | None:  # noqa: ANN401
    """Return how many canaries stand in the text that is trained on; None: cannot be told."""
    path = getattr(corpus.train, "filename", None)
    if path is None:
        return None
    found = 0
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        for canary in planted:
            ids = tokenizer.encode(canary, add_special_tokens=False).ids
            found += text.find(np.asarray(ids, corpus.train.dtype).tobytes()) >= 0
    return found


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


# The tokens of a batch from an update


def inversion(trainer: Any, base: Float32Array, inner: InnerSettings) -> dict[str, Any]:  # noqa: ANN401
    """Return which share of one batch's tokens an update shows, by the steps that it sums up."""
    tokens = min(_INVERTED_TOKENS, inner.sequence_tokens)
    rows = trainer.corpus.train
    rng = np.random.default_rng(1)
    most = min(inner.steps, _MOST_INVERTED_STEPS)
    batches = [_windows(rows, tokens, rng) for _ in range(most)]
    steps = sorted({1, 2, 4, 8, 16, most} & set(range(1, most + 1)))
    gradient = recovered(trainer, base, batches[:1], None)
    by_steps = {str(h): recovered(trainer, base, batches[:h], inner) for h in steps}
    wanted = len(np.unique(batches[0]))
    return {
        "sequences": _INVERTED_SEQUENCES,
        "sequence_tokens": tokens,
        "distinct_tokens": wanted,
        "chance": wanted / trainer.module.get_input_embeddings().num_embeddings,
        "one_gradient": gradient,
        "by_steps": by_steps,
        "steps_of_the_round": inner.steps,
    }


def _windows(tokens: Any, length: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:  # noqa: ANN401
    starts = rng.integers(0, max(1, len(tokens) - length), _INVERTED_SEQUENCES)
    return np.stack([np.asarray(tokens[s : s + length + 1]) for s in starts]).astype(np.int64)


def recovered(
    trainer: Any,  # noqa: ANN401
    base: Float32Array,
    batches: Sequence[npt.NDArray[np.int64]],
    inner: InnerSettings | None,
) -> float | None:
    """Return which share of the first batch's distinct tokens the update's rows show.

    As many rows are picked as there were tokens: those that moved least like the others.

    Args:
        trainer: Its model is changed.
        base: Where the update starts.
        batches: One for each step.
        inner: Steps are taken as these say; None: one plain step along the gradient.
    """
    module, layout = trainer.module, trainer.layout
    place = _embedding(module, layout)
    if place is None:
        return None
    bounds, shape, _is_tied = place
    to_model(base, module, layout)
    module.train()
    module.zero_grad(set_to_none=True)
    device = next(module.parameters()).device
    optimizer = None
    if inner is not None:
        optimizer = InnerOptimizer(module, inner.model_copy(update={"warmup_steps": 0}))
    for batch in batches:
        trainer.objective.loss(module, torch.from_numpy(batch).to(device)).backward()
        if optimizer is not None:
            optimizer.step()
    if optimizer is None:
        rows_VD = module.get_input_embeddings().weight.grad.detach().float().cpu().numpy()
        module.zero_grad(set_to_none=True)
    else:
        rows_VD = (base - from_model(module, layout))[bounds].reshape(shape)
        base_VD = base[bounds].reshape(shape)
        rows_VD = rows_VD - np.median(_decay(rows_VD, base_VD)) * base_VD
    apart = np.linalg.norm(rows_VD - np.median(rows_VD, axis=0), axis=1)
    wanted = np.unique(batches[0])
    picked = np.argsort(-apart)[: len(wanted)]
    return float(np.isin(picked, wanted).mean())
