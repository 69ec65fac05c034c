"""What members answer a plan with: taken into the round, or refused."""

import logging
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.deciding import require_fit
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import Contribution, RoundPlan, payload_digest
from tapestry.errors import RejectedError
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.events import Arrived, Declined
from tapestry_coordinator.pace import speed_of
from tapestry_coordinator.receiving import receiving
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roll import Roll
from tapestry_coordinator.roster import Member
from tapestry_coordinator.standing import Standing

_log = logging.getLogger(__name__)


class Inbox:
    """Refusals and contributions, on their way into the round; called from any thread."""

    def __init__(
        self,
        registry: Registry,
        standing: Standing,
        roll: Roll,
        *,
        key: Ed25519PrivateKey,
        clock: Callable[[], float],
        deadline_seconds: float,
    ) -> None:
        """Take them into the round that stands.

        Args:
            registry: What is remembered.
            standing: The round.
            roll: Who may answer.
            key: With which receipts are signed.
            clock: Unix seconds by which rounds go.
            deadline_seconds: From a plan to its deadline.
        """
        self._registry = registry
        self._standing = standing
        self._roll = roll
        self._key = key
        self._clock = clock
        self._deadline_seconds = deadline_seconds

    def decline(self, member_id: str, *, round_number: int, reason: str) -> None:
        """Record that a member will not answer the open plan.

        Raises:
            RejectedError: That round is not open, or not this member's.
        """
        with self._standing.changed:
            self._standing.refresh()
            if round_number != self._standing.state.number:
                raise RejectedError(
                    f"round {round_number} is over, round {self._standing.state.number} is "
                    f"{self._standing.state.phase}: wait for the next plan"
                )
            self._roll.call()
            self._standing.advance(Declined(member_id=member_id, reason=reason))
        _log.warning("round %d: %s declined: %s", round_number, member_id, reason)

    def require_upload(
        self, member_id: str, *, round_number: int, base: str, codec: str
    ) -> RoundPlan:
        """Return the plan that an upload answers; refuse one that the round would not take.

        Raises:
            RejectedError: Wrong round, base or codec.
            UnavailableError: The next round takes it.
        """
        with self._standing.changed:
            plan, _staleness = self._standing.answered(round_number, member_id)
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
        with self._standing.changed:
            plan, _staleness = self._standing.answered(round_number, member_id)
        return self._registry.policy(plan.policy)

    def receipt(self, member_id: str, *, round_number: int) -> Envelope | None:
        """Return the receipt of a contribution that was committed before."""
        if round_number > self._standing.state.number:
            return None
        stored = self._registry.contribution(round_number, member_id)
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
        with self._standing.changed:
            self._standing.refresh()
            self._roll.call()
            plan, staleness = self._standing.answered(contribution.round, member_id)
            require_fit(contribution, plan.of(member_id))
            now = self._clock()
            arriving = receiving(
                plan,
                contribution,
                envelope,
                member=member,
                norm=norm,
                staleness=staleness,
                now=now,
                key=self._key,
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
            self._standing.advance(arrived, contribution=arriving, speed=speed)
            stored = arriving.stored
            count, cohort = len(self._standing.state.arrived), len(self._standing.state.cohort)
        late = f", {staleness} rounds late" if staleness else ""
        _log.info(
            "round %d: %s is in%s (%d of %d)", stored.used_round, member_id, late, count, cohort
        )
        return stored.receipt

    def _begun_at(self, number: int) -> float:
        """Return when a round was planned first: since then members may have trained for it."""
        first = self._registry.plan(number, 1)
        if first is None:
            return self._clock()
        deadline = RoundPlan.parsed(first.payload, what=f"plan of round {number}").deadline
        return deadline - self._deadline_seconds
