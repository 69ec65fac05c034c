"""A round that has closed: everything recorded that decides its checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tapestry.checkpoints.deciding import weightless
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.errors import UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.receiving import StoredContribution
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import RoundState
from tapestry_coordinator.testimony import StoredEvaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedRound:
    """Everything recorded that decides a checkpoint."""

    plan: RoundPlan
    plan_envelope: Envelope
    policy: FederationPolicy
    """In force when the plan was made."""
    closed_at: float
    contributions: Sequence[StoredContribution]
    declined: Mapping[str, str]
    lineage: Sequence[Envelope]
    """From genesis to the base checkpoint."""
    evaluations: Sequence[StoredEvaluation]
    candidate: str = ""
    """Manifest digest of what members have measured, if the policy asks them first."""
    reverted: str = ""
    """Why that is not published; empty if it is."""
    earlier: Mapping[str, int] = field(default_factory=dict)
    """How many contributions each member had made before."""
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Why a contribution does not count, by member."""

    @property
    def plan_digest(self) -> str:
        """Of the signed plan."""
        return payload_digest(self.plan_envelope)

    @property
    def weightless(self) -> Mapping[str, str]:
        """Why members whose contribution is here have no weight, whatever the rule says."""
        return weightless(
            excluded=self.excluded,
            present=[one.member_id for one in self.contributions],
            earlier=self.earlier,
            policy=self.policy,
            quorum=self.plan.quorum,
        )

    @classmethod
    def recorded(cls, registry: Registry, state: RoundState) -> "ClosedRound":
        """Return a round that has closed, from what was stored of it."""
        plan, envelope = plan_of(registry, state)
        return cls(
            plan=plan,
            plan_envelope=envelope,
            policy=registry.policy(plan.policy),
            closed_at=state.closed_at,
            contributions=[
                stored
                for stored in registry.contributions(state.number)
                if stored.member_id in state.arrived or stored.member_id in state.excluded
            ],
            declined=state.declined,
            lineage=registry.lineage(state.number - 1),
            evaluations=registry.evaluations(),
            candidate=state.candidate,
            reverted=state.reverted,
            earlier=registry.contributions_before(state.number),
            excluded=state.excluded,
        )


def plan_of(registry: Registry, state: RoundState) -> tuple[RoundPlan, Envelope]:
    """Return the plan of an open or closed round, and as it was signed.

    Raises:
        UnavailableError: The round was not opened yet.
    """
    envelope = registry.plan(state.number, state.attempt)
    if envelope is None:
        raise UnavailableError(f"round {state.number} has no plan yet")
    plan = RoundPlan.parsed(envelope.payload, what=f"plan of round {state.number}")
    return plan, envelope
