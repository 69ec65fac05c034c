"""Where the round stands: what the database has, and what it takes before it shows.

Whoever asks or tells holds the lock `changed`, and those who wait for something new wait on it.
"""

import logging
import threading
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.errors import RejectedError
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator import failpoints
from tapestry_coordinator.events import Event
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.ledgering import Seal, StoredHead
from tapestry_coordinator.planning import Planner
from tapestry_coordinator.receiving import Receiving
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import Attendance
from tapestry_coordinator.round_state import Effect, Phase, RoundState
from tapestry_coordinator.rounds import folded, staleness_of, tick

_log = logging.getLogger(__name__)


class Standing:
    """The state of the present round, the newest checkpoint, and the ledger's head."""

    def __init__(
        self,
        home: CoordinatorHome,
        registry: Registry,
        planner: Planner,
        *,
        key: Ed25519PrivateKey,
        seal: Seal,
        clock: Callable[[], float],
    ) -> None:
        """Fold the stored events of the current round; stand where the last process stood.

        Args:
            home: Of the coordinator.
            registry: What it remembers.
            planner: Makes the plans.
            key: With which they are signed.
            seal: Signs the heads of the ledger.
            clock: Unix seconds by which rounds go.
        """
        self._home = home
        self._registry = registry
        self._planner = planner
        self._key = key
        self._seal = seal
        self._clock = clock
        self._is_certain = True
        """Whether `state` is what the database has: it may be gone while it takes an event."""
        self.changed = threading.Condition()
        self.version = 0
        """Of what members are told."""
        self.recorded = 0
        """Events that this process has stored."""
        registry.ledger.have_head(seal)
        self.head = StoredHead(0, "")
        self._stand()

    def _stand(self) -> None:
        lineage = self._registry.lineage()
        self.newest, self.manifest = len(lineage) - 1, lineage[-1]
        self.read_head()
        self.state: RoundState = self._recovered(self.newest + 1)
        self.candidate: Envelope | None = self._recovered_candidate()
        """Manifest of what members are measuring."""

    def _recovered(self, number: int) -> RoundState:
        state = folded(number, self._registry.round_events(number))
        if state.phase is not Phase.WAITING:
            _log.info("round %d goes on: %s", number, state.phase)
        return state

    def _recovered_candidate(self) -> Envelope | None:
        """Return the manifest of what members are measuring; None once the operator has ruled."""
        if self.state.phase is not Phase.MEASURING:
            return None
        if self._registry.ruling(self.state.number) is not None:
            return None
        path = self._home.candidate(self.state.number) / MANIFEST_FILE
        return read_envelope(path, what="candidate's manifest")

    def read_head(self) -> None:
        """Take up the newest head of the ledger, with the cosignatures that came."""
        self.head = self._registry.ledger.head() or self.head

    def announce(self) -> None:
        """Have every member told how things stand now."""
        self.version += 1
        self.changed.notify_all()

    def refresh(self) -> None:
        """Stand where the database stands, if it did not say whether it took the last event."""
        if not self._is_certain:
            self._stand()
            self._is_certain = True
            self.announce()

    def advance(
        self,
        event: Event,
        *,
        contribution: Receiving | None = None,
        speed: float = 0.0,
        manifest: tuple[str, Envelope] | None = None,
        attendance: Attendance | None = None,
    ) -> list[Effect]:
        """Advance the state, and store first what advances it; return what is to be done.

        Args:
            event: What happened.
            contribution: That arrived.
            speed: Tokens per second of its inner steps; 0 if unknown.
            manifest: Digest and envelope of what was published.
            attendance: Of the round that was.
        """
        now, before = self._clock(), self.state
        after, effects = tick(before, event, now=now)
        if after == before:
            return []
        plan = None
        if Effect.ANNOUNCE_PLAN in effects:
            made = self._planner.plan(after, base=payload_digest(self.manifest))
            signed = made.signed(self._key)
            plan = (after.attempt, payload_digest(signed), signed)
        self._is_certain = False
        self._registry.record_event(
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
            self.read_head()
        self._is_certain = True
        self.recorded += 1
        if plan is not None:
            failpoints.reach("plan-recorded")
        self.state = after
        if manifest is not None:
            self.newest, self.manifest = before.number, manifest[1]
        if effects:
            _log.info("round %d: %s, %s", after.number, after.phase, effects[0])
            self.announce()
        return effects

    def answered(self, number: int, member_id: str) -> tuple[RoundPlan, int]:
        """Return the plan that a member's contribution answers, and by how many rounds it is late.

        Raises:
            RejectedError: No round takes it.
            UnavailableError: The next round takes it.
        """
        self.refresh()
        envelope = self._registry.plan(number) if number <= self.state.number else None
        if envelope is None:
            staleness_of(self.state, member_id, answers=number, most=0)
            raise RejectedError(f"round {number} has no plan: wait for it")
        plan = RoundPlan.parsed(envelope.payload, what=f"plan of round {number}")
        policy = self._planner.policy.policy
        most = min(plan.max_staleness, policy.lateness.max_staleness)
        if plan.codec != policy.aggregation.codec or member_id not in plan.cohort:
            most = 0
        return plan, staleness_of(self.state, member_id, answers=number, most=most)
