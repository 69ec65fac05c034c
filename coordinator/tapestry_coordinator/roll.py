"""Who can be asked for the round: active contributors, and which of them are here."""

from tapestry.checkpoints.policy import FederationPolicy
from tapestry_coordinator.events import Left, RoundRules, Tick
from tapestry_coordinator.pace import paced
from tapestry_coordinator.presence import Presence
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import ACTIVE, CONTRIBUTOR, LEFT, Member
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.standing import Standing


class Roll:
    """The contributors as the database last had them; whoever asks holds the standing's lock."""

    def __init__(self, registry: Registry, standing: Standing) -> None:
        """Begin with nobody: `call` reads who there is."""
        self._registry = registry
        self._standing = standing
        self.presence = Presence()
        self.contributors: frozenset[str] = frozenset()
        """Ids of active contributors."""
        self._members: list[Member] = []
        self._called_at = -1

    @property
    def is_known(self) -> bool:
        """Whether nothing of ours was recorded since `call`."""
        return self._called_at == self._standing.recorded

    def call(self) -> None:
        """Read who contributes, and go on without those who are members no more.

        What a revoked member handed in counts no more, unless its round has closed; what one handed
        in that then left by itself does.
        """
        members = self._registry.members()
        self._members = [m for m in members if (m.status, m.role) == (ACTIVE, CONTRIBUTOR)]
        self._called_at = self._standing.recorded
        self.contributors = frozenset(m.member_id for m in self._members)
        standing = {m.member_id for m in members if m.status in (ACTIVE, LEFT)}
        state = self._standing.state
        if state.phase in (Phase.WAITING, Phase.OPEN, Phase.MEASURING):
            asked = {*state.cohort, *state.arrived}
            for member_id in sorted(asked - self.contributors - set(state.left)):
                self._let_go(member_id, is_standing=member_id in standing)

    def _let_go(self, member_id: str, *, is_standing: bool) -> None:
        """Go on without somebody who contributes no more; who only changed its role has done so."""
        state = self._standing.state
        if member_id not in state.arrived:
            self._standing.advance(Left(member_id=member_id, reason="not a member any more"))
        elif not is_standing:
            stored = self._registry.contributions(state.number)
            tokens = sum(s.declared.tokens for s in stored if s.member_id == member_id)
            reason = "not a member any more when the round closed"
            self._standing.advance(Left(member_id=member_id, reason=reason, tokens=tokens))

    def tick(self, rules: RoundRules, policy: FederationPolicy, *, is_paused: bool) -> Tick:
        """Return how things stand.

        Args:
            rules: As configured now.
            policy: In force.
            is_paused: Whether no round opens.
        """
        after = policy.activity.inactive_after
        idle = {
            member.member_id
            for member in self._members
            if 0 < after <= member.missed_rounds and member.member_id not in self.presence.returned
        }
        ready = [m.member_id for m in self._members if self.presence.is_here(m.member_id)]
        active = len(self._members) - len(idle)
        return Tick(
            ready=tuple(sorted(ready)),
            enrolled=active,
            rules=paced(rules, policy.pace, active=active),
            inactive=tuple(sorted(idle.intersection(ready))),
            is_paused=is_paused,
        )
