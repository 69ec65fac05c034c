"""The coordinator's desk: the round's state, who is here, and what is announced.

All threads of the service meet here. One lock guards the state; every change is stored in the
registry before it shows.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.policy import NoHarmPolicy
from tapestry.checkpoints.statements import (
    payload_digest,
)
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.actions import Action, pause_in_force
from tapestry_coordinator.announcing import Announcement, notice
from tapestry_coordinator.closed_round import plan_of
from tapestry_coordinator.events import (
    Measured,
    Proposed,
    Published,
    Ruled,
    Tick,
)
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inbox import Inbox
from tapestry_coordinator.ledgering import (
    ledger_origin,
    seal_of,
)
from tapestry_coordinator.live import Live
from tapestry_coordinator.no_harm import dissents
from tapestry_coordinator.planning import Planner
from tapestry_coordinator.policy_history import PolicyVersion
from tapestry_coordinator.published_files import PublishedFiles
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.renewals import Renewals
from tapestry_coordinator.roll import Roll
from tapestry_coordinator.roster import Attendance
from tapestry_coordinator.round_state import Effect, Phase, RoundState
from tapestry_coordinator.rounds import tick
from tapestry_coordinator.settings import CoordinatorSettings
from tapestry_coordinator.standing import Standing
from tapestry_coordinator.testimony import StoredEvaluation

_log = logging.getLogger(__name__)


class Desk:
    """The live state of one coordinator."""

    def __init__(
        self,
        home: CoordinatorHome,
        settings: CoordinatorSettings,
        registry: Registry,
        key: Ed25519PrivateKey,
        *,
        clock: Callable[[], float],
        calendar: Callable[[], float] | None = None,
    ) -> None:
        """Fold the stored events of the current round; stand where the last process stood.

        Args:
            home: Of the coordinator.
            settings: Its operator's.
            registry: What it remembers.
            key: With which plans and receipts are signed.
            clock: Unix seconds by which rounds go, which never jump.
            calendar: Those by which certificates are valid; None takes `clock`.
        """
        self.home = home
        self.settings = settings
        self.registry = registry
        self.key = key
        self.clock = clock
        self.calendar = calendar or clock
        self.live = Live(now=clock())
        self.genesis = home.load_genesis()
        self.origin = ledger_origin(self.genesis)
        """Name of the federation's ledger."""
        self._planner = Planner(home, settings, registry, self.genesis, now=clock())
        self._standing = Standing(
            home,
            registry,
            self._planner,
            key=key,
            seal=seal_of(
                key,
                federation=self.genesis.origin.federation,
                genesis_digest=self.genesis.genesis_digest,
            ),
            clock=clock,
        )
        self._changed = self._standing.changed
        self._roll = Roll(registry, self._standing)
        self.inbox = Inbox(
            registry,
            self._standing,
            self._roll,
            key=key,
            clock=clock,
            deadline_seconds=settings.rounds.deadline_seconds,
        )
        self._pause: Action | None = None
        """By which rounds are paused."""
        self.files = PublishedFiles(home, registry)
        self.cards = Renewals()
        """Rounds whose card is older than their evaluations."""
        self.cards.note(self._standing.newest, at=0.0)
        self.proofs = Renewals()
        """Rounds whose proof in the folder lacks something."""
        self.proofs.note(self._standing.newest, at=0.0)

    @property
    def state(self) -> RoundState:
        """Of the present round, as the database has it."""
        return self._standing.state

    @property
    def policy(self) -> PolicyVersion:
        """In force since the newest plan was made."""
        return self._planner.policy

    # What members see

    @contextmanager
    def present(self, member_id: str) -> Iterator[Callable[[], bool]]:
        """Count a member as connected while the block runs.

        Yields:
            Whether this is still the member's newest connection: an older one, which a broken line
            may have left, gives way, so that nobody occupies more than one place for long.
        """
        with self._changed:
            mine = self._roll.presence.come(member_id)
            self._changed.notify_all()
        try:
            self.pass_time()
            yield lambda: self._roll.presence.newest(member_id) == mine
        finally:
            with self._changed:
                self._roll.presence.go(member_id)

    def announcement(
        self, member_id: str, *, after: int, timeout_seconds: float
    ) -> Announcement | None:
        """Wait for a state newer than version `after`; None if none came in time."""
        with self._changed:
            standing, presence = self._standing, self._roll.presence
            mine = presence.newest(member_id)
            self._changed.wait_for(
                lambda: standing.version > after or presence.newest(member_id) != mine,
                timeout_seconds,
            )
            if standing.version <= after:
                return None
            state = standing.state
            is_mine = state.phase is Phase.OPEN and member_id in state.cohort
            plan = self.registry.plan(state.number, state.attempt) if is_mine else None
            return Announcement(
                version=standing.version,
                plan=plan,
                manifest=standing.manifest,
                candidate=standing.candidate if state.phase is Phase.MEASURING else None,
                is_finished=state.phase is Phase.FINISHED,
                notice=notice(
                    state,
                    member_id,
                    contributors=self._roll.contributors,
                    presence=presence,
                    quorum=self.settings.rounds.quorum,
                    pause=self._pause,
                ),
                ledger_head=standing.head.announced(self.policy.policy.ledger.witnesses),
            )

    def wait_until_closed(self, *, timeout_seconds: float) -> bool:
        """Wait until the round is to be aggregated; tell whether it is."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.state.phase in (Phase.AGGREGATING, Phase.RELEASING), timeout_seconds
            )

    def wake(self) -> None:
        """Make every waiting stream look again (shutting down)."""
        with self._changed:
            self._standing.announce()

    # What changes the round

    def pass_time(self, *, look: bool = True) -> None:
        """Let time go by: open, close or plan again what is due.

        Args:
            look: Read what other processes may have written: members, pauses, rulings. With
                hundreds of members that is most of what an idle coordinator does.
        """
        with self._changed:
            self._standing.refresh()
            has_looked = look or not self._roll.is_known
            if has_looked:
                self._look()
            event = self._tick()
            _after, effects = tick(self.state, event, now=self.clock())
            if effects and not has_looked:  # what opens or closes goes by what is written now
                self._look()
                event = self._tick()
                _after, effects = tick(self.state, event, now=self.clock())
            if Effect.ANNOUNCE_PLAN in effects and self._planner.take_newest_policy():
                event = self._tick()  # it may go at another pace
            if Effect.ANNOUNCE_PLAN in self._standing.advance(event):
                self._roll.presence.returned.clear()

    def _tick(self) -> Tick:
        """Return how things stand, under the policy in force."""
        return self._roll.tick(
            self.settings.rounds.rules(), self.policy.policy, is_paused=self._pause is not None
        )

    def _look(self) -> None:
        """Take up what operators have done since."""
        self._note_pause(pause_in_force(self.registry))
        self._take_ruling()
        self._roll.call()

    @property
    def pause_reason(self) -> str | None:
        """Why no further round opens, in the operator's words; None while rounds go on."""
        with self._changed:
            return None if self._pause is None else self._pause.detail

    def _note_pause(self, pause: Action | None) -> None:
        """Tell the members when rounds are paused, or are so no more."""
        if pause != self._pause:
            self._pause = pause
            _log.warning("resumed" if pause is None else f"paused by {pause.who}: {pause.detail}")
            self._standing.announce()

    def note_who_left(self) -> None:
        """Let the round go on without members that were revoked since anybody looked.

        To be called before somebody who was revoked becomes a member again.
        """
        with self._changed:
            self._standing.refresh()
            self._roll.call()

    def propose(self, envelope: Envelope, gate: NoHarmPolicy) -> None:
        """Let members measure a checkpoint that lies in its candidate's folder, unless they do."""
        with self._changed:
            self._standing.refresh()
            if self.state.phase is not Phase.AGGREGATING:
                return
            self._standing.candidate = envelope
            self.files.index(self.state.number)
            until = self.clock() + gate.evaluation_seconds
            holds = gate.action == "hold"
            digest = payload_digest(envelope)
            self._standing.advance(Proposed(manifest=digest, holds=holds, until=until))

    def note_cosignature(self, size: int) -> None:
        """Tell the members when enough have cosigned the newest head; renew a proof some time."""
        with self._changed:
            self.proofs.note(self._standing.newest, at=self.clock())
            if size == self._standing.head.size:
                before, asked = len(self._standing.head.lines), self.policy.policy.ledger.witnesses
                self._standing.read_head()
                if asked > 1 and before < asked <= len(self._standing.head.lines):
                    self._standing.announce()

    def _measured_candidate(self, evaluation: StoredEvaluation) -> None:
        """Take what a member says of the candidate as its voice."""
        with self._changed:
            self._standing.refresh()
            if self.state.phase is not Phase.MEASURING or evaluation.round != self.state.number:
                return
            plan, _signed = plan_of(self.registry, self.state)
            found = dissents(
                self.registry.evaluations(since=evaluation.round - 1),
                round_number=evaluation.round,
                max_worse=self.registry.policy(plan.policy).no_harm.max_worse,
            )
            words = {dissent.member_id: dissent.words for dissent in found}
            mine = words.get(evaluation.member_id, "")
            self._standing.advance(Measured(member_id=evaluation.member_id, dissent=mine))

    def _take_ruling(self) -> None:
        """Do what the operator has decided about a candidate."""
        if self.state.phase in (Phase.MEASURING, Phase.HELD):
            ruling = self.registry.ruling(self.state.number)
            if ruling is not None:
                self._standing.advance(Ruled(is_released=ruling.is_released, reason=ruling.reason))

    def round_of(self, manifest_digest: str) -> int | None:
        """Return the round whose checkpoint, or candidate, has that manifest."""
        with self._changed:
            state = self.state
            if state.phase is Phase.MEASURING and state.candidate == manifest_digest:
                return state.number
        return self.registry.round_of(manifest_digest)

    def publish(self, envelope: Envelope) -> None:
        """Make a checkpoint that lies in its folder the newest consensus, unless it is that."""
        digest = payload_digest(envelope)
        with self._changed:
            self._standing.refresh()
            if payload_digest(self._standing.manifest) != digest:
                self._record(envelope, digest)
            newest = self._standing.newest
            for number in (newest - 1, newest):  # of the one before too: more have cosigned it
                self.proofs.note(number, at=0.0)

    def _record(self, envelope: Envelope, digest: str) -> None:
        """Have the database take a checkpoint as that of the round."""
        self.files.index(self.state.number)
        attendance = Attendance(
            answered=sorted({*self.state.arrived, *self.state.declined}),
            opened_at=self.state.opened_at,
        )
        self._standing.advance(
            Published(manifest=digest), manifest=(digest, envelope), attendance=attendance
        )

    # What can be fetched

    def file(self, digest: str) -> Path:
        """Return the path of a published file.

        Raises:
            RejectedError: Nothing published has that digest.
        """
        pool = self._planner.pool
        if pool is not None and digest == pool[0] and self.home.pool.is_file():
            return self.home.pool
        return self.files.path(digest)

    def evaluate(self, evaluation: StoredEvaluation) -> None:
        """Store what a member measured."""
        now = self.clock()
        self.registry.add_evaluation(evaluation, now=now)
        self._measured_candidate(evaluation)
        self.cards.note(evaluation.round, at=now)
        _log.info(
            "checkpoint %d: %.4f bits per byte on %s of %s",
            evaluation.round,
            evaluation.bits_per_byte,
            evaluation.language,
            evaluation.member_id,
        )

    def here(self) -> list[str]:
        """Return the members that are connected now."""
        with self._changed:
            return self._roll.presence.all()
