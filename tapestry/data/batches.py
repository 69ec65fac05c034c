"""Training batches and evaluation windows out of packed tokens.

Shapes: S tokens of a stream, B sequences in a batch, T tokens predicted in a sequence.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tapestry.data.corpus import Tokens

_OWN, _SHARED = 0, 1
NOT_SCORED = -100
"""Target that torch's cross-entropy leaves out."""


class TrainingBatches:
    """Batch number -> token ids; a fraction of every batch comes from the shared slice.

    Stateless: batch s is the same whenever and wherever it is asked for, so a restarted node
    needs only the number. Sequence i of a stream is tokens i*T to i*T + T; each epoch visits all
    in an order drawn from (seed, stream, epoch).
    """

    def __init__(
        self,
        own: Tokens,
        shared: Tokens | None,
        *,
        sequences: int,
        sequence_tokens: int,
        shared_fraction: float,
        seed: int,
    ) -> None:
        """Draw from `own` [S] and, for `shared_fraction` of the sequences, from `shared` [S]."""
        if shared_fraction > 0 and shared is None:
            raise ValueError("a shared fraction needs a shared stream")
        self._streams = {_OWN: own, **({} if shared is None else {_SHARED: shared})}
        self._sequences = sequences
        self._tokens = sequence_tokens
        self._fraction = shared_fraction
        self._seed = seed
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return batch `step` (from 0): [B, T + 1]; inputs are [:, :-1], targets [:, 1:]."""
        shared_before, shared_after = self._shared_until(step), self._shared_until(step + 1)
        own_before = step * self._sequences - shared_before
        own_after = (step + 1) * self._sequences - shared_after
        rows = [self._sequence(_OWN, n) for n in range(own_before, own_after)]
        rows += [self._sequence(_SHARED, n) for n in range(shared_before, shared_after)]
        return np.stack(rows).astype(np.int64)

    def _shared_until(self, step: int) -> int:
        """Return how many sequences of the first `step` batches are shared."""
        return math.floor(step * self._fraction * self._sequences + 1e-9)

    def _sequence(self, stream: int, position: int) -> Tokens:
        tokens = self._streams[stream]
        count = (len(tokens) - 1) // self._tokens
        epoch, place = divmod(position, count)
        start = int(self._order(stream, count, epoch)[place]) * self._tokens
        return tokens[start : start + self._tokens + 1]

    def _order(self, stream: int, count: int, epoch: int) -> npt.NDArray[np.int64]:
        kept = self._orders.get(stream)
        if kept is None or kept[0] != epoch:
            entropy = np.random.SeedSequence([self._seed, stream, epoch])
            order = np.random.Generator(np.random.PCG64(entropy)).permutation(count)
            kept = self._orders[stream] = (epoch, order)
        return kept[1]


def evaluation_windows(
    stream: Tokens, *, sequence_tokens: int, end_of_text_id: int, batch: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield inputs and targets that predict every text token of `stream` exactly once.

    An end-of-text token is put before the stream; windows do not overlap; targets that are
    end-of-text or padding are `NOT_SCORED`, so the sum of the losses is that of the text alone.

    Yields:
        Inputs and targets, [at most `batch`, T] each.
    """
    windows = -(-len(stream) // sequence_tokens)
    for first in range(0, windows, batch):
        count = min(batch, windows - first)
        begin = first * sequence_tokens
        targets_S = stream[begin : begin + count * sequence_tokens].astype(np.int64)
        before = end_of_text_id if begin == 0 else int(stream[begin - 1])
        inputs = np.full(count * sequence_tokens, end_of_text_id, np.int64)
        targets = np.full(count * sequence_tokens, NOT_SCORED, np.int64)
        inputs[0] = before
        inputs[1 : len(targets_S)] = targets_S[:-1]
        targets[: len(targets_S)] = np.where(targets_S == end_of_text_id, NOT_SCORED, targets_S)
        shape = (count, sequence_tokens)
        yield inputs.reshape(shape), targets.reshape(shape)
