"""From a closed round's recorded contributions to the new vector and the outer state.

Holds a few fragments of every contribution at most, whatever the size of the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.pipeline import UpdatedFragment, decide, outer_step
from tapestry.checkpoints.deciding import (
    FARTHEST,
    Counted,
    cap_of,
    outer_optimizer,
    outer_record,
    rule_record,
    shares,
)
from tapestry.checkpoints.folder import file_entry
from tapestry.checkpoints.manifest import (
    FileEntry,
    Manifest,
    Participation,
    RoundRecord,
)
from tapestry.checkpoints.outer_state import OuterStateWriter
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.starting import RoundStart, Written
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
from tapestry.params.codecs import Codec, codec_named
from tapestry.params.downlink import DOWNLINK_CODECS, downlink_codec_named, encode_step
from tapestry.storage.atomic import replacing
from tapestry.storage.read_ahead import ReadAhead
from tapestry_coordinator import failpoints
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.receiving import StoredContribution
from tapestry_coordinator.uploads import FragmentStore

_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregatedRound:
    """The new vector, as it was written, and how it came about."""

    written: WrittenVector
    step: FileEntry | None
    """What leads to it from the base, if that is published."""
    made: RoundRecord


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
        optimizer = outer_optimizer(self.policy, plan, base, members=len(weighted))
        start = RoundStart(
            self.home.outer_state(base.round),
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
                influence_cap=1.0 if one_vote else cap_of(self.policy.aggregation, len(weighted)),
                clip=self.policy.aggregation.clip,
                participation=_participation(weighted, stored, declared, weightless),
                outer=outer_record(optimizer, base=base, state_root=written.state_root),
                downlink=self.policy.aggregation.downlink,
            ),
        )

    def _contributions(
        self,
        counted: Sequence[tuple[StoredContribution, Contribution]],
        count: int,
        threads: Executor,
    ) -> list[WeightedContribution]:
        """Return the contributions with their shares, and how they are read."""
        given = shares(
            self.policy,
            [
                Counted(
                    member_id=one.member_id,
                    tokens=made.tokens,
                    norm=one.norm,
                    staleness=one.staleness,
                )
                for one, made in counted
            ],
        )
        one_by_one = sorted((one for one, _ in counted), key=lambda one: one.member_id)
        places = {one.member_id: k for k, one in enumerate(one_by_one)}

        def read(place: int) -> bytes:
            index, k = divmod(place, len(one_by_one))
            return self.store.read(one_by_one[k].round, one_by_one[k].member_id, index)

        ahead = ReadAhead(read, count=count * len(one_by_one), threads=threads)
        return [
            WeightedContribution(
                member_id=one.member_id,
                weight=given[one.member_id].weight,
                clip_factor=given[one.member_id].clip_factor,
                codec=codec_named(made.codec),
                read_fragment=partial(_read_in_turn, ahead, places[one.member_id], len(places)),
            )
            for one, made in counted
        ]

    def _step_codec(self) -> Codec | None:
        """Return how steps from checkpoint to checkpoint are coded; None if there are none."""
        downlink = self.policy.aggregation.downlink
        return downlink_codec_named(downlink) if downlink in DOWNLINK_CODECS else None

    def _write(
        self,
        number: int,
        steps: Iterable[UpdatedFragment],
        start: RoundStart,
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


def _read_in_turn(ahead: ReadAhead[bytes], place: int, members: int, index: int) -> bytes:
    """Return a member's fragment; all read theirs of one index before any reads the next.

    So one fragment is read ahead, however many members there are.
    """
    return ahead(index * members + place)


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
            key=record.signing_key.hex(),
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
    return FARTHEST
