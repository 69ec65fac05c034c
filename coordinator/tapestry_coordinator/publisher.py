"""Turn a closed round into a published checkpoint.

Bit-reproducible: base, outer state, recorded contributions and the times of the stored events
decide every byte, so a coordinator that crashed in the middle does it again and gets the same.
Nobody waits for the disk here: see `tapestry_coordinator.settling`.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.deciding import kept_vectors, rule_record
from tapestry.checkpoints.folder import (
    MANIFEST_FILE,
    POLICY_JSON,
    ROUND_FILE,
    building,
    file_entry,
    read_envelope,
    write_round,
    write_statements,
)
from tapestry.checkpoints.manifest import (
    Absence,
    FileEntry,
    Lineage,
    Manifest,
    OuterRecord,
    Participation,
    RevertRecord,
    RoundRecord,
)
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.starting import Written
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE, WrittenVector
from tapestry.errors import UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.storage.atomic import replacing, sync_path
from tapestry_coordinator import failpoints
from tapestry_coordinator.aggregating import Aggregator
from tapestry_coordinator.card import write_card
from tapestry_coordinator.chain import Followed
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.receiving import StoredContribution
from tapestry_coordinator.software import software
from tapestry_coordinator.uploads import FragmentStore

_log = logging.getLogger(__name__)

_COPY_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Publisher:
    """Aggregates closed rounds and writes checkpoints."""

    home: CoordinatorHome
    key: Ed25519PrivateKey
    store: FragmentStore
    written: Written = field(default_factory=Written)
    """What this process has published last."""

    def publish(self, closed: ClosedRound) -> Envelope:
        """Return the manifest of the round's checkpoint, which is in its folder when this returns.

        Not yet durable.

        Raises:
            OSError: The disk is full; nothing is left of the attempt.
            ConfigError: The aggregation rule cannot hold with so few contributions.
            UnavailableError: A recorded contribution or the outer state is damaged on this disk, or
                what comes out is not what members have measured.
        """
        number = closed.plan.round
        target, candidate = self.home.checkpoint(number), self.home.candidate(number)
        if closed.reverted:
            return self._publish_reverted(closed)
        if candidate.is_dir() and not target.is_dir():
            candidate.rename(target)
            sync_path(target.parent)
        return self._make(closed, target, durable=False)

    def propose(self, closed: ClosedRound) -> Envelope:
        """Return the manifest of a checkpoint that members measure before it is published.

        It and the outer state are on the disk when this returns.

        Raises:
            OSError: The disk is full; nothing is left of the attempt.
            ConfigError: The aggregation rule cannot hold with so few contributions.
            UnavailableError: A recorded contribution or the outer state is damaged on this disk, or
                what comes out is not what members are measuring.
        """
        number = closed.plan.round
        target = self.home.candidate(number)
        target.parent.mkdir(exist_ok=True)
        envelope = self._make(closed, target, durable=True)
        state = self.home.outer_state(number)
        if state.is_file():
            sync_path(state)
            sync_path(state.parent)
        return envelope

    def _make(self, closed: ClosedRound, target: Path, *, durable: bool) -> Envelope:
        """Have a round aggregated in `target`: just what members measured, if they did."""
        envelope = self._made(closed, target, durable=durable)
        if closed.candidate and payload_digest(envelope) != closed.candidate:
            shutil.rmtree(target)
            raise UnavailableError(
                f"the candidate of round {closed.plan.round} comes out differently here than "
                "members measured it: the software changed since. Undo that; or, while it is being "
                f"measured or held, `tapestry coordinator revert {closed.plan.round}`"
            )
        return envelope

    def _made(self, closed: ClosedRound, target: Path, *, durable: bool) -> Envelope:
        """Aggregate a round into `target`, unless it is there."""
        number = closed.plan.round
        if target.is_dir():
            return read_envelope(target / MANIFEST_FILE, what=f"manifest of round {number}")
        self._bring(closed.contributions)
        with building(target, durable=durable) as folder:
            base = Manifest.parsed(closed.lineage[-1].payload, what="base manifest")
            aggregated = self._aggregator(closed.policy).aggregate(
                closed.plan,
                closed.contributions,
                plan_digest=closed.plan_digest,
                base=base,
                folder=folder,
                weightless=closed.weightless,
            )
            _require_beside(aggregated.written, closed.lineage[0], self.home.checkpoint(number - 1))
            files = _carry_over(base, self.home.checkpoint(number - 1), folder)
            files += [_write_policy(closed.policy, folder), _write_round(closed, folder)]
            manifest = Manifest(
                round=number,
                genesis=closed.plan.genesis,
                parent=closed.plan.base,
                created_at=closed.closed_at,
                layout=closed.plan.layout,
                elements=base.elements,
                vector_root=aggregated.written.root.hex(),
                files=tuple(
                    sorted([*files, _model_entry(aggregated.written)], key=lambda e: e.name)
                ),
                step=aggregated.step,
                made=aggregated.made.model_copy(
                    update={"absent": _absences(closed, aggregated.made.participation)}
                ),
                software=software(),
            )
            envelope = self._finish(manifest, closed, folder)
            failpoints.reach("checkpoint-built")
        failpoints.reach("checkpoint-in-place")
        _log.info("checkpoint %d is in %s", number, target)
        return envelope

    def _bring(self, contributions: Sequence[StoredContribution]) -> None:
        """Have the contributions here that another coordinator may have taken."""
        for stored in contributions:
            self.store.bring(stored.round, stored.member_id, root=stored.declared.root)

    def _finish(self, manifest: Manifest, closed: ClosedRound, folder: Path) -> Envelope:
        """Sign the manifest, and write what stands beside the model."""
        envelope = manifest.signed(self.key)
        lineage = Followed(closed.lineage, envelope)
        write_statements(folder, lineage)
        notes = self.home.notes(manifest.round)
        write_card(folder, lineage, closed.evaluations, self.key, notes=notes)
        return envelope

    def _publish_reverted(self, closed: ClosedRound) -> Envelope:
        """Publish the consensus as it was once more, with the reason, and drop the candidate."""
        number = closed.plan.round
        target, source = self.home.checkpoint(number), self.home.checkpoint(number - 1)
        base = Manifest.parsed(closed.lineage[-1].payload, what="base manifest")
        self._keep_state(base, number)
        if target.is_dir():
            envelope = read_envelope(target / MANIFEST_FILE, what=f"manifest of round {number}")
        else:
            with building(target, durable=False) as folder:
                files = _carry_over(base, source, folder)
                files += [_write_policy(closed.policy, folder), _write_round(closed, folder)]
                (model,) = [entry for entry in base.files if entry.name == MODEL_FILE]
                shutil.copyfile(source / MODEL_FILE, folder / MODEL_FILE)
                envelope = self._finish(
                    reverted_manifest(closed, base, [*files, model]), closed, folder
                )
        shutil.rmtree(self.home.candidate(number), ignore_errors=True)
        _log.warning("checkpoint %d is the consensus as it was: %s", number, closed.reverted)
        return envelope

    def _keep_state(self, base: Manifest, number: int) -> None:
        """Leave the outer state after a round as it was before."""
        target, before = self.home.outer_state(number), self.home.outer_state(number - 1)
        target.parent.mkdir(exist_ok=True)
        with replacing(target, spares=self.home.spare_states, durable=False) as file:
            if kept_vectors(base) > 0:
                with before.open("rb") as kept:
                    shutil.copyfileobj(kept, file, _COPY_BYTES)

    def _aggregator(self, policy: FederationPolicy) -> Aggregator:
        return Aggregator(home=self.home, store=self.store, policy=policy, written=self.written)


def _carry_over(base: Manifest, source: Path, folder: Path) -> list[FileEntry]:
    """Copy what stays the same between checkpoints: configuration and tokenizer."""
    entries = [e for e in base.files if e.name not in {MODEL_FILE, POLICY_JSON, ROUND_FILE}]
    for entry in entries:
        (folder / entry.name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / entry.name, folder / entry.name)
        if file_entry(folder, entry.name) != entry:
            raise UnavailableError(
                f"{source / entry.name}: damaged on this disk: it is not what the manifest signs; "
                "restore it from a copy or a backup"
            )
    return entries


def _require_beside(written: WrittenVector, genesis: Envelope, source: Path) -> None:
    """Refuse to publish frozen parameters that are not those of genesis."""
    record = Lineage(genesis).origin.beside
    if record is not None and written.beside.hex() != record.digest:
        raise UnavailableError(
            f"{source / MODEL_FILE}: damaged on this disk: its frozen parameters are not those of "
            "genesis; restore it from a copy or a backup"
        )


def reverted_manifest(closed: ClosedRound, base: Manifest, files: Sequence[FileEntry]) -> Manifest:
    """Return the manifest of a round that left the consensus as it was."""
    plan, before = closed.plan, base.made
    declared = [(one, one.declared) for one in closed.contributions]
    participation = tuple(
        Participation(
            member_id=one.member_id,
            key=one.signing_key.hex(),
            tokens=made.tokens,
            weight=0.0,
            clip_factor=1.0,
            norm=one.norm,
            root=made.root,
            contribution=payload_digest(one.envelope),
            staleness=one.staleness,
            base_round=one.round - 1 if one.staleness else None,
            reason=closed.excluded.get(one.member_id, "the round left the consensus as it was"),
        )
        for one, made in declared
    )
    unchanged = OuterRecord(
        optimizer="sgd", learning_rate=0.0, momentum=0.0, state_before=None, state_root=None
    )
    if before is not None:
        root = before.outer.state_root
        unchanged = before.outer.model_copy(update={"state_before": root})
    policy = closed.policy.aggregation
    return Manifest(
        round=plan.round,
        genesis=plan.genesis,
        parent=plan.base,
        created_at=closed.closed_at,
        layout=plan.layout,
        elements=base.elements,
        vector_root=base.vector_root,
        files=tuple(sorted(files, key=lambda entry: entry.name)),
        made=RoundRecord(
            plan=closed.plan_digest,
            policy=plan.policy,
            inner=plan.inner,
            codec=plan.codec,
            quorum=plan.quorum,
            rule=rule_record(policy),
            gamma=policy.gamma,
            influence_cap=1.0,
            clip=policy.clip,
            participation=participation,
            absent=_absences(closed, participation),
            outer=unchanged,
            downlink="float32" if before is None else before.downlink,
            reverted=RevertRecord(candidate=closed.candidate, reason=closed.reverted),
        ),
        software=software(),
    )


def _write_policy(policy: FederationPolicy, folder: Path) -> FileEntry:
    """Write the policy in force, so that whoever has the checkpoint can read and hash it."""
    path = folder / POLICY_JSON
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(policy.canonical())
    return file_entry(folder, POLICY_JSON)


def _write_round(closed: ClosedRound, folder: Path) -> FileEntry:
    """Write what was signed in the round: the plan, then the contributions by member."""
    signed = sorted(closed.contributions, key=lambda one: one.member_id)
    write_round(folder, [closed.plan_envelope, *(one.envelope for one in signed)])
    return file_entry(folder, ROUND_FILE)


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
