"""The coordinator's desk: the round's state, who is here, and what is announced.

All threads of the service meet here. One lock guards the state; every change is stored in the
registry before it shows.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.deciding import require_fit
from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.policy import FederationPolicy, NoHarmPolicy
from tapestry.checkpoints.statements import (
    Contribution,
    RoundPlan,
    payload_digest,
)
from tapestry.errors import RejectedError
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator import failpoints
from tapestry_coordinator.actions import Action, pause_in_force
from tapestry_coordinator.announcing import Announcement, notice
from tapestry_coordinator.events import (
    Arrived,
    Declined,
    Event,
    Left,
    Measured,
    Proposed,
    Published,
    Ruled,
    Tick,
)
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.ledgering import (
    StoredHead,
    ledger_origin,
    seal_of,
)
from tapestry_coordinator.live import Live
from tapestry_coordinator.no_harm import dissents
from tapestry_coordinator.pace import paced, speed_of
from tapestry_coordinator.planning import Planner
from tapestry_coordinator.policy_history import PolicyVersion
from tapestry_coordinator.presence import Presence
from tapestry_coordinator.published_files import PublishedFiles
from tapestry_coordinator.publisher import plan_of
from tapestry_coordinator.receiving import Receiving, receiving
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.renewals import Renewals
from tapestry_coordinator.roster import ACTIVE, CONTRIBUTOR, LEFT, Attendance, Member
from tapestry_coordinator.round_state import Effect, Phase, RoundState
from tapestry_coordinator.rounds import folded, staleness_of, tick
from tapestry_coordinator.settings import CoordinatorSettings
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
        self._seal = seal_of(
            key,
            federation=self.genesis.origin.federation,
            genesis_digest=self.genesis.genesis_digest,
        )
        registry.ledger.have_head(self._seal)
        self._head = registry.ledger.head() or StoredHead(0, "")
        self._planner = Planner(home, settings, registry, self.genesis, now=clock())
        self._changed = threading.Condition()
        self._is_certain = True
        """Whether `state` is what the database has: it may be gone while it takes an event."""
        self._version = 0
        self._presence = Presence()
        self._pause: Action | None = None
        """By which rounds are paused."""
        self._enrolled: list[Member] = []
        """Active contributors, as the database last had them."""
        self._is_enrolled_known = False
        """Whether nothing of ours was recorded since `_enrolled` was read."""
        self._contributors: frozenset[str] = frozenset()
        self._newest = registry.newest_round() or 0
        self._manifest = registry.lineage()[-1]
        self.state = self._recovered(self._newest + 1)
        self.files = PublishedFiles(home, registry)
        self.cards = Renewals()
        """Rounds whose card is older than their evaluations."""
        self.cards.note(self._newest, at=0.0)
        self.proofs = Renewals()
        """Rounds whose proof in the folder lacks something."""
        self.proofs.note(self._newest, at=0.0)
        self._candidate = self._recovered_candidate()

    def _refresh(self) -> None:
        """Stand where the database stands, if it did not say whether it took the last event."""
        if self._is_certain:
            return
        lineage = self.registry.lineage()
        self._newest, self._manifest = len(lineage) - 1, lineage[-1]
        self._head = self.registry.ledger.head() or self._head
        self.state = self._recovered(self._newest + 1)
        self._candidate = self._recovered_candidate()
        self._is_certain = True
        self._version += 1
        self._changed.notify_all()

    @property
    def policy(self) -> PolicyVersion:
        """In force since the newest plan was made."""
        return self._planner.policy

    def _recovered(self, number: int) -> RoundState:
        state = folded(number, self.registry.round_events(number))
        if state.phase is not Phase.WAITING:
            _log.info("round %d goes on: %s", number, state.phase)
        return state

    def _recovered_candidate(self) -> Envelope | None:
        """Return the manifest of what members are measuring; None once the operator has ruled."""
        if self.state.phase is not Phase.MEASURING:
            return None
        if self.registry.ruling(self.state.number) is not None:
            return None
        path = self.home.candidate(self.state.number) / MANIFEST_FILE
        return read_envelope(path, what="candidate's manifest")

    # What members see

    @contextmanager
    def present(self, member_id: str) -> Iterator[Callable[[], bool]]:
        """Count a member as connected while the block runs.

        Yields:
            Whether this is still the member's newest connection: an older one, which a broken line
            may have left, gives way, so that nobody occupies more than one place for long.
        """
        with self._changed:
            mine = self._presence.come(member_id)
            self._changed.notify_all()
        self.pass_time()
        try:
            yield lambda: self._presence.newest(member_id) == mine
        finally:
            with self._changed:
                self._presence.go(member_id)

    def announcement(
        self, member_id: str, *, after: int, timeout_seconds: float
    ) -> Announcement | None:
        """Wait for a state newer than version `after`; None if none came in time."""
        with self._changed:
            mine = self._presence.newest(member_id)
            self._changed.wait_for(
                lambda: self._version > after or self._presence.newest(member_id) != mine,
                timeout_seconds,
            )
            if self._version <= after:
                return None
            state = self.state
            is_mine = state.phase is Phase.OPEN and member_id in state.cohort
            plan = self.registry.plan(state.number, state.attempt) if is_mine else None
            return Announcement(
                version=self._version,
                plan=plan,
                manifest=self._manifest,
                candidate=self._candidate if state.phase is Phase.MEASURING else None,
                is_finished=state.phase is Phase.FINISHED,
                notice=notice(
                    state,
                    member_id,
                    contributors=self._contributors,
                    presence=self._presence,
                    quorum=self.settings.rounds.quorum,
                    pause=self._pause,
                ),
                ledger_head=self._head.announced(self.policy.policy.ledger.witnesses),
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
            self._version += 1
            self._changed.notify_all()

    # What changes the round

    def pass_time(self, *, look: bool = True) -> None:
        """Let time go by: open, close or plan again what is due.

        Args:
            look: Read what other processes may have written: members, pauses, rulings. With
                hundreds of members that is most of what an idle coordinator does.
        """
        with self._changed:
            self._refresh()
            has_looked = look or not self._is_enrolled_known
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
            self._apply(event)

    def _look(self) -> None:
        """Take up what operators have done since."""
        self._note_pause(pause_in_force(self.registry))
        self._take_ruling()
        self._look_who_left()

    def _tick(self) -> Tick:
        """Return how things stand, under the policy in force."""
        enrolled = self._enrolled
        ready = sorted(m.member_id for m in enrolled if self._presence.is_here(m.member_id))
        idle = {m.member_id for m in enrolled if self._is_idle(m)}
        active = len(enrolled) - len(idle)
        return Tick(
            ready=tuple(ready),
            enrolled=active,
            rules=paced(self.settings.rounds.rules(), self.policy.policy.pace, active=active),
            inactive=tuple(member_id for member_id in ready if member_id in idle),
            is_paused=self._pause is not None,
        )

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
            self._version += 1
            self._changed.notify_all()

    def _is_idle(self, member: Member) -> bool:
        """Whether a member has missed so many rounds that the next one does not wait for it."""
        after = self.policy.policy.activity.inactive_after
        has_missed = 0 < after <= member.missed_rounds
        return has_missed and member.member_id not in self._presence.returned

    def note_who_left(self) -> None:
        """Let the round go on without members that were revoked since anybody looked.

        To be called before somebody who was revoked becomes a member again.
        """
        with self._changed:
            self._refresh()
            self._look_who_left()

    def _look_who_left(self) -> None:
        """Read who contributes, and go on without those who are members no more.

        What a revoked member handed in counts no more, unless its round has closed; what one handed
        in that then left by itself does.
        """
        members = self.registry.members()
        self._enrolled = [m for m in members if (m.status, m.role) == (ACTIVE, CONTRIBUTOR)]
        self._is_enrolled_known = True
        self._contributors = frozenset(m.member_id for m in self._enrolled)
        standing = {m.member_id for m in members if m.status in (ACTIVE, LEFT)}
        if self.state.phase in (Phase.WAITING, Phase.OPEN, Phase.MEASURING):
            asked = {*self.state.cohort, *self.state.arrived}
            for member_id in sorted(asked - self._contributors - set(self.state.left)):
                self._let_go(member_id, is_standing=member_id in standing)

    def _let_go(self, member_id: str, *, is_standing: bool) -> None:
        """Go on without somebody who contributes no more; who only changed its role has done so."""
        number = self.state.number
        if member_id not in self.state.arrived:
            self._apply(Left(member_id=member_id, reason="not a member any more"))
        elif not is_standing:
            stored = self.registry.contributions(number)
            tokens = sum(s.declared.tokens for s in stored if s.member_id == member_id)
            reason = "not a member any more when the round closed"
            self._apply(Left(member_id=member_id, reason=reason, tokens=tokens))

    def decline(self, member_id: str, *, round_number: int, reason: str) -> None:
        """Record that a member will not answer the open plan.

        Raises:
            RejectedError: That round is not open, or not this member's.
        """
        with self._changed:
            self._refresh()
            if round_number != self.state.number:
                raise RejectedError(
                    f"round {round_number} is over, round {self.state.number} is "
                    f"{self.state.phase}: wait for the next plan"
                )
            self._look_who_left()
            self._apply(Declined(member_id=member_id, reason=reason))
        _log.warning("round %d: %s declined: %s", round_number, member_id, reason)

    def require_upload(
        self, member_id: str, *, round_number: int, base: str, codec: str
    ) -> RoundPlan:
        """Return the plan that an upload answers; refuse one that the round would not take.

        Raises:
            RejectedError: Wrong round, base or codec.
            UnavailableError: The next round takes it.
        """
        with self._changed:
            plan, _staleness = self._answered(round_number, member_id)
        if base != plan.base:
            raise RejectedError(
                f"{member_id} trained from {base[:12]}, round {round_number} starts from "
                f"{plan.base[:12]}: fetch the base checkpoint again"
            )
        if codec != plan.codec:
            raise RejectedError(f"codec {codec!r:.40}: round {round_number} asks for {plan.codec}")
        return plan

    def policy_of(self, member_id: str, *, round_number: int) -> FederationPolicy:
        """Return the policy of the plan that a contribution answers.

        Raises:
            RejectedError: No round takes it.
            UnavailableError: The next round takes it.
        """
        with self._changed:
            plan, _staleness = self._answered(round_number, member_id)
        return self.registry.policy(plan.policy)

    def receipt(self, member_id: str, *, round_number: int) -> Envelope | None:
        """Return the receipt of a contribution that was committed before."""
        if round_number > self.state.number:
            return None
        stored = self.registry.contribution(round_number, member_id)
        return None if stored is None else stored.receipt

    def commit(
        self, member: Member, contribution: Contribution, envelope: Envelope, *, norm: float
    ) -> Envelope:
        """Take a durable contribution into the round; return its receipt.

        Args:
            member: Who has signed it.
            contribution: What it says.
            envelope: As it was signed.
            norm: Of what it decodes to.

        Raises:
            RejectedError: No round takes it.
            UnavailableError: The next round takes it.
        """
        member_id = member.member_id
        with self._changed:
            self._refresh()
            self._look_who_left()
            plan, staleness = self._answered(contribution.round, member_id)
            require_fit(contribution, plan.of(member_id))
            now = self.clock()
            arriving = receiving(
                plan,
                contribution,
                envelope,
                member=member,
                norm=norm,
                staleness=staleness,
                now=now,
                key=self.key,
            )
            arrived = Arrived(
                member_id=member_id,
                digest=payload_digest(envelope),
                tokens=contribution.tokens,
                staleness=staleness,
            )
            speed = speed_of(
                contribution.tokens,
                seconds=contribution.metrics.get("seconds", 0.0),
                at_most_seconds=now - self._begun_at(contribution.round),
            )
            self._apply(arrived, contribution=arriving, speed=speed)
            stored = arriving.stored
            count, cohort = len(self.state.arrived), len(self.state.cohort)
        late = f", {staleness} rounds late" if staleness else ""
        _log.info(
            "round %d: %s is in%s (%d of %d)", stored.used_round, member_id, late, count, cohort
        )
        return stored.receipt

    def _begun_at(self, number: int) -> float:
        """Return when a round was planned first: since then members may have trained for it."""
        first = self.registry.plan(number, 1)
        if first is None:
            return self.clock()
        deadline = RoundPlan.parsed(first.payload, what=f"plan of round {number}").deadline
        return deadline - self.settings.rounds.deadline_seconds

    def propose(self, envelope: Envelope, gate: NoHarmPolicy) -> None:
        """Let members measure a checkpoint that lies in its candidate's folder, unless they do."""
        with self._changed:
            self._refresh()
            if self.state.phase is not Phase.AGGREGATING:
                return
            self._candidate = envelope
            self.files.index(self.state.number)
            until = self.clock() + gate.evaluation_seconds
            holds = gate.action == "hold"
            digest = payload_digest(envelope)
            self._apply(Proposed(manifest=digest, holds=holds, until=until))

    def note_cosignature(self, size: int) -> None:
        """Tell the members when enough have cosigned the newest head; renew a proof some time."""
        with self._changed:
            self.proofs.note(self._newest, at=self.clock())
            if size == self._head.size:
                before, asked = len(self._head.lines), self.policy.policy.ledger.witnesses
                self._head = self.registry.ledger.head() or self._head
                if asked > 1 and before < asked <= len(self._head.lines):
                    self._version += 1
                    self._changed.notify_all()

    def _measured_candidate(self, evaluation: StoredEvaluation) -> None:
        """Take what a member says of the candidate as its voice."""
        with self._changed:
            self._refresh()
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
            self._apply(Measured(member_id=evaluation.member_id, dissent=mine))

    def _take_ruling(self) -> None:
        """Do what the operator has decided about a candidate."""
        if self.state.phase in (Phase.MEASURING, Phase.HELD):
            ruling = self.registry.ruling(self.state.number)
            if ruling is not None:
                self._apply(Ruled(is_released=ruling.is_released, reason=ruling.reason))

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
            self._refresh()
            if payload_digest(self._manifest) == digest:
                return
            number = self.state.number
            self.files.index(number)
            attendance = Attendance(
                answered=sorted({*self.state.arrived, *self.state.declined}),
                opened_at=self.state.opened_at,
            )
            self._apply(
                Published(manifest=digest), manifest=(digest, envelope), attendance=attendance
            )
            self._manifest = envelope
            self._newest = number
            self.proofs.note(number - 1, at=0.0)
            self.proofs.note(number, at=0.0)

    def _apply(
        self,
        event: Event,
        *,
        contribution: Receiving | None = None,
        speed: float = 0.0,
        manifest: tuple[str, Envelope] | None = None,
        attendance: Attendance | None = None,
    ) -> None:
        """Advance the state; store the event first if it changes anything."""
        now = self.clock()
        before = self.state
        after, effects = tick(before, event, now=now)
        if after == before:
            return
        plan = None
        if Effect.ANNOUNCE_PLAN in effects:
            plan_made = self._planner.plan(after, base=payload_digest(self._manifest))
            signed = plan_made.signed(self.key)
            plan = (after.attempt, payload_digest(signed), signed)
        self._is_certain = False
        self.registry.record_event(
            before.number,
            event,
            now=now,
            plan=plan,
            contribution=contribution,
            speed=speed,
            manifest=manifest,
            seal=None if manifest is None and plan is None else self._seal,
            attendance=attendance,
        )
        if manifest is not None or plan is not None:
            self._head = self.registry.ledger.head() or self._head
        self._is_certain, self._is_enrolled_known = True, False
        if plan is not None:
            failpoints.reach("plan-recorded")
        self.state = after
        if plan is not None:
            self._presence.returned.clear()
        if effects:
            _log.info("round %d: %s, %s", after.number, after.phase, effects[0])
            self._version += 1
            self._changed.notify_all()

    def _answered(self, number: int, member_id: str) -> tuple[RoundPlan, int]:
        """Return the plan that a member's contribution answers, and by how many rounds it is late.

        Raises:
            RejectedError: No round takes it.
            UnavailableError: The next round takes it.
        """
        self._refresh()
        envelope = self.registry.plan(number) if number <= self.state.number else None
        if envelope is None:
            staleness_of(self.state, member_id, answers=number, most=0)
            raise RejectedError(f"round {number} has no plan: wait for it")
        plan = RoundPlan.parsed(envelope.payload, what=f"plan of round {number}")
        policy = self.policy.policy
        most = min(plan.max_staleness, policy.lateness.max_staleness)
        if plan.codec != policy.aggregation.codec or member_id not in plan.cohort:
            most = 0
        return plan, staleness_of(self.state, member_id, answers=number, most=most)

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
            return self._presence.all()
