"""From a closed round's recorded contributions to the new vector and the outer state.

Holds a few fragments of every contribution at most, whatever the size of the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.outer import OuterOptimizer
from tapestry.aggregation.pipeline import UpdatedFragment, decide, outer_step
from tapestry.aggregation.weights import clip_factors, default_cap, token_weights
from tapestry.checkpoints.manifest import (
    Manifest,
    OuterRecord,
    Participation,
    RoundRecord,
    RuleRecord,
)
from tapestry.checkpoints.outer_state import OuterStateFile, OuterStateWriter
from tapestry.checkpoints.statements import Contribution, RoundPlan, payload_digest
from tapestry.checkpoints.vector_file import (
    MODEL_FILE,
    VectorFile,
    VectorWriter,
    WrittenVector,
    open_vector_file,
)
from tapestry.errors import UnavailableError
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.storage.atomic import replacing
from tapestry.storage.read_ahead import ReadAhead
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import StoredContribution
from tapestry_coordinator.settings import AggregationSettings
from tapestry_coordinator.uploads import FragmentStore

_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregatedRound:
    """The new vector, as it was written, and how it came about."""

    written: WrittenVector
    made: RoundRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregator:
    """Decides weights, takes the outer step, writes vector and state."""

    home: CoordinatorHome
    store: FragmentStore
    settings: AggregationSettings

    def aggregate(
        self,
        plan: RoundPlan,
        stored: Sequence[StoredContribution],
        *,
        plan_digest: str,
        base: Manifest,
        folder: Path,
    ) -> AggregatedRound:
        """Write `model.safetensors` into `folder`, and the outer state into the home.

        Args:
            plan: Of the closed round.
            stored: Its contributions, at least one.
            plan_digest: Of the signed plan.
            base: Manifest of the checkpoint that the round started from.
            folder: Of the checkpoint that is being built.

        Raises:
            ConfigError: The aggregation rule cannot hold with so few contributions.
            UnavailableError: A recorded contribution or the outer state is damaged on this disk.
        """
        with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as threads:
            return self._aggregate(
                plan, stored, threads, plan_digest=plan_digest, base=base, folder=folder
            )

    def _aggregate(
        self,
        plan: RoundPlan,
        stored: Sequence[StoredContribution],
        threads: Executor,
        *,
        plan_digest: str,
        base: Manifest,
        folder: Path,
    ) -> AggregatedRound:
        path = self.home.checkpoint(plan.round - 1) / MODEL_FILE
        vector = open_vector_file(path)
        count = vector.layout.fragments
        declared = [
            Contribution.parsed(one.envelope.payload, what=f"contribution of {one.member_id}")
            for one in stored
        ]
        rule = self.settings.aggregation_rule()
        weighted = decide(
            self._contributions(plan, stored, declared, count, threads),
            rule=rule,
            layout=vector.layout,
        )
        optimizer = self.settings.outer_optimizer(len(weighted))
        before = self._state_before(plan.round, optimizer, base, vector)
        base_parts = _Rooted(lambda index: (vector.read_fragment(index),), base.vector_root, path)
        state_parts = None
        if before is not None and base.made is not None:
            state_root = base.made.outer.state_root or ""
            state_parts = _Rooted(before.read_fragment, state_root, before.path)
        base_ahead = ReadAhead(base_parts, count=count, threads=threads)
        steps = outer_step(
            lambda index: base_ahead(index)[0],
            None if state_parts is None else ReadAhead(state_parts, count=count, threads=threads),
            weighted,
            layout=vector.layout,
            optimizer=optimizer,
            rule=rule,
        )
        written, state_root_after = self._write(plan.round, steps, vector, folder)
        for parts in (base_parts, state_parts):
            if parts is not None:
                parts.require_root()
        one_vote = rule.is_one_vote_each
        return AggregatedRound(
            written=written,
            made=RoundRecord(
                plan=plan_digest,
                inner=plan.inner,
                codec=plan.codec,
                quorum=plan.quorum,
                rule=_rule_record(self.settings),
                gamma=0.0 if one_vote else self.settings.gamma,
                influence_cap=1.0 if one_vote else self._cap(len(weighted)),
                clip=self.settings.clip,
                participation=_participation(weighted, stored, declared),
                outer=_outer_record(optimizer, state_root_after),
            ),
        )

    def _cap(self, members: int) -> float:
        return self.settings.influence_cap or default_cap(members)

    def _contributions(
        self,
        plan: RoundPlan,
        stored: Sequence[StoredContribution],
        declared: Sequence[Contribution],
        count: int,
        threads: Executor,
    ) -> list[WeightedContribution]:
        """Return the contributions with token weights and clip factors."""
        tokens = {c.member_id: c.tokens for c in declared}
        weights = token_weights(tokens, gamma=self.settings.gamma, cap=self._cap(len(tokens)))
        factors = clip_factors({c.member_id: c.norm for c in stored}, clip=self.settings.clip)
        codec = codec_named(plan.codec)
        return [
            WeightedContribution(
                member_id=member_id,
                weight=weights[member_id],
                clip_factor=factors[member_id],
                codec=codec,
                read_fragment=ReadAhead(
                    partial(self.store.read, plan.round, member_id), count=count, threads=threads
                ),
            )
            for member_id in tokens
        ]

    def _write(
        self, number: int, steps: Iterable[UpdatedFragment], vector: VectorFile, folder: Path
    ) -> tuple[WrittenVector, str | None]:
        """Write the new vector and the outer state as they come; return their digests."""
        state_path = self.home.outer_state(number)
        state_path.parent.mkdir(exist_ok=True)
        with ExitStack() as stack:
            model_file = stack.enter_context((folder / MODEL_FILE).open("wb"))
            state = OuterStateWriter(stack.enter_context(replacing(state_path)))
            writer = VectorWriter(model_file, vector.layout, vector.extras)
            for fragment in steps:
                writer.write(fragment.base)
                state.write(fragment.state)
            written = writer.finish()
        return written, state.root.hex() if state.root is not None else None

    def _state_before(
        self, number: int, optimizer: OuterOptimizer, base: Manifest, vector: VectorFile
    ) -> OuterStateFile | None:
        """Return the state that the round before left; None where another optimizer made it."""
        if base.made is None or base.made.outer.optimizer != optimizer.name:
            return None
        if not optimizer.state_vectors:
            return None
        path = self.home.outer_state(number - 1)
        return OuterStateFile(path, vector.layout, optimizer.state_vectors)


class _Rooted:
    """Fragments of float32 vectors as they are read, compared with a signed root at the end."""

    def __init__(
        self, read: Callable[[int], tuple[Float32Array, ...]], root: str, path: Path
    ) -> None:
        """Read by `read`, each index once, what has the Merkle root `root`; it lies at `path`."""
        self._read = read
        self._root = root
        self._path = path
        self._digests: dict[int, list[bytes]] = {}

    def __call__(self, index: int) -> tuple[Float32Array, ...]:
        """Return the vectors of fragment `index`, and keep their digests."""
        vectors = self._read(index)
        self._digests[index] = [fragment_digest(vector.data) for vector in vectors]
        return vectors

    def require_root(self) -> None:
        """Make sure that what was read is what the federation signed.

        Raises:
            UnavailableError: It is damaged on this disk; nothing may be built upon it.
        """
        digests = [digest for index in sorted(self._digests) for digest in self._digests[index]]
        if fragments_root(digests).hex() != self._root:
            raise UnavailableError(
                f"{self._path}: damaged on this disk: it is not what the newest manifest signs; "
                "restore it from a copy or a backup"
            )


def _participation(
    weighted: Sequence[WeightedContribution],
    stored: Sequence[StoredContribution],
    declared: Sequence[Contribution],
) -> tuple[Participation, ...]:
    """Return everybody's part, in the order in which the contributions are stored."""
    decided: Mapping[str, WeightedContribution] = {part.member_id: part for part in weighted}
    return tuple(
        Participation(
            member_id=contribution.member_id,
            tokens=contribution.tokens,
            weight=decided[contribution.member_id].weight,
            clip_factor=decided[contribution.member_id].clip_factor,
            norm=record.norm,
            root=contribution.root,
            contribution=payload_digest(record.envelope),
            neighbours=decided[contribution.member_id].neighbours,
            reason=_reason(decided[contribution.member_id]),
        )
        for record, contribution in zip(stored, declared, strict=True)
    )


def _reason(part: WeightedContribution) -> str:
    """Return why a contribution has no weight."""
    if part.weight > 0:
        return ""
    return (
        "farthest from the contributions nearest to it, which the rule takes for a lie; "
        "a language that no other member has can cause it too"
    )


def _rule_record(settings: AggregationSettings) -> RuleRecord:
    rule = settings.aggregation_rule()
    return RuleRecord(
        name=rule.name,
        byzantine=rule.byzantine,
        mixing=rule.mixing,
        merge=rule.merge,
        radius=rule.radius,
    )


def _outer_record(optimizer: OuterOptimizer, state_root: str | None) -> OuterRecord:
    is_adam = optimizer.name == "adam"
    return OuterRecord(
        optimizer=optimizer.name,
        learning_rate=optimizer.learning_rate,
        momentum=optimizer.momentum,
        beta2=optimizer.beta2 if is_adam else 0.0,
        epsilon=optimizer.epsilon if is_adam else 0.0,
        state_root=state_root,
    )
