"""Training batches and evaluation windows out of packed tokens.

Shapes: S tokens of a stream, B sequences in a batch, T tokens predicted in a sequence.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from tapestry.data.corpus import Tokens
from tapestry.data.mixing import Stream, schedule

_OWN, _SHARED = 0, 1
_DENOMINATOR = 10**6
"""Shared fractions are taken as the nearest fraction up to this: 0.29 is 29/100, and no float."""

NOT_SCORED = -100
"""Target that torch's cross-entropy leaves out."""


class TrainingBatches:
    """Batch number -> token ids; a fraction of every batch comes from the shared slice.

    Stateless: batch s is the same whenever and wherever it is asked for, so a restarted node
    needs only the number. Sequence i of a stream is tokens i*T to i*T + T; each epoch visits all
    in an order drawn from (seed, stream, epoch). Which stream of one's own a sequence is from
    follows from the streams' shares alone.
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
        streams: Sequence[Stream] = (),
    ) -> None:
        """Draw from `own` [S] and, for `shared_fraction` of the sequences, from `shared` [S].

        Args:
            own: The institution's tokens.
            shared: The open pool's.
            sequences: B.
            sequence_tokens: T.
            shared_fraction: Of the sequences.
            seed: Of the order.
            streams: Pieces of `own` with their shares; none: all of it is one.

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
        pieces = tuple(streams) or (Stream("own", 0, len(own), 1.0),)
        self._own = [_OWN, *range(_SHARED + 1, _SHARED + len(pieces))]
        """Numbers of one's own streams; the shared one has its number whoever else there is."""
        self._starts = dict(zip(self._own, (piece.start for piece in pieces), strict=True))
        self._streams = {
            number: own[piece.start : piece.start + piece.tokens]
            for number, piece in zip(self._own, pieces, strict=True)
        }
        names = dict(zip(self._own, (piece.name for piece in pieces), strict=True))
        names |= {_SHARED: "shared"} | ({_OWN: "own"} if len(pieces) == 1 else {})
        self._cycle = schedule([piece.share for piece in pieces])
        self._before = np.zeros((len(self._cycle) + 1, len(pieces)), np.int64)
        """How many sequences of each stream the first places of a cycle have."""
        self._before[1:] = np.cumsum(self._cycle[:, None] == np.arange(len(pieces)), axis=0)
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
                    f"the {names[stream]} stream has {len(self._streams[stream]):,} tokens, "
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
        return sum(self._counts[number] for number in self._own) * self._tokens

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return batch `step` (from 0): [B, T + 1]; inputs are [:, :-1], targets [:, 1:]."""
        if step < 0:
            raise ValueError(f"step is {step}, batches are numbered from 0")
        rows = [self._sequence(*self._place(n)) for n in self._own_of(step)]
        shared = range(self._shared_until(step), self._shared_until(step + 1))
        rows += [self._sequence(_SHARED, n) for n in shared]
        return np.stack(rows).astype(np.int64)

    def own_starts(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Return where in the own tokens the sequences of `count` batches from `first` begin."""
        starts = []
        for step in range(first, first + count):
            for number in self._own_of(step):
                stream, position = self._place(number)
                starts.append(self._starts[stream] + self._start(stream, position))
        return np.array(starts, np.int64)

    def _own_of(self, step: int) -> range:
        """Return the numbers of the own sequences in a batch, of all own ones ever drawn."""
        return range(
            step * self._sequences - self._shared_until(step),
            (step + 1) * self._sequences - self._shared_until(step + 1),
        )

    def _place(self, number: int) -> tuple[int, int]:
        """Return the stream of an own sequence, and its position there."""
        cycle, place = divmod(number, len(self._cycle))
        stream = int(self._cycle[place])
        position = cycle * int(self._before[-1, stream]) + int(self._before[place, stream])
        return self._own[stream], position

    def _shared_until(self, step: int) -> int:
        """Return how many sequences of the first `step` batches are shared."""
        return math.floor(step * self._shared_a_step)

    def _sequence(self, stream: int, position: int) -> Tokens:
        start = self._start(stream, position)
        return self._streams[stream][start : start + self._tokens + 1]

    def _start(self, stream: int, position: int) -> int:
        epoch, place = divmod(position, self._counts[stream])
        return int(self._order(stream, epoch)[place]) * self._tokens

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
