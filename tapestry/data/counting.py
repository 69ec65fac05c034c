"""Counting what some batches hold of a corpus, source by source."""

import numpy as np

from tapestry.data.batches import TrainingBatches
from tapestry.data.corpus import Corpus
from tapestry.data.usage import RoundUse, SourceUse


def use_of(
    corpus: Corpus, batches: TrainingBatches, *, first_batch: int, batches_taken: int
) -> RoundUse:
    """Return what of `corpus` the given batches hold; what is from the open pool is not counted."""
    length = corpus.sequence_tokens
    begins = batches.own_starts(first_batch, batches_taken)
    ends = begins + length
    touched = _touched(corpus, begins, ends)
    categories = {source.name: source.category for source in corpus.spec.sources}
    tokens: dict[str, int] = {}
    documents: dict[str, int] = {}
    for part in corpus.parts:
        inside = np.minimum(ends, part.start + part.tokens) - np.maximum(begins, part.start)
        taken = int(np.maximum(inside, 0).sum())
        seen = touched[part.first_document : part.first_document + part.documents]
        tokens[part.source] = tokens.get(part.source, 0) + taken
        documents[part.source] = documents.get(part.source, 0) + int(seen.sum())
    return RoundUse(
        corpus=corpus.digest,
        sources=tuple(
            SourceUse(
                name=name,
                category=categories.get(name, ""),
                documents=documents[name],
                tokens=tokens[name],
            )
            for name in sorted(tokens)
            if tokens[name]
        ),
    )


def _touched(corpus: Corpus, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return for each training document whether a sequence has a token of it."""
    starts = corpus.document_starts
    changes = np.zeros(len(starts), np.int64)
    np.add.at(changes, np.searchsorted(starts, begins.astype(np.uint64), "right") - 1, 1)
    np.add.at(changes, np.searchsorted(starts, (ends - 1).astype(np.uint64), "right"), -1)
    return np.cumsum(changes)[: len(starts) - 1] > 0
