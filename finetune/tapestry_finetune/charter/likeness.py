"""How alike short texts are: the share of three-letter pieces that two have in common.

Shapes: N texts, P different pieces of all.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tapestry_finetune.charter.folding import fold

_PIECE = 3


def likeness(texts: Sequence[str], others: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the Jaccard similarity of each text with each of the others [N, M], folded."""
    pieces = [_pieces(text) for text in [*texts, *others]]
    numbers = {piece: n for n, piece in enumerate(sorted(set().union(*pieces)))}
    has_NP = np.zeros((len(pieces), len(numbers)), np.float32)
    for row, mine in enumerate(pieces):
        has_NP[row, [numbers[piece] for piece in mine]] = 1
    sizes = has_NP.sum(axis=1)
    left, right = has_NP[: len(texts)], has_NP[len(texts) :]
    common = left @ right.T
    union = sizes[: len(texts), None] + sizes[None, len(texts) :] - common
    alike: npt.NDArray[np.float32] = common / np.maximum(union, 1)
    return alike


def _pieces(text: str) -> set[str]:
    padded = f" {fold(text).strip()} "
    return {padded[at : at + _PIECE] for at in range(max(1, len(padded) - _PIECE + 1))}
