"""The node's daemon, which is its guard: waits for plans, has them trained, looks, sends, measures.

It owns the connection and the keys, and can be restarted at any point. Training is done by another
process, which has neither (`training`). The listener's thread keeps the newest state that the
coordinator told; the main thread acts on it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.errors import RejectedError, TapestryError, UnavailableError, UntrustedError
from tapestry.identity.envelopes import Envelope
from tapestry.identity.keys import public_bytes
from tapestry.identity.membership import CONTRIBUTOR
from tapestry.objectives.reports import StepReport
from tapestry.params.layout import ParameterLayout
from tapestry.wire.allocation import spare_what_is_there
from tapestry.wire.egress import BLOCKED, EgressLedger
from tapestry.wire.kernel import KernelCount
from tapestry_node.awaiting import Awaiting
from tapestry_node.client import Told
from tapestry_node.connecting import Connection
from tapestry_node.consensus import Consensus, Standing
from tapestry_node.declining import Declining
from tapestry_node.departed import require_whole
from tapestry_node.guard import rounded, sealed
from tapestry_node.home import NodeHome
from tapestry_node.keeping import keep_policy
from tapestry_node.listener import FIRST_BACKOFF_SECONDS, Listener
from tapestry_node.measuring import Measuring
from tapestry_node.progress import Progress, ProgressFile
from tapestry_node.sending import Sending
from tapestry_node.spool import Spooled, find_spooled
from tapestry_node.tending import TendedTrainer
from tapestry_node.trainer_process import TrainerLostError
from tapestry_node.watching import StepWatch
from tapestry_node.witnessing import Witness

_log = logging.getLogger(__name__)

_MAX_BACKOFF_SECONDS = 10.0
"""For what the coordinator cannot do now."""
_POLL_SECONDS = 0.5


class Daemon:
    """One node at work."""

    def __init__(
        self,
        home: NodeHome,
        data: Sequence[Path],
        *,
        until_finished: bool,
        processes: int | None = None,
        show: Callable[[Progress], None] | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            home: The node's folder.
            data: The institution's text.
            until_finished: Return once the federation plans no further round.
            processes: That train together; None: as the settings say.
            show: Called when what the node does has changed, for a terminal.

        Raises:
            UntrustedError: The record of what left was changed, or the certificate is not valid.
        """
        self._home = home
        self._data = list(data)
        self._until_finished = until_finished
        self._settings = home.load_settings().with_processes(processes)
        self._membership = home.identity.load()
        self._signing_key = home.identity.signing_key()
        self._coordinator_key = bytes.fromhex(self._membership.coordinator_key)
        require_whole(home, now=time.time())  # noqa: TID251 - the edge that owns the clock
        self._ledger = EgressLedger(
            home.egress,
            to=self._membership.address,
            clock=time.time,  # noqa: TID251 - the edge that owns the clock
        )
        self._ledger.allowed_by = self._settings.policy.digest()
        keep_policy(home, self._settings.policy)
        self._kernel = KernelCount(
            self._ledger,
            clock=time.time,  # noqa: TID251 - the edge that owns the clock
        )
        self._standing = Standing(home)
        self._progress = ProgressFile(
            home.progress,
            self._data,
            clock=time.time,  # noqa: TID251 - the edge that owns the clock
            bytes_sent=lambda: self._ledger.bytes_sent,
            show=show,
        )
        self._progress.now.policy = self._settings.policy.digest()
        self._consensus = Consensus(
            home,
            self._membership,
            self._standing,
            fetcher=lambda: self._connection.client.fetcher,
            tell=self._progress.write,
            on_bytes=self._progress.count,
        )
        self._witness = Witness(
            home,
            self._membership,
            self._signing_key,
            shown=lambda: self._connection.client.ledger,
            clock=time.time,  # noqa: TID251 - the edge that owns the clock
        )
        self._trainer = TendedTrainer(
            home,
            self._settings.node,
            self._data,
            self._standing,
            self._progress,
            on_blocked=self._note_blocked,
        )
        self._measuring = Measuring(
            home,
            self._settings,
            self._trainer,
            consensus=self._consensus,
            standing=self._standing,
            progress=self._progress,
            client=lambda: self._connection.client,
        )
        self._unavailable = ""
        """What was said last of what cannot be done now."""
        self._declining = Declining(lambda: self._connection.client)
        self._awaiting = Awaiting(home, self._settings.policy, self._ledger, self._progress)
        self._stopping = threading.Event()
        self._connection = Connection(self._membership, home.identity, self._ledger)
        self._sending = Sending(
            home,
            self._settings,
            self._awaiting,
            standing=self._standing,
            progress=self._progress,
            witness=self._witness,
            ledger=self._ledger,
            kernel=self._kernel,
            keys=(public_bytes(self._signing_key), self._coordinator_key),
            client=lambda: self._connection.client,
        )

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
        self._trainer.begin()
        self._kernel.start()
        listener = Listener(self._connection.valid)
        version, backoff = 0, FIRST_BACKOFF_SECONDS
        try:
            while not self._stopping.is_set():
                newest, told = listener.wait(after=version, timeout_seconds=1.0)
                streams = listener.streams
                self._progress.line(is_told=listener.is_told)
                try:
                    self._connection.renew_if_due(listener)
                    if told is None or (newest == version and not self._awaiting.has_decision()):
                        continue
                    version = newest
                    if self._act(told, listener):
                        return
                    backoff, self._unavailable = FIRST_BACKOFF_SECONDS, ""
                except (UnavailableError, OSError) as error:
                    self._tell_unavailable(error)
                    version -= 1
                    self._wait(listener, streams=streams, seconds=backoff)
                    backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)
        except TapestryError as error:
            self._progress.now.failure = str(error)
            raise
        finally:
            listener.stop()
            self._trainer.end()
            self._progress.end()
            _log.info("stopped")
            self._kernel.stop()
            self._connection.client.close()
            self._ledger.close()

    def _tell_unavailable(self, error: UnavailableError | OSError) -> None:
        """Say what cannot be done now, and have another trainer started if that is gone."""
        if isinstance(error, TrainerLostError):
            self._trainer.replace(error)
        words, is_launched = str(error), self._trainer.is_launched
        if not (is_launched and words == self._unavailable):  # a queue may take hours: told once
            _log.warning("%s; trying again", words)
        self._unavailable = words
        if is_launched:
            self._progress.write(words)

    def _wait(self, listener: Listener, *, streams: int, seconds: float) -> None:
        """Wait before trying again: for a line that is down, until it comes back."""
        deadline = time.monotonic() + seconds
        while not self._stopping.is_set():
            self._progress.line(is_told=listener.is_told)
            if listener.wait_for_stream(after=streams, timeout_seconds=min(seconds, _POLL_SECONDS)):
                return
            if listener.is_told and time.monotonic() >= deadline:
                return

    def _act(self, told: Told, listener: Listener) -> bool:
        """Do what the state asks for; return whether the node is done."""
        self._awaiting.clear()
        self._witness.take(told.ledger_head)
        manifest = self._consensus.take(told.manifest)
        self._witness.require(payload_digest(told.manifest), manifest.round)
        if told.plan is not None:
            plan = RoundPlan.opened(
                told.plan, public_key=self._coordinator_key, what="round plan, not trained on"
            )
            self._witness.require_plan(payload_digest(told.plan), plan.round)
            plan = self._settings.policy.asked(plan, self._membership.member_id)
            self._take_plan(plan, told.manifest, manifest, listener)
        else:
            self._measuring.evaluate(manifest, told.manifest)
            if told.candidate is not None:
                self._measuring.measure_candidate(told.candidate, told.manifest, manifest)
        if not self._awaiting:
            self._progress.write(told.notice)
        if told.is_finished:
            waits = "" if self._until_finished else "; waiting in case it goes on (Ctrl-C ends)"
            _log.info("the federation plans no further round%s", waits)
        return told.is_finished and self._until_finished

    # Rounds

    def _take_plan(
        self, plan: RoundPlan, envelope: Envelope, manifest: Manifest, listener: Listener
    ) -> None:
        """Answer an open plan: decline it, or train and contribute."""
        if plan.genesis != self._membership.genesis:
            raise UntrustedError(f"the plan of round {plan.round} is of another federation")
        if self._membership.role != CONTRIBUTOR or self._standing.has_answered(plan):
            self._measuring.evaluate(manifest, envelope)
            return
        if self._declining.is_declined(plan):
            self._declining.tell(plan)
            return
        if plan.base != payload_digest(envelope) or plan.round != manifest.round + 1:
            raise UntrustedError(
                f"the plan of round {plan.round} does not start from the newest checkpoint"
            )
        try:
            self._settings.policy.require(plan)
            self._require_witnesses(plan)
            self._answer(plan, envelope, manifest, listener)
        except RejectedError as error:
            self._declining.decline(plan, str(error))

    def _require_witnesses(self, plan: RoundPlan) -> None:
        """Wait, and show it, until as many members have seen the base as the plan asks for.

        Raises:
            UnavailableError: Not yet.
        """
        try:
            self._witness.require_witnesses(plan.witnesses)
        except UnavailableError as error:
            self._progress.write(str(error))
            raise

    def _answer(
        self, plan: RoundPlan, envelope: Envelope, manifest: Manifest, listener: Listener
    ) -> None:
        """Send what is spooled for a plan that the policy allows, or train and send that."""
        if plan.max_staleness != self._standing.state.max_staleness:
            self._standing.change(max_staleness=plan.max_staleness)
        layout = self._ready_for(plan, manifest, envelope)
        self._measuring.evaluate(manifest, envelope)
        spooled = find_spooled(self._home, plan, layout, key=public_bytes(self._signing_key))
        if spooled is None:
            self._sending.settle(layout, plan)
            if self._standing.has_answered(plan):
                return
            checkpoint = self._consensus.checkpoint(manifest, envelope)
            spooled = self._train(plan, layout, checkpoint, listener)
        if spooled is not None:
            self._sending.send(spooled, layout)

    # The trainer

    def _note_blocked(self, call: str, to: str) -> None:
        """Put on record that the trainer has tried to reach a network."""
        _log.warning("the trainer tried %s to %s: stopped, and on record", call, to)
        self._ledger.record(BLOCKED + call, b"", to=to)

    def _ready_for(
        self, plan: RoundPlan, manifest: Manifest, envelope: Envelope
    ) -> ParameterLayout:
        """Let the trainer prepare what a plan needs; return the vector's layout."""
        folder = self._consensus.checkpoint(manifest, envelope)
        layout = self._trainer.layout or self._trainer.prepare(folder, plan.inner.sequence_tokens)
        if plan.shared is not None:
            self._trainer.ready().use_pool(self._consensus.pool(plan), plan.shared.pool_digest)
        return layout

    def _train(
        self, plan: RoundPlan, layout: ParameterLayout, checkpoint: Path, listener: Listener
    ) -> Spooled | None:
        """Have the inner steps taken and the result spooled; None if the round went on without."""
        began = time.monotonic()
        _log.info("round %d: %d inner steps", plan.round, plan.inner.steps)
        watch = StepWatch(self, plan, listener, began, self._settings.policy.lateness(plan))

        def on_step(report: StepReport) -> bool:
            self._progress.line(is_told=listener.is_told)
            return watch(report)

        steps, first, last = self._trainer.train(
            plan, checkpoint, on_step=on_step, keeps_last=self.is_stopping
        )
        if steps < plan.inner.steps:
            _log.warning(
                "round %d: stopped after %d inner steps; it goes on from what was kept if it is "
                "still open at the next start",
                plan.round,
                steps,
            )
            return None
        seconds = time.monotonic() - began + self._trainer.ready().seconds_before
        _log.info(
            "round %d: trained, loss %.3f to %.3f, %.0f tokens/s",
            plan.round,
            first,
            last,
            plan.inner.tokens / seconds,
        )
        trainer = self._trainer.ready()
        try:
            spooled = sealed(
                self._home,
                plan,
                lambda file, look: trainer.write(file, on_fragment=look),
                layout=layout,
                policy=self._settings.policy,
                member_id=self._membership.member_id,
                key=self._signing_key,
                seconds=seconds,
            )
        except RejectedError:
            self._home.unfinished.unlink(missing_ok=True)  # it would be refused again
            raise
        self._home.unfinished.unlink(missing_ok=True)
        return spooled

    # What people see

    def on_step(self, plan: RoundPlan, report: StepReport, *, seconds: float) -> None:
        """Show a step's figures."""
        seconds += self._trainer.ready().seconds_before
        self._progress.step(
            plan.round,
            report.step,
            plan.inner.steps,
            loss=report.loss,
            speed=report.tokens * report.step / max(seconds, 1e-9),
            tokens=report.tokens,
        )

    def report(self, plan: RoundPlan) -> None:
        """Tell the coordinator how far this node is, if the policy lets it."""
        if self._settings.policy.report_progress:
            now = self._progress.now
            with contextlib.suppress(RejectedError, UnavailableError):
                self._connection.client.report(
                    round_number=plan.round,
                    step=now.step,
                    steps=now.steps,
                    loss=rounded(now.loss),
                    speed=rounded(now.tokens_per_second),
                )

    def staleness(self, plan: RoundPlan, newest: Envelope) -> int:
        """Return by how many rounds an answer to `plan` is late once `newest` is out."""
        return self._consensus.staleness(plan, newest)

    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()
