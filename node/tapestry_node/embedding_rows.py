"""What the rows of the embedding that moved tell of the text's vocabulary.

Shapes: P elements of the vector, V vocabulary, D width.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tapestry.params.codecs import Float32Array
from tapestry.params.layout import ParameterLayout

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_EXACT = 1e-6


def embedding_rows(
    module: Any,  # noqa: ANN401
    layout: ParameterLayout,
    base: Float32Array,
    delta: Float32Array,
    vocabulary: Bools,
) -> dict[str, Any] | None:
    """Return how well the rows that moved tell which tokens the text has; None if none are sent."""
    found = embedding_place(module, layout)
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
    apart = unlike_the_others(delta_VD)
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
    decay = decay_of(delta_VD, base_VD)[:, None]
    beyond: Floats = np.linalg.norm(delta_VD - decay * base_VD, axis=1)
    return beyond


def unlike_the_others(delta_VD: Floats) -> Floats:
    """Return how far each row moved from where most rows moved."""
    apart: Floats = np.linalg.norm(delta_VD - np.median(delta_VD, axis=0), axis=1)
    return apart


def decay_of(delta_VD: Floats, base_VD: Floats) -> Floats:
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


def embedding_place(
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
