"""The node's daemon: waits for plans, trains, sends, measures, and can be restarted at any point.

The listener's thread keeps the newest state that the coordinator told; the main thread acts on it.
"""

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tapestry.checkpoints.folder import MANIFEST_FILE, file_entry
from tapestry.checkpoints.manifest import FileEntry, Lineage, Manifest, verify_lineage
from tapestry.checkpoints.statements import Receipt, RoundPlan, payload_digest
from tapestry.errors import RejectedError, UnavailableError, UntrustedError
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.objectives.training import StepReport
from tapestry.storage.atomic import sync_path, write_atomic
from tapestry.wire.allocation import spare_what_is_there
from tapestry.wire.egress import EgressLedger
from tapestry_node.client import NodeClient, Told
from tapestry_node.home import NodeHome
from tapestry_node.listener import FIRST_BACKOFF_SECONDS, Listener
from tapestry_node.residual import accept_residual
from tapestry_node.spool import Spooled, find_spooled, find_unsettled
from tapestry_node.trainer import Trainer

_log = logging.getLogger(__name__)

_REPORT_SECONDS = 5.0
_PROGRESS_SECONDS = 0.5
_LOG_SECONDS = 15.0
_MAX_BACKOFF_SECONDS = 10.0
"""For what the coordinator cannot do now."""
_POLL_SECONDS = 0.5


@dataclass(slots=True)
class Progress:
    """What the node does right now; written to `progress.json`."""

    doing: str = "starting"
    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    tokens_per_second: float = 0.0
    bytes_sent: int = 0
    data_bytes: int = 0
    bits_per_byte: dict[str, float] = field(default_factory=dict)
    """By round of the checkpoint."""


class Daemon:
    """One node at work."""

    def __init__(self, home: NodeHome, data: Sequence[Path], *, until_finished: bool) -> None:
        """Prepare; nothing is sent yet.

        Args:
            home: The node's folder.
            data: The institution's text.
            until_finished: Return once the federation plans no further round.
        """
        self._home = home
        self._data = list(data)
        self._until_finished = until_finished
        self._settings = home.load_settings()
        self._membership = home.identity.load()
        self._signing_key = home.identity.signing_key()
        self._coordinator_key = bytes.fromhex(self._membership.coordinator_key)
        self._ledger = EgressLedger(
            home.egress,
            to=self._membership.address,
            clock=time.time,  # noqa: TID251 - the edge that owns the clock
        )
        self._state = home.load_state()
        self._progress = Progress(
            data_bytes=_size_of(self._data), bits_per_byte=_scores(home.progress)
        )
        self._progress_written = 0.0
        self._sound = -1
        """The checkpoint that this process has fetched or verified."""
        self._candidate = ""
        """Manifest digest of the candidate that this process has measured."""
        self._trainer: Trainer | None = None
        self._refused: set[tuple[int, int]] = set()
        self._stopping = threading.Event()
        self._client = self._connect()

    def stop(self) -> None:
        """Ask `run` to return; what is unfinished is taken up at the next start."""
        self._stopping.set()

    def run(self) -> None:
        """Serve the federation until stopped.

        Raises:
            UntrustedError: The coordinator, a plan, or a checkpoint cannot be trusted.
            ConfigError: The data or a setting cannot be used.
        """
        spare_what_is_there()
        listener = Listener(self._connected)
        version, backoff = 0, FIRST_BACKOFF_SECONDS
        try:
            while not self._stopping.is_set():
                newest, told = listener.wait(after=version, timeout_seconds=1.0)
                streams = listener.streams
                try:
                    self._renew_if_due(listener)
                    if told is None or newest == version:
                        continue
                    version = newest
                    if self._act(told, listener):
                        return
                    backoff = FIRST_BACKOFF_SECONDS
                except (UnavailableError, OSError) as error:
                    _log.warning("%s; trying again", error)
                    version -= 1
                    self._wait(listener, streams=streams, seconds=backoff)
                    backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)
        finally:
            listener.stop()
            self._write_progress("stopped")
            _log.info("stopped")
            self._client.close()
            self._ledger.close()

    def _wait(self, listener: Listener, *, streams: int, seconds: float) -> None:
        """Wait before trying again: for a line that is down, until it comes back."""
        deadline = time.monotonic() + seconds
        while not self._stopping.is_set():
            if listener.wait_for_stream(after=streams, timeout_seconds=min(seconds, _POLL_SECONDS)):
                return
            if listener.is_told and time.monotonic() >= deadline:
                return

    def _connect(self) -> NodeClient:
        """Make the one connection over which everything goes; nothing is sent yet."""
        self._require_valid_certificate()
        return NodeClient(self._membership, self._home.identity, self._ledger)

    def _connected(self) -> NodeClient:
        """Return the connection there is."""
        self._require_valid_certificate()
        return self._client

    def _require_valid_certificate(self) -> None:
        """Refuse a certificate that is not valid now: the coordinator would hang up in silence."""
        begin, end = self._home.identity.validity()
        if not begin <= datetime.now(UTC) < end:
            raise UntrustedError(
                f"this node's certificate is valid from {begin:%Y-%m-%d %H:%M} to "
                f"{end:%Y-%m-%d %H:%M} UTC: set the clock, or ask the coordinator's operator for a "
                "new invitation"
            )

    def _act(self, told: Told, listener: Listener) -> bool:
        """Do what the state asks for; return whether the node is done."""
        manifest = self._take_manifest(told.manifest)
        if told.plan is not None:
            plan = RoundPlan.opened(told.plan, public_key=self._coordinator_key, what="round plan")
            plan = self._settings.policy.asked(plan, self._membership.member_id)
            self._take_plan(plan, told.manifest, manifest, listener)
        else:
            self._evaluate(manifest, told.manifest)
            if told.candidate is not None:
                self._measure_candidate(told.candidate, told.manifest, manifest)
        self._write_progress(told.notice)
        if told.is_finished:
            waits = "" if self._until_finished else "; waiting in case it goes on (Ctrl-C ends)"
            _log.info("the federation plans no further round%s", waits)
        return told.is_finished and self._until_finished

    # Checkpoints

    def _take_manifest(self, envelope: Envelope) -> Manifest:
        """Verify that the newest manifest follows from the one this node knew.

        Raises:
            UntrustedError: Another federation, another key, or another history.
        """
        manifest = Manifest.opened(envelope, public_key=self._coordinator_key, what="manifest")
        digest = payload_digest(envelope)
        state = self._state
        if digest == state.manifest:
            return manifest
        if manifest.round <= state.round:
            raise UntrustedError(
                f"the coordinator shows checkpoint {manifest.round} as its newest, this node has "
                f"verified {state.round}: its history was changed; ask its operator"
            )
        if manifest.parent != state.manifest or manifest.round != state.round + 1:
            lineage = self._verify_from_genesis(manifest, digest)
            state = replace(state, objective=lineage.origin.objective)
        self._state = replace(state, round=manifest.round, manifest=digest)
        self._home.save_state(self._state)
        return manifest

    def _verify_from_genesis(self, manifest: Manifest, digest: str) -> Lineage:
        envelopes = self._client.fetcher.lineage(manifest.round)
        lineage = verify_lineage(envelopes, pinned=self._membership.genesis)
        if lineage.newest_digest != digest:
            raise UntrustedError("the lineage does not lead to the newest manifest; not taken")
        known = self._state.manifest
        if known and known not in {payload_digest(envelope) for envelope in envelopes}:
            raise UntrustedError(
                f"the coordinator's history does not contain checkpoint {self._state.round} that "
                "this node has verified: its history was changed; ask its operator"
            )
        if lineage.coordinator_key != self._coordinator_key:
            raise UntrustedError("the lineage is signed by another key than the pinned one")
        return lineage

    def _checkpoint(self, manifest: Manifest, envelope: Envelope) -> Path:
        """Return the folder of a checkpoint, fetched if it is not here."""
        target, candidate = self._home.checkpoint(manifest.round), self._home.candidate
        if candidate.is_dir() and not target.is_dir():
            if (candidate / MANIFEST_FILE).read_bytes() == to_json(envelope):
                candidate.rename(target)  # released, and here since it was measured
            else:
                shutil.rmtree(candidate)
        if target.is_dir():
            if manifest.round == self._sound or _is_sound(target, manifest, envelope):
                self._sound = manifest.round
                return target
            _log.warning("checkpoint %d is damaged on this disk; fetching it again", manifest.round)
            shutil.rmtree(target)
        self._write_progress(f"fetching checkpoint {manifest.round}")
        came = self._home.fetch(self._client.fetcher, manifest, envelope, target=target)
        self._sound = manifest.round
        _log.info("checkpoint %d is here (%s bytes came)", manifest.round, f"{came:,}")
        self._home.prune(
            contributed=self._state.contributed,
            newest=self._state.round,
            max_staleness=self._state.max_staleness,
        )
        return target

    def _evaluate(self, manifest: Manifest, envelope: Envelope) -> None:
        """Measure a consensus checkpoint on this node's own held-out text, once."""
        if manifest.round <= self._state.evaluated:
            return
        folder = self._checkpoint(manifest, envelope)
        if payload_digest(envelope) != self._candidate and not self._measure(
            manifest, envelope, folder
        ):
            return
        self._state = replace(self._state, evaluated=manifest.round)
        self._home.save_state(self._state)

    def _measure_candidate(self, envelope: Envelope, newest: Envelope, parent: Manifest) -> None:
        """Measure what is to be the next consensus, before it is published, once.

        Raises:
            UntrustedError: It does not follow from the newest checkpoint.
        """
        digest = payload_digest(envelope)
        if digest == self._candidate or not self._settings.policy.report_evaluation:
            return
        manifest = Manifest.opened(envelope, public_key=self._coordinator_key, what="candidate")
        if manifest.parent != payload_digest(newest) or manifest.round != parent.round + 1:
            raise UntrustedError("the candidate does not follow from the newest checkpoint")
        folder = self._home.candidate
        if folder.is_dir() and not _is_sound(folder, manifest, envelope):
            shutil.rmtree(folder)
        if not folder.is_dir():
            self._write_progress(f"fetching candidate {manifest.round}")
            self._home.fetch(self._client.fetcher, manifest, envelope, target=folder)
        try:
            if self._measure(manifest, envelope, folder):
                self._candidate = digest
        except RejectedError as error:  # decided meanwhile
            _log.warning("candidate %d: %s", manifest.round, error)

    def _measure(self, manifest: Manifest, envelope: Envelope, folder: Path) -> bool:
        """Measure a checkpoint and tell the result; return whether there is text to measure on."""
        if self._trainer is None and manifest.made is not None:
            self._trainer = self._make_trainer(folder, manifest.made.inner.sequence_tokens)
        if self._trainer is None:
            return False
        self._write_progress(f"measuring checkpoint {manifest.round}")
        result = self._trainer.evaluate(folder)
        self._progress.bits_per_byte[str(manifest.round)] = result.bits_per_byte
        _log.info(
            "checkpoint %d: %.4f bits per byte on %s held-out bytes",
            manifest.round,
            result.bits_per_byte,
            f"{result.text_bytes:,}",
        )
        if self._settings.policy.report_evaluation:
            self._client.submit_evaluation(
                manifest=payload_digest(envelope),
                bits_per_byte=round(result.bits_per_byte, 4),
                held_out_bytes=result.text_bytes,
                language=self._settings.node.language,
            )
        return True

    # Rounds

    def _take_plan(
        self, plan: RoundPlan, envelope: Envelope, manifest: Manifest, listener: Listener
    ) -> None:
        """Answer an open plan: decline it, or train and contribute."""
        if plan.genesis != self._membership.genesis:
            raise UntrustedError(f"the plan of round {plan.round} is of another federation")
        if self._has_answered(plan):
            self._evaluate(manifest, envelope)
            return
        if (plan.round, plan.attempt) in self._refused:
            return
        if plan.base != payload_digest(envelope) or plan.round != manifest.round + 1:
            raise UntrustedError(
                f"the plan of round {plan.round} does not start from the newest checkpoint"
            )
        try:
            self._settings.policy.require(plan)
            self._answer(plan, envelope, manifest, listener)
        except UnavailableError:
            raise
        except RejectedError as error:
            _log.warning("round %d: %s", plan.round, error)
            self._refused.add((plan.round, plan.attempt))
            with contextlib.suppress(RejectedError):
                self._client.decline(round_number=plan.round, reason=str(error))

    def _has_answered(self, plan: RoundPlan) -> bool:
        """Whether the plan's round has all it takes from this node, perhaps a late contribution."""
        answered = 0 if plan.is_asynchronous else self._state.answered
        return plan.round <= max(answered, self._state.contributed)

    def _answer(
        self, plan: RoundPlan, envelope: Envelope, manifest: Manifest, listener: Listener
    ) -> None:
        """Send what is spooled for a plan that the policy allows, or train and send that."""
        if plan.max_staleness != self._state.max_staleness:
            self._state = replace(self._state, max_staleness=plan.max_staleness)
            self._home.save_state(self._state)
        trainer = self._ready_trainer(plan, manifest, envelope)
        self._evaluate(manifest, envelope)
        spooled = find_spooled(self._home, plan, trainer.layout)
        if spooled is None:
            self._settle(trainer, plan)
            if self._has_answered(plan):
                return
            spooled = self._train(plan, trainer, self._checkpoint(manifest, envelope), listener)
        if spooled is not None:
            self._contribute(spooled)

    def _ready_trainer(self, plan: RoundPlan, manifest: Manifest, envelope: Envelope) -> Trainer:
        folder = self._checkpoint(manifest, envelope)
        if self._trainer is None:
            self._trainer = self._make_trainer(folder, plan.inner.sequence_tokens)
        if plan.shared is not None:
            self._trainer.use_pool(self._pool(plan), plan.shared.pool_digest)
        return self._trainer

    def _make_trainer(self, checkpoint: Path, sequence_tokens: int) -> Trainer:
        self._write_progress("reading and packing the corpus")
        return Trainer(
            self._home,
            self._settings.node,
            self._state.objective,
            checkpoint,
            self._data,
            sequence_tokens=sequence_tokens,
        )

    def _pool(self, plan: RoundPlan) -> Path:
        """Return the federation's open pool, fetched if it is not here."""
        if plan.shared is None:
            raise ValueError("the plan has no shared slice")
        target = self._home.folder / "pool" / f"{plan.shared.pool_digest}.txt"
        if not target.is_file():
            entry = FileEntry(
                name="pool.txt",
                size_bytes=plan.shared.pool_bytes,
                digest=plan.shared.pool_digest,
            )
            parts = self._home.folder / "pool" / ".parts"
            fetched = self._client.fetcher.fetch(entry, parts)
            sync_path(fetched)
            fetched.rename(target)
        return target

    def _train(
        self, plan: RoundPlan, trainer: Trainer, checkpoint: Path, listener: Listener
    ) -> Spooled | None:
        """Take the inner steps and spool the result; None if the round went on without us."""
        began = time.monotonic()
        _log.info("round %d: %d inner steps", plan.round, plan.inner.steps)
        watch = _StepWatch(
            self, plan, listener, began, max_staleness=self._settings.policy.lateness(plan)
        )
        optimizer, base, losses = trainer.train_round(
            plan,
            checkpoint,
            previous_state=self._newest_trainer_state(),
            on_step=watch,
        )
        if len(losses) < plan.inner.steps:
            _log.warning(
                "round %d: stopped after %d inner steps; it begins anew if it is still open at the "
                "next start",
                plan.round,
                len(losses),
            )
            return None
        seconds = time.monotonic() - began
        _log.info(
            "round %d: trained, loss %.3f to %.3f, %.0f tokens/s",
            plan.round,
            losses[0],
            losses[-1],
            plan.inner.tokens / seconds,
        )
        return trainer.spool(
            plan,
            base,
            optimizer,
            losses,
            member_id=self._membership.member_id,
            key=self._signing_key,
            seconds=seconds,
        )

    def _newest_trainer_state(self) -> Path | None:
        """Return the inner optimizer's state after the newest contribution with a receipt."""
        return (
            self._home.trainer_state(self._state.contributed) if self._state.contributed else None
        )

    def _settle(self, trainer: Trainer, plan: RoundPlan) -> None:
        """Send older contributions that may still be used, or find out what became of them."""
        late = range(max(1, plan.round - self._settings.policy.lateness(plan)), plan.round)
        for spooled in find_unsettled(self._home, trainer.layout, late=late):
            try:
                self._contribute(spooled)
            except UnavailableError:
                raise
            except RejectedError as error:
                _log.warning("round %d: not taken: %s", spooled.contribution.round, error)
                trainer.keep_refused(spooled)

    def _contribute(self, spooled: Spooled) -> None:
        """Send a spooled contribution; nothing is deleted before the receipt is durable here."""
        number = spooled.contribution.round
        self._write_progress(f"sending the contribution to round {number}")
        with spooled.becoming_durable():
            receipt_envelope = self._client.upload(
                spooled.contribution,
                spooled.envelope,
                spooled.digests,
                spooled.read_fragment,
                on_bytes=lambda _size: self._write_progress(None),
            )
        what = f"receipt of round {number}"
        receipt = Receipt.opened(receipt_envelope, public_key=self._coordinator_key, what=what)
        if receipt.contribution != payload_digest(spooled.envelope):
            raise RejectedError(
                f"{what}: is for another contribution of this node, {receipt.contribution[:16]}: "
                "it had sent one before it lost its state"
            )
        sent = spooled.size_bytes
        write_atomic(
            self._home.folder / "receipts" / f"{spooled.folder.name}.json",
            to_json(receipt_envelope),
        )
        self._state = replace(
            self._state,
            contributed=max(number, self._state.contributed),
            answered=max(number, receipt.used_round, self._state.answered),
        )
        self._home.save_state(self._state)
        accept_residual(spooled.folder, self._home.residual)
        spooled.remove(self._home.spare_spools)
        used = f", used in round {receipt.used_round}" if receipt.used_round > number else ""
        _log.info("round %d: contributed (%s bytes)%s", number, f"{sent:,}", used)

    def _renew_if_due(self, listener: Listener) -> None:
        """Renew the member certificate at half of its life."""
        begin, end = self._home.identity.validity()
        if datetime.now(UTC) > begin + (end - begin) / 2:
            old = self._client
            old.renew()
            self._client = self._connect()
            listener.reconnect()
            old.close()
            _log.info("member certificate renewed")

    # What people see

    def on_step(self, plan: RoundPlan, report: StepReport, *, seconds: float) -> None:
        """Show a step's figures."""
        progress = self._progress
        progress.round, progress.step, progress.steps = plan.round, report.step, plan.inner.steps
        progress.loss = report.loss
        progress.tokens_per_second = report.tokens * report.step / max(seconds, 1e-9)
        self._write_progress("training")

    def report(self, plan: RoundPlan) -> None:
        """Tell the coordinator how far this node is, if the policy lets it."""
        if self._settings.policy.report_progress:
            with contextlib.suppress(RejectedError):
                self._client.report(
                    round_number=plan.round,
                    step=self._progress.step,
                    steps=self._progress.steps,
                    loss=round(self._progress.loss, 3),
                    speed=round(self._progress.tokens_per_second),
                )

    def staleness(self, plan: RoundPlan, newest: Envelope) -> int:
        """Return by how many rounds an answer to `plan` is late once `newest` is out."""
        if payload_digest(newest) == plan.base:
            return 0
        manifest = Manifest.opened(newest, public_key=self._coordinator_key, what="manifest")
        return manifest.round + 1 - plan.round

    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def _write_progress(self, doing: str | None) -> None:
        """Write `progress.json`; at most twice a second unless `doing` changed."""
        now = time.monotonic()
        changed = doing is not None and doing != self._progress.doing
        if doing is not None:
            self._progress.doing = doing
        self._progress.bytes_sent = self._ledger.bytes_sent
        if changed or now - self._progress_written >= _PROGRESS_SECONDS:
            self._progress_written = now
            with contextlib.suppress(OSError):
                temporary = self._home.progress.with_suffix(".part")
                temporary.write_text(json.dumps(asdict(self._progress)), encoding="utf-8")
                temporary.replace(self._home.progress)


class _StepWatch:
    """Called after each inner step: shows, reports, and says when to stop."""

    def __init__(
        self,
        daemon: Daemon,
        plan: RoundPlan,
        listener: Listener,
        began: float,
        *,
        max_staleness: int,
    ) -> None:
        self._daemon = daemon
        self._max_staleness = max_staleness
        self._newest: Envelope | None = None
        self._plan = plan
        self._listener = listener
        self._began = began
        self._reported = began
        self._logged = began

    def __call__(self, report: StepReport) -> bool:
        now = time.monotonic()
        self._daemon.on_step(self._plan, report, seconds=now - self._began)
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._daemon.report(self._plan)
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            _log.info(
                "round %d: step %d of %d, loss %.3f",
                self._plan.round,
                report.step,
                self._plan.inner.steps,
                report.loss,
            )
        return not self._daemon.is_stopping() and not self._is_over()

    def _is_over(self) -> bool:
        """Whether the coordinator has published a checkpoint that makes this answer too late."""
        told = self._listener.newest
        if told is None or told.manifest == self._newest:
            return False
        self._newest = told.manifest
        staleness = self._daemon.staleness(self._plan, told.manifest)
        if staleness <= 0:
            return False
        if staleness <= self._max_staleness:
            _log.info(
                "round %d closed before this node had finished; it goes on, for round %d",
                self._plan.round,
                self._plan.round + staleness,
            )
            return False
        _log.warning("round %d closed before this node had finished", self._plan.round)
        return True


def _is_sound(checkpoint: Path, manifest: Manifest, envelope: Envelope) -> bool:
    """Whether the files of a checkpoint that an earlier process fetched are what they should be."""
    try:
        return (checkpoint / MANIFEST_FILE).read_bytes() == to_json(envelope) and all(
            file_entry(checkpoint, entry.name) == entry for entry in manifest.files
        )
    except OSError:
        return False


def _scores(progress: Path) -> dict[str, float]:
    """Return the scores of checkpoints that an earlier process wrote down."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        scores: dict[str, float] = json.loads(progress.read_text(encoding="utf-8"))["bits_per_byte"]
        return {str(number): float(score) for number, score in scores.items()}
    return {}


def _size_of(paths: Sequence[Path]) -> int:
    """Return the bytes of the institution's files."""
    files = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p])]
    return sum(f.stat().st_size for f in files if f.is_file())
