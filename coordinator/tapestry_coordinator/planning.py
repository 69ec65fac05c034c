"""What a round's plan says, from the settings, the policy, and what the registry remembers."""

import hashlib
import logging
from collections.abc import Sequence

from tapestry.checkpoints.manifest import Lineage
from tapestry.checkpoints.policy import FederationPolicy, PacePolicy
from tapestry.checkpoints.statements import InnerSettings, RoundPlan, SharedSlice
from tapestry_coordinator.events import Published
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.pace import steps_for
from tapestry_coordinator.policy_history import PolicyVersion
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import RoundState
from tapestry_coordinator.rounds import folded
from tapestry_coordinator.settings import CoordinatorSettings

_log = logging.getLogger(__name__)


class Planner:
    """Makes plans, and keeps the policy under which they are made."""

    def __init__(
        self,
        home: CoordinatorHome,
        settings: CoordinatorSettings,
        registry: Registry,
        genesis: Lineage,
        *,
        now: float,
    ) -> None:
        """Adopt the policy in the home.

        Raises:
            ConfigError: It cannot hold with the quorum.
        """
        self._settings = settings
        self._registry = registry
        self._genesis = genesis
        policy = home.load_policy()
        policy.require_quorum(settings.rounds.quorum)
        self.policy: PolicyVersion = registry.adopt_policy(policy, now=now)
        """In force since the newest plan was made."""
        self.pool = _shared_pool(home)
        """Digest and size of the open pool, if there is one."""

    def plan(self, state: RoundState, *, base: str) -> RoundPlan:
        """Return the plan of a round that opens.

        Args:
            state: Of the round once it is open.
            base: Digest of the newest manifest.

        Raises:
            ConfigError: The newest policy cannot hold with the quorum.
        """
        settings, first = self._settings, self._first_plan(state)
        policy = self._policy_for(first)
        inner = settings.inner.settings() if first is None else first.inner
        rules = state.rules or settings.rounds.rules()
        return RoundPlan(
            genesis=self._genesis.genesis_digest,
            round=state.number,
            attempt=state.attempt,
            base=base,
            layout=self._genesis.newest.layout,
            policy=policy.digest,
            cohort=state.cohort,
            quorum=rules.quorum,
            grace_seconds=rules.grace_seconds,
            deadline=state.deadline,
            objective=self._genesis.origin.objective,
            inner=inner,
            codec=policy.aggregation.codec,
            max_element=policy.aggregation.max_element,
            shared=self._shared(),
            seed=self._genesis.origin.seed,
            statistics=self._statistics(state.number - 1),
            steps_by_member=(
                self._steps(state.cohort, policy.pace, inner)
                if first is None
                else first.steps_by_member
            ),
            max_staleness=policy.lateness.max_staleness,
            witnesses=policy.ledger.witnesses,
            is_asynchronous=rules.is_asynchronous,
        )

    def take_newest_policy(self) -> bool:
        """Put the newest recorded policy in force; tell whether it is another one.

        Raises:
            ConfigError: It cannot hold with the quorum.
        """
        newest = self._registry.newest_policy()
        if newest is None or newest.version == self.policy.version:
            return False
        newest.policy.require_quorum(self._settings.rounds.quorum)
        self.policy = newest
        _log.info("policy %d is in force", newest.version)
        return True

    def _shared(self) -> SharedSlice | None:
        fraction = self._settings.shared.fraction
        if self.pool is None or fraction == 0:
            return None
        digest, size = self.pool
        return SharedSlice(fraction=fraction, pool_digest=digest, pool_bytes=size)

    def _first_plan(self, state: RoundState) -> RoundPlan | None:
        """Return the first plan of a round that is planned again."""
        first = self._registry.plan(state.number, 1) if state.attempt > 1 else None
        return None if first is None else RoundPlan.parsed(first.payload, what="plan")

    def _policy_for(self, first: RoundPlan | None) -> FederationPolicy:
        """Return the policy of a plan made now: the newest, or that of the round's first."""
        if first is not None:
            return self._registry.policy(first.policy)
        self.take_newest_policy()
        return self.policy.policy

    def _steps(
        self, cohort: Sequence[str], pace: PacePolicy, inner: InnerSettings
    ) -> dict[str, int]:
        """Return the inner steps of those members of a cohort whose speed is known."""
        members = {m.member_id: m.tokens_per_second for m in self._registry.members()}
        speeds = {member_id: members.get(member_id, 0.0) for member_id in cohort}
        return steps_for(speeds, pace, step_tokens=inner.tokens // inner.steps)

    def _statistics(self, number: int) -> dict[str, tuple[float, ...]]:
        """Add up the statistics that every contribution of a round has, and of one length."""
        events = self._registry.round_events(number)
        state = folded(number, [(at, e) for at, e in events if not isinstance(e, Published)])
        parts = [
            stored.declared.statistics
            for stored in self._registry.contributions(number)
            if stored.member_id not in state.excluded
        ]
        sums: dict[str, tuple[float, ...]] = {}
        for name in sorted(parts[0]) if parts else ():
            columns = [part.get(name, ()) for part in parts]
            if len(set(map(len, columns))) == 1:
                sums[name] = tuple(map(sum, zip(*columns, strict=True)))
        return sums


def _shared_pool(home: CoordinatorHome) -> tuple[str, int] | None:
    """Return digest and size of the open pool, if there is one."""
    if not home.pool.is_file():
        return None
    with home.pool.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, home.pool.stat().st_size
