"""From a closed round's recorded contributions to the new vector and the outer state.

Holds a few fragments of every contribution at most, whatever the size of the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.outer import OuterOptimizer, state_vectors
from tapestry.aggregation.pipeline import UpdatedFragment, decide, outer_step
from tapestry.aggregation.weights import (
    clip_factors,
    default_cap,
    staleness_discount,
    token_weights,
)
from tapestry.checkpoints.folder import file_entry
from tapestry.checkpoints.manifest import (
    FileEntry,
    Manifest,
    OuterRecord,
    Participation,
    RoundRecord,
    RuleRecord,
)
from tapestry.checkpoints.outer_state import OuterStateFile, OuterStateWriter
from tapestry.checkpoints.policy import AggregationPolicy, FederationPolicy
from tapestry.checkpoints.statements import Contribution, RoundPlan, payload_digest
from tapestry.checkpoints.stepping import STEP_FILE
from tapestry.checkpoints.vector_file import (
    MODEL_FILE,
    VectorDtype,
    VectorFile,
    VectorWriter,
    WrittenVector,
    open_vector_file,
)
from tapestry.errors import UnavailableError
from tapestry.params.codecs import Codec, Float32Array, codec_named
from tapestry.params.downlink import DOWNLINK_CODECS, downlink_codec_named, encode_step
from tapestry.params.fragments import fragment_checksum, fragment_digest, fragments_root
from tapestry.storage.atomic import replacing
from tapestry.storage.read_ahead import ReadAhead
from tapestry_coordinator import failpoints
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.pace import buffer_of
from tapestry_coordinator.registry import StoredContribution
from tapestry_coordinator.uploads import FragmentStore

_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregatedRound:
    """The new vector, as it was written, and how it came about."""

    written: WrittenVector
    step: FileEntry | None
    """What leads to it from the base, if that is published."""
    made: RoundRecord


class Written:
    """What this process remembers of the vectors that it wrote, by their roots: checksums."""

    def __init__(self) -> None:
        """Remember nothing."""
        self._checksums: dict[str, list[bytes]] = {}

    def remember(self, checksums: Mapping[str, list[bytes]]) -> None:
        """Remember the newest round's, and forget all others."""
        self._checksums = dict(checksums)

    def checksums(self, root: str) -> list[bytes] | None:
        """Return those of the vectors with that root, in the order of writing."""
        return self._checksums.get(root)


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregator:
    """Decides weights, takes the outer step, writes vector and state."""

    home: CoordinatorHome
    store: FragmentStore
    policy: FederationPolicy
    written: Written

    def aggregate(
        self,
        plan: RoundPlan,
        stored: Sequence[StoredContribution],
        *,
        plan_digest: str,
        base: Manifest,
        folder: Path,
        weightless: Mapping[str, str],
    ) -> AggregatedRound:
        """Write `model.safetensors` into `folder`, and the outer state into the home; not durable.

        Args:
            plan: Of the closed round.
            stored: Its contributions, at least one.
            plan_digest: Of the signed plan.
            base: Manifest of the checkpoint that the round started from.
            folder: Of the checkpoint that is being built.
            weightless: Why contributions are recorded without a weight, by member.

        Raises:
            ConfigError: The aggregation rule cannot hold with so few contributions.
            UnavailableError: A recorded contribution or the outer state is damaged on this disk.
        """
        with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as threads:
            return self._aggregate(
                plan,
                stored,
                threads,
                plan_digest=plan_digest,
                base=base,
                folder=folder,
                weightless=weightless,
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
        weightless: Mapping[str, str],
    ) -> AggregatedRound:
        path = self.home.checkpoint(plan.round - 1) / MODEL_FILE
        vector = open_vector_file(path)
        count = vector.layout.fragments
        declared = [one.declared for one in stored]
        rule = self.policy.aggregation.aggregation_rule()
        counted = [
            pair
            for pair in zip(stored, declared, strict=True)
            if pair[0].member_id not in weightless
        ]
        weighted = decide(
            self._contributions(counted, count, threads),
            rule=rule,
            layout=vector.layout,
        )
        optimizer = self._optimizer(plan, base, members=len(weighted))
        start = _Start(
            self.home,
            base,
            vector,
            optimizer,
            threads,
            written=self.written,
            with_held=self._step_codec() is not None,
        )
        steps = outer_step(
            start.exact,
            start.state if start.has_state else None,
            weighted,
            layout=vector.layout,
            optimizer=optimizer,
            rule=rule,
        )
        written = self._write(plan.round, steps, start, vector, folder)
        start.require_roots()
        one_vote = rule.is_one_vote_each
        return AggregatedRound(
            written=written.vector,
            step=written.step,
            made=RoundRecord(
                plan=plan_digest,
                policy=plan.policy,
                inner=plan.inner,
                codec=plan.codec,
                quorum=plan.quorum,
                rule=rule_record(self.policy.aggregation),
                gamma=0.0 if one_vote else self.policy.aggregation.gamma,
                influence_cap=1.0 if one_vote else self._cap(len(weighted)),
                clip=self.policy.aggregation.clip,
                participation=_participation(weighted, stored, declared, weightless),
                outer=_outer_record(optimizer, written.state_root),
                downlink=self.policy.aggregation.downlink,
            ),
        )

    def _optimizer(self, plan: RoundPlan, base: Manifest, *, members: int) -> OuterOptimizer:
        """Return the outer optimizer; a delayed one's period lets the whole cohort have a turn."""
        policy = self.policy.aggregation
        if policy.optimizer != "delayed-nesterov":
            return policy.outer_optimizer(members)
        used = max(plan.quorum, buffer_of(self.policy.pace, len(plan.cohort)))
        period = max(1, -(-len(plan.cohort) // used)) if plan.is_asynchronous else 1
        before = None if base.made is None else base.made.outer
        position = 1
        if before is not None and before.optimizer == policy.optimizer:
            position = before.position + 1 if before.position < before.period else 1
        return policy.outer_optimizer(members * period, period=period, position=position)

    def _cap(self, members: int) -> float:
        return self.policy.aggregation.influence_cap or default_cap(members)

    def _contributions(
        self,
        counted: Sequence[tuple[StoredContribution, Contribution]],
        count: int,
        threads: Executor,
    ) -> list[WeightedContribution]:
        """Return the contributions with token weights, clip factors, and their discounts.

        A rule that gives everybody one vote has no weights to discount: there the contribution
        itself is shortened.
        """
        policy = self.policy.aggregation
        late = self.policy.lateness.discount
        discounts = {
            one.member_id: staleness_discount(one.staleness, discount=late) for one, _ in counted
        }
        tokens = {made.member_id: made.tokens for _, made in counted}
        weights = self._weights(tokens, discounts)
        factors = clip_factors({one.member_id: one.norm for one, _ in counted}, clip=policy.clip)
        if policy.aggregation_rule().is_one_vote_each:
            factors = {member: factors[member] * discounts[member] for member in factors}
        one_by_one = sorted((one for one, _ in counted), key=lambda one: one.member_id)
        places = {one.member_id: k for k, one in enumerate(one_by_one)}

        def read(place: int) -> bytes:
            index, k = divmod(place, len(one_by_one))
            return self.store.read(one_by_one[k].round, one_by_one[k].member_id, index)

        ahead = ReadAhead(read, count=count * len(one_by_one), threads=threads)
        return [
            WeightedContribution(
                member_id=one.member_id,
                weight=weights[one.member_id],
                clip_factor=factors[one.member_id],
                codec=codec_named(made.codec),
                read_fragment=partial(_read_in_turn, ahead, places[one.member_id], len(places)),
            )
            for one, made in counted
        ]

    def _weights(
        self, tokens: Mapping[str, int], discounts: Mapping[str, float]
    ) -> dict[str, float]:
        influence = self.policy.influence
        groups = {member: influence.group_of(member) for member in tokens}
        return token_weights(
            tokens,
            gamma=self.policy.aggregation.gamma,
            cap=self._cap(len(tokens)),
            groups={member: group for member, group in groups.items() if group is not None},
            group_cap=influence.group_cap,
            discounts=discounts,
        )

    def _step_codec(self) -> Codec | None:
        """Return how steps from checkpoint to checkpoint are coded; None if there are none."""
        downlink = self.policy.aggregation.downlink
        return downlink_codec_named(downlink) if downlink in DOWNLINK_CODECS else None

    def _write(
        self,
        number: int,
        steps: Iterable[UpdatedFragment],
        start: "_Start",
        vector: VectorFile,
        folder: Path,
    ) -> "_Results":
        """Write the new vector, the step to it, and the state as they come."""
        state_path = self.home.outer_state(number)
        state_path.parent.mkdir(exist_ok=True)
        downlink, codec = self.policy.aggregation.downlink, self._step_codec()
        with ExitStack() as stack:
            model_file = stack.enter_context(
                replacing(folder / MODEL_FILE, spares=self.home.spare_models, durable=False)
            )
            state = OuterStateWriter(
                stack.enter_context(
                    replacing(state_path, spares=self.home.spare_states, durable=False)
                )
            )
            step_file = None
            if codec is not None:
                (folder / STEP_FILE).parent.mkdir(exist_ok=True)
                step_file = stack.enter_context((folder / STEP_FILE).open("wb"))
            dtype: VectorDtype = "BF16" if downlink == "bfloat16" else "F32"
            writer = VectorWriter(model_file, vector.layout, vector.extras, dtype=dtype)
            for fragment in steps:
                exact = fragment.base
                if codec is not None and step_file is not None:
                    step = encode_step(codec, start.held, exact)
                    step_file.write(step.data)
                    writer.write(step.held)
                else:
                    writer.write(exact)
                state.write(fragment.state if downlink == "float32" else (*fragment.state, exact))
                failpoints.reach("fragment-aggregated")
            written = writer.finish()
            root = state.finish()
        state_root = root.hex() if root is not None else None
        self.written.remember(
            {written.root.hex(): writer.checksums, state_root or "": state.checksums}
        )
        return _Results(
            vector=written,
            state_root=state_root,
            step=None if codec is None else file_entry(folder, STEP_FILE),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Results:
    """Digests of what a round left."""

    vector: WrittenVector
    state_root: str | None
    step: FileEntry | None


class _Start:
    """What a round starts from, each fragment read once, in order.

    The exact vector is the published one, unless the round before published a coarser form of it:
    then it stands behind the optimizer's state vectors.
    """

    def __init__(
        self,
        home: CoordinatorHome,
        base: Manifest,
        vector: VectorFile,
        optimizer: OuterOptimizer,
        threads: Executor,
        *,
        written: Written,
        with_held: bool,
    ) -> None:
        """Open the files; nothing is read yet.

        Args:
            home: Of the coordinator.
            base: Manifest of the checkpoint that the round starts from.
            vector: Its vector, as published.
            optimizer: Of this round; one with another name begins without a state.
            threads: For reading ahead.
            written: What is remembered of them.
            with_held: Whether `held` will be asked for.

        Raises:
            UnavailableError: The state is missing on this disk, or of another size.
        """
        self._with_held = with_held
        self.held: Float32Array = np.empty(0, np.float32)
        """The published fragment whose exact form was asked for last."""
        count = vector.layout.fragments
        made = base.made
        self._is_exact_apart = made is not None and made.downlink != "float32"
        self.has_state = made is not None and (
            made.outer.optimizer == optimizer.name and optimizer.state_vectors > 0
        )
        """Whether the optimizer goes on from a state."""
        self._rooted: list[_Rooted] = []
        self._read_held = self._read_kept = None
        if with_held or not self._is_exact_apart:
            held = _Rooted(partial(_stored, vector), base.vector_root, vector.path, written)
            self._rooted.append(held)
            self._read_held = ReadAhead(held, count=count, threads=threads)
        if made is not None and (self.has_state or self._is_exact_apart):
            path = home.outer_state(base.round)
            state = OuterStateFile(path, vector.layout, kept_vectors(base))
            root = made.outer.state_root or ""
            kept = _Rooted(partial(_kept, state), root, state.path, written)
            self._rooted.append(kept)
            self._read_kept = ReadAhead(kept, count=count, threads=threads)
        self._kept: tuple[Float32Array, ...] = ()

    def exact(self, index: int) -> Float32Array:
        """Return the exact fragment, which may be overwritten; to be called before `state`."""
        if self._read_kept is not None:
            self._kept = self._read_kept(index)
        if self._read_held is not None:
            (self.held,) = self._read_held(index)
        if self._is_exact_apart:
            return self._kept[-1]
        return self.held.copy() if self._with_held else self.held

    def state(self, _index: int) -> tuple[Float32Array, ...]:
        """Return the optimizer's state vectors of the fragment that `exact` returned last."""
        return self._kept[:-1] if self._is_exact_apart else self._kept

    def require_roots(self) -> None:
        """Make sure that all that was read is what the federation signed.

        Raises:
            UnavailableError: Something is damaged on this disk; nothing may be built upon it.
        """
        for rooted in self._rooted:
            rooted.require_root()


def kept_vectors(checkpoint: Manifest) -> int:
    """Return how many vectors the outer state after a checkpoint's round has."""
    made = checkpoint.made
    if made is None:
        return 0
    return state_vectors(made.outer.optimizer) + (made.downlink != "float32")


def _read_in_turn(ahead: ReadAhead[bytes], place: int, members: int, index: int) -> bytes:
    """Return a member's fragment; all read theirs of one index before any reads the next.

    So one fragment is read ahead, however many members there are.
    """
    return ahead(index * members + place)


def _stored(vector: VectorFile, index: int) -> tuple[tuple[Float32Array, ...], list[memoryview]]:
    values, data = vector.read_stored(index)
    return (values,), [data]


def _kept(state: OuterStateFile, index: int) -> tuple[tuple[Float32Array, ...], list[memoryview]]:
    vectors = state.read_fragment(index)
    return vectors, [np.asarray(vector, "<f4").data.cast("B") for vector in vectors]


class _Rooted:
    """Fragments of float32 vectors as they are read, compared with what the federation signed.

    One by one with what this process remembers of writing them; if it did not, at the end, with the
    signed root.
    """

    def __init__(
        self,
        read: Callable[[int], tuple[tuple[Float32Array, ...], list[memoryview]]],
        root: str,
        path: Path,
        written: Written,
    ) -> None:
        """Read vectors and their bytes by `read`, each index once; they lie at `path`."""
        self._read = read
        self._root = root
        self._path = path
        self._remembered = written.checksums(root)
        self._digests: dict[int, list[bytes]] = {}

    def __call__(self, index: int) -> tuple[Float32Array, ...]:
        """Return the vectors of fragment `index`.

        Raises:
            UnavailableError: They are damaged on this disk.
        """
        vectors, pieces = self._read(index)
        if self._remembered is None:
            self._digests[index] = [fragment_digest(data) for data in pieces]
        else:
            first = index * len(pieces)
            known = self._remembered[first : first + len(pieces)]
            if [fragment_checksum(data) for data in pieces] != known:
                raise self._damaged()
        return vectors

    def require_root(self) -> None:
        """Make sure that what was read is what the federation signed.

        Raises:
            UnavailableError: It is damaged on this disk; nothing may be built upon it.
        """
        if self._remembered is not None:
            return
        digests = [digest for index in sorted(self._digests) for digest in self._digests[index]]
        if fragments_root(digests).hex() != self._root:
            raise self._damaged()

    def _damaged(self) -> UnavailableError:
        return UnavailableError(
            f"{self._path}: damaged on this disk: it is not what the newest manifest signs; "
            "restore it from a copy or a backup"
        )


def _participation(
    weighted: Sequence[WeightedContribution],
    stored: Sequence[StoredContribution],
    declared: Sequence[Contribution],
    weightless: Mapping[str, str],
) -> tuple[Participation, ...]:
    """Return everybody's part, in the order in which the contributions are stored."""
    decided: Mapping[str, WeightedContribution] = {part.member_id: part for part in weighted}
    return tuple(
        Participation(
            member_id=contribution.member_id,
            tokens=contribution.tokens,
            weight=0.0 if part is None else part.weight,
            clip_factor=1.0 if part is None else part.clip_factor,
            norm=record.norm,
            root=contribution.root,
            contribution=payload_digest(record.envelope),
            staleness=record.staleness,
            base_round=record.round - 1 if record.staleness else None,
            neighbours=() if part is None else part.neighbours,
            reason=weightless[record.member_id] if part is None else _reason(part),
        )
        for record, contribution in zip(stored, declared, strict=True)
        for part in (decided.get(contribution.member_id),)
    )


def _reason(part: WeightedContribution) -> str:
    """Return why the rule gave a contribution no weight; empty if it has one."""
    if part.weight > 0:
        return ""
    return (
        "farthest from the contributions nearest to it, which the rule takes for a lie; "
        "a language that no other member has can cause it too"
    )


def rule_record(policy: AggregationPolicy) -> RuleRecord:
    """Return the rule and its parameters as a manifest records them."""
    rule = policy.aggregation_rule()
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
        period=optimizer.period,
        position=optimizer.position,
        state_root=state_root,
    )
