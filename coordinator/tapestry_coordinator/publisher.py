"""Turn a closed round into a published checkpoint.

Bit-reproducible: base, outer state, recorded contributions and the times of the stored events
decide every byte, so a coordinator that crashed in the middle does it again and gets the same.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.aggregation.outer import OuterOptimizer, default_learning_rate
from tapestry.aggregation.pipeline import WeightedContribution, outer_step
from tapestry.aggregation.weights import clip_factors, default_cap, token_weights
from tapestry.checkpoints.folder import (
    MANIFEST_FILE,
    building,
    read_envelope,
    write_statements,
)
from tapestry.checkpoints.manifest import (
    Absence,
    FileEntry,
    Manifest,
    OuterRecord,
    Participation,
    RoundRecord,
)
from tapestry.checkpoints.statements import Contribution, RoundPlan, payload_digest
from tapestry.checkpoints.vector_file import (
    MODEL_FILE,
    VectorWriter,
    WrittenVector,
    open_vector_file,
)
from tapestry.identity.envelopes import Envelope
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout
from tapestry.storage.atomic import replacing
from tapestry_coordinator.card import write_card
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import StoredContribution, StoredEvaluation
from tapestry_coordinator.settings import AggregationSettings
from tapestry_coordinator.uploads import FragmentStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedRound:
    """Everything recorded that decides a checkpoint."""

    plan: RoundPlan
    plan_digest: str
    closed_at: float
    contributions: Sequence[StoredContribution]
    declined: Mapping[str, str]
    lineage: Sequence[Envelope]
    """From genesis to the base checkpoint."""
    evaluations: Sequence[StoredEvaluation]


@dataclass(frozen=True, kw_only=True, slots=True)
class Publisher:
    """Aggregates closed rounds and writes checkpoints."""

    home: CoordinatorHome
    key: Ed25519PrivateKey
    store: FragmentStore
    settings: AggregationSettings

    def publish(self, closed: ClosedRound) -> Envelope:
        """Return the manifest of the round's checkpoint, which is in its folder when this returns.

        Raises:
            OSError: The disk is full; nothing is left of the attempt.
            UnavailableError: A recorded contribution is damaged on this disk.
        """
        number = closed.plan.round
        target = self.home.checkpoint(number)
        if target.is_dir():
            return read_envelope(target / MANIFEST_FILE, what=f"manifest of round {number}")
        declared = [
            Contribution.parsed(stored.envelope.payload, what=f"contribution of {stored.member_id}")
            for stored in closed.contributions
        ]
        participation = self._participation(closed.contributions, declared)
        optimizer = self._optimizer(len(participation))
        with building(target) as folder:
            base_folder = self.home.checkpoint(number - 1)
            written, state_root = self._aggregate(
                closed.plan, participation, optimizer, base_folder, folder
            )
            base = Manifest.parsed(closed.lineage[-1].payload, what="base manifest")
            files = _carry_over(base, base_folder, folder)
            manifest = Manifest(
                round=number,
                genesis=closed.plan.genesis,
                parent=closed.plan.base,
                created_at=closed.closed_at,
                layout=closed.plan.layout,
                elements=base.elements,
                vector_root=written.root.hex(),
                files=tuple(sorted([*files, _model_entry(written)], key=lambda e: e.name)),
                made=RoundRecord(
                    plan=closed.plan_digest,
                    inner=closed.plan.inner,
                    codec=closed.plan.codec,
                    quorum=closed.plan.quorum,
                    gamma=self.settings.gamma,
                    influence_cap=self._cap(len(participation)),
                    clip=self.settings.clip,
                    participation=participation,
                    absent=_absences(closed, participation),
                    outer=OuterRecord(
                        optimizer=optimizer.name,
                        learning_rate=optimizer.learning_rate,
                        momentum=optimizer.momentum,
                        state_root=state_root,
                    ),
                ),
                software=software(),
            )
            envelope = manifest.signed(self.key)
            write_statements(folder, [*closed.lineage, envelope])
            write_card(
                folder,
                [*closed.lineage, envelope],
                closed.evaluations,
                self.key,
                notes=self.home.notes(number),
            )
        _log.info("published checkpoint %d in %s", number, target)
        return envelope

    def _participation(
        self, stored: Sequence[StoredContribution], declared: Sequence[Contribution]
    ) -> tuple[Participation, ...]:
        tokens = {c.member_id: c.tokens for c in declared}
        weights = token_weights(tokens, gamma=self.settings.gamma, cap=self._cap(len(tokens)))
        norms = {c.member_id: c.norm for c in stored}
        factors = clip_factors(norms, clip=self.settings.clip)
        return tuple(
            Participation(
                member_id=contribution.member_id,
                tokens=contribution.tokens,
                weight=weights[contribution.member_id],
                clip_factor=factors[contribution.member_id],
                norm=norms[contribution.member_id],
                root=contribution.root,
                contribution=payload_digest(record.envelope),
            )
            for record, contribution in zip(stored, declared, strict=True)
        )

    def _cap(self, members: int) -> float:
        return self.settings.influence_cap or default_cap(members)

    def _optimizer(self, members: int) -> OuterOptimizer:
        name = self.settings.optimizer
        return OuterOptimizer(
            name=name,
            learning_rate=self.settings.learning_rate or default_learning_rate(name, members),
            momentum=self.settings.momentum if name == "nesterov" else 0.0,
        )

    def _aggregate(
        self,
        plan: RoundPlan,
        participation: Sequence[Participation],
        optimizer: OuterOptimizer,
        base_folder: Path,
        folder: Path,
    ) -> tuple[WrittenVector, str | None]:
        """Write the new vector and the outer state; return their digests."""
        base = open_vector_file(base_folder / MODEL_FILE)
        previous = self.home.outer_state(plan.round - 1)
        state_path = self.home.outer_state(plan.round)
        state_path.parent.mkdir(exist_ok=True)
        codec = codec_named(plan.codec)
        contributions = [
            WeightedContribution(
                member_id=part.member_id,
                weight=part.weight,
                clip_factor=part.clip_factor,
                codec=codec,
                read_fragment=_reader(self.store, plan.round, part.member_id),
            )
            for part in participation
        ]
        buffer = _map_state(previous, base.layout) if optimizer.has_state else None
        digests: list[bytes] = []
        with ExitStack() as stack:
            model_file = stack.enter_context((folder / MODEL_FILE).open("wb"))
            state_file = stack.enter_context(replacing(state_path))
            writer = VectorWriter(model_file, base.layout, base.extras)
            for fragment in outer_step(
                base.vector, buffer, contributions, layout=base.layout, optimizer=optimizer
            ):
                writer.write(fragment.base)
                data = fragment.buffer.astype("<f4", copy=False).tobytes()
                digests.append(fragment_digest(data))
                state_file.write(data)
            written = writer.finish()
        return written, fragments_root(digests).hex() if optimizer.has_state else None


def software() -> dict[str, str]:
    """Return the versions that can matter to whoever repeats an aggregation."""
    return {"tapestry": version("tapestry-fl"), "numpy": np.__version__}


def _reader(store: FragmentStore, round_number: int, member_id: str) -> Callable[[int], bytes]:
    return lambda index: store.read(round_number, member_id, index)


def _map_state(path: Path, layout: ParameterLayout) -> Float32Array | None:
    """Map the outer state before this round; None before the first one."""
    if not path.is_file():
        return None
    return np.memmap(path, dtype="<f4", mode="r", shape=(layout.elements,))


def _carry_over(base: Manifest, source: Path, folder: Path) -> list[FileEntry]:
    """Copy what stays the same between checkpoints: configuration and tokenizer."""
    entries = [entry for entry in base.files if entry.name != MODEL_FILE]
    for entry in entries:
        shutil.copyfile(source / entry.name, folder / entry.name)
    return entries


def _model_entry(written: WrittenVector) -> FileEntry:
    return FileEntry(name=MODEL_FILE, size_bytes=written.size_bytes, digest=written.digest.hex())


def _absences(closed: ClosedRound, participation: Sequence[Participation]) -> tuple[Absence, ...]:
    present = {part.member_id for part in participation}
    return tuple(
        Absence(
            member_id=member_id,
            reason=closed.declined.get(member_id, "no contribution before the round closed"),
        )
        for member_id in closed.plan.cohort
        if member_id not in present
    )
