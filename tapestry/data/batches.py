"""Training batches and evaluation windows out of packed tokens.

Shapes: S tokens of a stream, B sequences in a batch, T tokens predicted in a sequence.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from tapestry.data.corpus import Tokens

_OWN, _SHARED = 0, 1
_NAMES = {_OWN: "own", _SHARED: "shared"}
_DENOMINATOR = 10**6
"""Shared fractions are taken as the nearest fraction up to this: 0.29 is 29/100, and no float."""

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
        """Draw from `own` [S] and, for `shared_fraction` of the sequences, from `shared` [S].

        Raises:
            ValueError: The fraction is not one of 0 to 1, it has no shared stream to draw from,
                or a stream that is drawn from is shorter than a sequence.
        """
        if not 0 <= shared_fraction <= 1:
            raise ValueError(f"shared_fraction is {shared_fraction}, expected 0 to 1")
        if sequences < 1 or sequence_tokens < 1:
            raise ValueError(
                f"{sequences} sequences of {sequence_tokens} tokens: expected 1 or more"
            )
        self._streams = {_OWN: own}
        if shared_fraction > 0:
            if shared is None:
                raise ValueError(
                    f"shared_fraction is {shared_fraction}, but there is no shared stream"
                )
            self._streams[_SHARED] = shared
        self._counts = {n: (len(s) - 1) // sequence_tokens for n, s in self._streams.items()}
        for stream, count in self._counts.items():
            if count < 1:
                raise ValueError(
                    f"the {_NAMES[stream]} stream has {len(self._streams[stream]):,} tokens, "
                    f"a sequence needs {sequence_tokens + 1:,}"
                )
        self._sequences = sequences
        self._tokens = sequence_tokens
        self._shared_a_step = sequences * Fraction(shared_fraction).limit_denominator(_DENOMINATOR)
        self._seed = seed
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    @property
    def own_tokens_per_epoch(self) -> int:
        """How many tokens of the own stream are predicted before one comes again."""
        return self._counts[_OWN] * self._tokens

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return batch `step` (from 0): [B, T + 1]; inputs are [:, :-1], targets [:, 1:]."""
        if step < 0:
            raise ValueError(f"step is {step}, batches are numbered from 0")
        shared_before, shared_after = self._shared_until(step), self._shared_until(step + 1)
        own_before = step * self._sequences - shared_before
        own_after = (step + 1) * self._sequences - shared_after
        rows = [self._sequence(_OWN, n) for n in range(own_before, own_after)]
        rows += [self._sequence(_SHARED, n) for n in range(shared_before, shared_after)]
        return np.stack(rows).astype(np.int64)

    def _shared_until(self, step: int) -> int:
        """Return how many sequences of the first `step` batches are shared."""
        return math.floor(step * self._shared_a_step)

    def _sequence(self, stream: int, position: int) -> Tokens:
        epoch, place = divmod(position, self._counts[stream])
        start = int(self._order(stream, epoch)[place]) * self._tokens
        return self._streams[stream][start : start + self._tokens + 1]

    def _order(self, stream: int, epoch: int) -> npt.NDArray[np.int64]:
        kept = self._orders.get(stream)
        if kept is None or kept[0] != epoch:
            entropy = np.random.SeedSequence([self._seed, stream, epoch])
            order = np.random.Generator(np.random.PCG64(entropy)).permutation(self._counts[stream])
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
