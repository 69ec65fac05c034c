"""Make a checkpoint once more from what its members sent, and compare every bit.

The round's rules were verified before (`tapestry.checkpoints.record`); here the vectors are. A
whole replay recomputes the norms, what a rule of distances decided, every element of the new vector
and the outer state. A sample does so for some fragments, which nobody could know when the
checkpoint was made: they are drawn from a head of the federation's ledger that came later.

Norms and distances are reductions, whose last digits differ between machines: they are compared
within 1e-4, and the recorded values are what the step is repeated with. Everything else is
elementwise in float32 and compared to the bit.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.pipeline import UpdatedFragment, decide, outer_step
from tapestry.checkpoints.archive import Archive, MissingError
from tapestry.checkpoints.deciding import (
    Counted,
    is_left_out,
    kept_vectors,
    outer_optimizer,
    shares,
)
from tapestry.checkpoints.manifest import Manifest, RoundRecord
from tapestry.checkpoints.outer_state import OuterStateFile
from tapestry.checkpoints.record import VerifiedRound
from tapestry.checkpoints.starting import RoundStart, Written
from tapestry.checkpoints.stepping import STEP_FILE
from tapestry.checkpoints.vector_file import MODEL_FILE, VectorFile, open_vector_file
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_content
from tapestry.errors import ConfigError, RejectedError, UnavailableError, UntrustedError
from tapestry.params.codecs import CODECS, Float32Array
from tapestry.params.deltas import squared_norm
from tapestry.params.downlink import DOWNLINK_CODECS, encode_step
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.storage.read_ahead import ReadAhead

TOLERANCE = 1e-4
"""Relative, for reductions over whole vectors."""
_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """A round that came out the same."""

    compared: int
    """Fragments that were made once more."""
    fragments: int
    """Of the vector."""
    contributions: int
    is_state_compared: bool
    """Whether the outer state after the round was compared too."""


def sampled(fragments: int, count: int, *, manifest: str, head: str) -> tuple[int, ...]:
    """Return which fragments are replayed: `count` different ones that nobody could choose.

    Number i is the first not yet drawn of SHA-256("tapestry replay v1" LF manifest LF head LF j),
    as a number, modulo `fragments`, for j = 0, 1, 2...

    Args:
        fragments: Of the vector.
        count: At most all of them.
        manifest: Hex digest of the checkpoint's manifest.
        head: Hex root hash of a head of the ledger that is newer than the checkpoint.
    """
    drawn: dict[int, None] = {}
    attempt = 0
    while len(drawn) < min(count, fragments):
        text = f"tapestry replay v1\n{manifest}\n{head}\n{attempt}"
        drawn[int.from_bytes(hashlib.sha256(text.encode()).digest()) % fragments] = None
        attempt += 1
    return tuple(sorted(drawn))


def replay(
    checkpoint: VerifiedCheckpoint,
    round_: VerifiedRound,
    archive: Archive,
    *,
    sample: Sequence[int] | None = None,
    on_fragment: Callable[[], None] = lambda: None,
) -> Replayed:
    """Make the round of `checkpoint` once more.

    Args:
        checkpoint: Verified.
        round_: Of it, verified.
        archive: What it was made from.
        sample: Fragments to look at, ascending; None: all.
        on_fragment: Called after each.

    Raises:
        MissingError: Something is not in the archive.
        UntrustedError: Something in it is not what was signed, or the checkpoint is not what comes
            of it; the message names the first such thing.
    """
    manifest, parent = checkpoint.manifest, checkpoint.lineage.parent
    made = manifest.made
    if made is None or parent is None:
        raise ConfigError("genesis was made by no round: there is nothing to replay")
    published = open_vector_file(checkpoint.folder / MODEL_FILE)
    vector = _parent_vector(archive, manifest, published)
    if made.reverted is not None:  # both vectors have the root that their manifests share
        count = published.layout.fragments
        return Replayed(compared=count, fragments=count, contributions=0, is_state_compared=True)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as threads:
        try:
            repeat = _Repeat(
                checkpoint=checkpoint,
                round_=round_,
                archive=archive,
                parent=parent,
                made=made,
                vector=vector,
                published=published,
                threads=threads,
            )
            return repeat.run(sample, on_fragment)
        except UnavailableError as error:  # what a coordinator would say of its own disk
            raise UntrustedError(str(error)) from error
        except RejectedError as error:
            raise UntrustedError(f"{archive.folder}: does not decode: {error}") from error


def _parent_vector(archive: Archive, manifest: Manifest, published: VectorFile) -> VectorFile:
    """Return the vector that the round started from, verified."""
    folder = archive.checkpoint(manifest.round - 1)
    if not folder.is_dir():
        raise MissingError(f"{folder}: the checkpoint before is not in the archive")
    if verify_content(folder).newest_digest != manifest.parent:
        raise UntrustedError(f"{folder}: is not the parent that the manifest names")
    return open_vector_file(folder / MODEL_FILE, published.layout)


class _Repeat:
    """One round, made once more."""

    def __init__(
        self,
        *,
        checkpoint: VerifiedCheckpoint,
        round_: VerifiedRound,
        archive: Archive,
        parent: Manifest,
        made: RoundRecord,
        vector: VectorFile,
        published: VectorFile,
        threads: Executor,
    ) -> None:
        self._number = checkpoint.manifest.round
        self._manifest = checkpoint.manifest
        self._folder = checkpoint.folder
        self._round = round_
        self._archive = archive
        self._parent = parent
        self._made = made
        self._published = published
        self._layout = vector.layout
        self._threads = threads
        self._rule = round_.policy.aggregation.aggregation_rule()
        self._parts = [part for part in made.participation if not is_left_out(part)]
        self._optimizer = outer_optimizer(
            round_.policy, round_.plan, parent, members=len(self._parts)
        )
        self._step_codec = DOWNLINK_CODECS.get(made.downlink)
        self._start = RoundStart(
            self._require_state_before(),
            parent,
            vector,
            self._optimizer,
            threads,
            written=Written(),
            with_held=self._step_codec is not None,
        )
        self._opened = [
            archive.open_contribution(self._number - part.staleness, part, self._layout)
            for part in self._parts
        ]
        self._squares: list[dict[int, float]] = [{} for _ in self._parts]

    def run(self, sample: Sequence[int] | None, on_fragment: Callable[[], None]) -> Replayed:
        """Compare the fragments of `sample`, or all of them and what depends on all."""
        is_whole = sample is None
        indices = range(self._layout.fragments) if sample is None else sample
        if is_whole:
            self._require_decisions()
        else:
            self._require_state_file(self._number - 1, self._made.outer.state_before)
        weighted = self._weighted(indices, measured=is_whole)
        steps = outer_step(
            self._start.exact,
            self._start.state if self._start.has_state else None,
            weighted,
            layout=self._layout,
            optimizer=self._optimizer,
            rule=self._rule,
            indices=indices,
        )
        state_digests, step_digest = [], hashlib.sha256()
        after = None if is_whole else self._state_after()
        for fragment in steps:
            step_digest.update(self._compare(fragment))
            state = self._kept(fragment)
            if is_whole:
                state_digests += [fragment_digest(_bytes(part)) for part in state]
            elif after is not None:
                self._compare_state(fragment.index, state, after)
            on_fragment()
        if is_whole:
            self._start.require_roots()
            self._require_whole(state_digests, step_digest.hexdigest())
        return Replayed(
            compared=len(indices),
            fragments=self._layout.fragments,
            contributions=len(self._parts),
            is_state_compared=is_whole or after is not None or not self._made.outer.state_root,
        )

    def _weighted(self, indices: Iterable[int], *, measured: bool) -> list[WeightedContribution]:
        """Return the contributions with what the manifest says of them, read ahead."""
        places = list(indices)
        position = {index: n for n, index in enumerate(places)}
        count = len(self._opened)

        def read(place: int) -> bytes:
            n, k = divmod(place, count)
            return self._read(k, places[n], measured=measured)

        ahead = ReadAhead(read, count=len(places) * count, threads=self._threads)

        def in_turn(k: int, index: int) -> bytes:
            """Read in the order in which the mean asks; RDA looks at all fragments before."""
            if index not in position:
                return self._read(k, index, measured=measured)
            return ahead(position[index] * count + k)

        return [
            WeightedContribution(
                member_id=part.member_id,
                weight=part.weight,
                clip_factor=part.clip_factor,
                codec=opened.codec,
                read_fragment=partial(in_turn, k),
                neighbours=part.neighbours,
            )
            for k, (part, opened) in enumerate(zip(self._parts, self._opened, strict=True))
        ]

    def _read(self, k: int, index: int, *, measured: bool) -> bytes:
        opened = self._opened[k]
        data = opened.read(index)
        if measured and index not in self._squares[k]:
            start, stop = self._layout.bounds(index)
            self._squares[k][index] = squared_norm(opened.codec.decode(data, stop - start))
        return data

    def _require_decisions(self) -> None:
        """Decide the weights of a rule of distances once more, and compare."""
        if not self._rule.needs_gram:
            return
        given = shares(self._round.policy, [Counted.of(part) for part in self._parts])
        undecided = [
            WeightedContribution(
                member_id=part.member_id,
                weight=given[part.member_id].weight,
                clip_factor=part.clip_factor,
                codec=part.codec,
                read_fragment=part.read_fragment,
            )
            for part in self._weighted(range(self._layout.fragments), measured=False)
        ]
        decided = decide(undecided, rule=self._rule, layout=self._layout)
        for part, again in zip(self._parts, decided, strict=True):
            if part.neighbours != again.neighbours or not _is_near(part.weight, again.weight):
                raise UntrustedError(
                    f"manifest: {part.member_id} has the weight {part.weight:g}, by the rule "
                    f"{self._rule.name} {again.weight:g}"
                )

    def _compare(self, fragment: UpdatedFragment) -> bytes:
        """Compare a fragment with the published one; return its step, if steps are published."""
        index, step, made = fragment.index, b"", fragment.base
        stored, data = self._published.read_stored(index)
        if self._step_codec is not None:
            found = encode_step(self._step_codec, self._start.held, fragment.base)
            step, made = found.data, found.held
        if self._published.dtype == "BF16":
            is_same = CODECS["bfloat16"].encode(made) == bytes(data)
        else:
            is_same = np.array_equal(made.view(np.uint32), stored.view(np.uint32))
        if not is_same:
            first = self._layout.bounds(index)[0]
            different = np.flatnonzero(made.view(np.uint32) != stored.view(np.uint32))
            element = first + int(different[0]) if len(different) else first
            raise UntrustedError(
                f"{self._published.path}: fragment {index} is not what comes of the contributions: "
                f"element {element:,} differs"
            )
        return step

    def _kept(self, fragment: UpdatedFragment) -> tuple[Float32Array, ...]:
        """Return the state vectors of a fragment as they are kept."""
        is_apart = self._made.downlink != "float32"
        return (*fragment.state, fragment.base) if is_apart else fragment.state

    def _require_whole(self, state_digests: list[bytes], step_digest: str) -> None:
        """Compare what depends on all fragments: state, step, norms."""
        root = fragments_root(state_digests).hex() if state_digests else None
        if root != self._made.outer.state_root:
            raise UntrustedError(
                "manifest: the outer state after the round is not what comes of the contributions"
            )
        if self._manifest.step is not None and step_digest != self._manifest.step.digest:
            raise UntrustedError(
                f"{self._folder / STEP_FILE}: is not the step from the parent to this checkpoint"
            )
        for part, squares in zip(self._parts, self._squares, strict=True):
            if len(squares) < self._layout.fragments:
                continue  # has no weight, and was not read
            norm = math.sqrt(math.fsum(squares.values()))
            if not _is_near(norm, part.norm):
                raise UntrustedError(
                    f"manifest: the contribution of {part.member_id} has the norm {norm:g}, not "
                    f"{part.norm:g}, and so another clip factor"
                )

    def _require_state_before(self) -> Path:
        path = self._archive.outer_state(self._number - 1)
        if kept_vectors(self._parent) > 0 and not path.is_file():
            raise MissingError(f"{path}: the outer state before the round is not in the archive")
        return path

    def _require_state_file(self, number: int, root: str | None) -> OuterStateFile | None:
        """Return the state after a round, compared as a whole with its signed root."""
        manifest = self._manifest if number == self._number else self._parent
        vectors = kept_vectors(manifest)
        if vectors == 0:
            return None
        state = OuterStateFile(self._archive.outer_state(number), self._layout, vectors)
        if state.root().hex() != root:
            raise UntrustedError(f"{state.path}: is not the outer state that the manifest signs")
        return state

    def _state_after(self) -> OuterStateFile | None:
        if not self._archive.outer_state(self._number).is_file():
            return None
        return self._require_state_file(self._number, self._made.outer.state_root)

    def _compare_state(
        self, index: int, made: tuple[Float32Array, ...], after: OuterStateFile
    ) -> None:
        kept = after.read_fragment(index)
        if any(_bytes(a) != _bytes(b) for a, b in zip(made, kept, strict=True)):
            raise UntrustedError(
                f"{after.path}: fragment {index} is not what comes of the contributions"
            )


def _bytes(values: Float32Array) -> memoryview:
    return np.ascontiguousarray(values, "<f4").data.cast("B")


def _is_near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-9)
