"""What a federation's policy makes of a round's contributions: shares, clip factors, outer step.

Pure functions of what the round recorded. The coordinator decides by them, and whoever verifies a
checkpoint decides once more and compares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tapestry.aggregation.outer import OuterOptimizer, state_vectors
from tapestry.aggregation.weights import (
    clip_factors,
    default_cap,
    staleness_discount,
    token_weights,
)
from tapestry.checkpoints.manifest import Manifest, OuterRecord, Participation, RuleRecord
from tapestry.checkpoints.policy import AggregationPolicy, FederationPolicy, PacePolicy
from tapestry.checkpoints.statements import Contribution, RoundPlan
from tapestry.errors import RejectedError

NEWCOMER = "a newcomer's first contributions have no weight: influence.newcomer_rounds"
FARTHEST = (
    "farthest from the contributions nearest to it, which the rule takes for a lie; "
    "a language that no other member has can cause it too"
)
"""Why a rule of distances gave a contribution no weight."""
_MOST_BUFFERED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """A contribution that has a say, as the round recorded it."""

    member_id: str
    tokens: int
    norm: float
    """Euclidean norm of the decoded pseudo-gradient, as it was measured on arrival."""
    staleness: int

    @classmethod
    def of(cls, part: Participation) -> Self:
        """Return what a manifest says of a contribution."""
        return cls(
            member_id=part.member_id,
            tokens=part.tokens,
            norm=part.norm,
            staleness=part.staleness,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What tokens, cap, clip and lateness give a contribution, before a rule of distances."""

    weight: float
    clip_factor: float


def shares(policy: FederationPolicy, counted: Sequence[Counted]) -> dict[str, Share]:
    """Return each member's share.

    A rule that gives everybody one vote has no weights to discount for lateness: there the
    contribution itself is shortened.

    Raises:
        ConfigError: The influence cap cannot hold with so few.
    """
    settings, influence = policy.aggregation, policy.influence
    late = policy.lateness.discount
    discounts = {one.member_id: staleness_discount(one.staleness, discount=late) for one in counted}
    members = [one.member_id for one in counted]
    groups = {member: influence.group_of(member) for member in members}
    weights = token_weights(
        {one.member_id: one.tokens for one in counted},
        gamma=settings.gamma,
        cap=cap_of(settings, len(members)),
        groups={member: group for member, group in groups.items() if group is not None},
        group_cap=influence.group_cap,
        discounts=discounts,
    )
    factors = clip_factors({one.member_id: one.norm for one in counted}, clip=settings.clip)
    if settings.aggregation_rule().is_one_vote_each:
        factors = {member: factors[member] * discounts[member] for member in members}
    return {
        member: Share(weight=weights[member], clip_factor=factors[member]) for member in members
    }


def cap_of(policy: AggregationPolicy, members: int) -> float:
    """Return the influence cap with contributions of so many members."""
    return policy.influence_cap or default_cap(members)


def outer_optimizer(
    policy: FederationPolicy, plan: RoundPlan, base: Manifest, *, members: int
) -> OuterOptimizer:
    """Return the outer optimizer; a delayed one's period lets the whole cohort have a turn.

    Args:
        policy: Of the round.
        plan: Of the round.
        base: The checkpoint that it started from.
        members: How many have a say.
    """
    settings = policy.aggregation
    if settings.optimizer != "delayed-nesterov":
        return settings.outer_optimizer(members)
    used = max(plan.quorum, buffer_of(policy.pace, len(plan.cohort)))
    period = max(1, -(-len(plan.cohort) // used)) if plan.is_asynchronous else 1
    before = None if base.made is None else base.made.outer
    position = 1
    if before is not None and before.optimizer == settings.optimizer:
        position = before.position + 1 if before.position < before.period else 1
    return settings.outer_optimizer(members * period, period=period, position=position)


def buffer_of(pace: PacePolicy, active: int) -> int:
    """Return after how many arrivals an asynchronous round closes, but for its quorum."""
    return min(pace.buffer or min(-(-active // 2), _MOST_BUFFERED), active)


def rule_record(policy: AggregationPolicy) -> RuleRecord:
    """Return the rule and its parameters as a manifest records them."""
    rule = policy.aggregation_rule()
    return RuleRecord(
        name=rule.name,
        byzantine=rule.byzantine,
        mixing=rule.mixing,
        merge=rule.merge,
        radius=rule.radius,
    )


def outer_record(
    optimizer: OuterOptimizer, *, base: Manifest, state_root: str | None
) -> OuterRecord:
    """Return the outer step upon `base` as a manifest records it."""
    is_adam = optimizer.name == "adam"
    return OuterRecord(
        optimizer=optimizer.name,
        learning_rate=optimizer.learning_rate,
        momentum=optimizer.momentum,
        beta2=optimizer.beta2 if is_adam else 0.0,
        epsilon=optimizer.epsilon if is_adam else 0.0,
        period=optimizer.period,
        position=optimizer.position,
        state_before=None if base.made is None else base.made.outer.state_root,
        state_root=state_root,
    )


def kept_vectors(checkpoint: Manifest) -> int:
    """Return how many vectors the outer state after a checkpoint's round has."""
    made = checkpoint.made
    if made is None:
        return 0
    return state_vectors(made.outer.optimizer) + (made.downlink != "float32")


def weightless(
    *,
    excluded: Mapping[str, str],
    present: Sequence[str],
    earlier: Mapping[str, int],
    policy: FederationPolicy,
    quorum: int,
) -> dict[str, str]:
    """Return why members whose contribution is here have no weight, whatever the rule says.

    Newcomers have one, if without them is no quorum.

    Args:
        excluded: Reasons that are known already.
        present: Whose contributions are here.
        earlier: How many contributions each member made to earlier rounds; absent: none.
        policy: Of the round.
        quorum: Of its plan.
    """
    needed = policy.influence.newcomer_rounds
    known = set(present) - set(excluded)
    new = {member for member in known if earlier.get(member, 0) < needed}
    if len(known - new) < quorum:
        new = set()
    return {**excluded, **dict.fromkeys(sorted(new), NEWCOMER)}


def is_left_out(part: Participation) -> bool:
    """Whether a contribution had no say at all, and was not only given nothing by the rule."""
    return part.weight == 0 and part.reason not in {"", FARTHEST}


def require_fit(contribution: Contribution, plan: RoundPlan) -> None:
    """Refuse a contribution that is not an answer to `plan`, which is its member's own.

    Raises:
        RejectedError: Another base, codec, or more than was asked for.
    """
    if contribution.genesis != plan.genesis or contribution.base != plan.base:
        raise RejectedError("the contribution starts from another checkpoint: train again")
    most = plan.inner.tokens
    if contribution.tokens > most or contribution.steps > plan.inner.steps:
        raise RejectedError(
            f"the contribution claims {contribution.tokens:,} tokens in {contribution.steps} "
            f"steps, the plan allows {most:,} in {plan.inner.steps}"
        )
    if plan.codec != contribution.codec:
        raise RejectedError(f"the contribution is in {contribution.codec}, not {plan.codec}")


def require_floor(contribution: Contribution, policy: FederationPolicy) -> None:
    """Refuse a contribution below the federation's quality floor or privacy minimum.

    Raises:
        RejectedError: With the key of the policy.
    """
    tokens, steps = contribution.tokens, contribution.steps
    metrics = contribution.metrics
    first, last = metrics.get("loss_first", 0.0), metrics.get("loss_last", 0.0)
    limit = policy.quality.max_loss_ratio
    checks = [
        (steps >= policy.privacy.min_inner_steps, f"privacy.min_inner_steps: {steps:,} steps"),
        (tokens >= policy.privacy.min_inner_tokens, f"privacy.min_inner_tokens: {tokens:,} tokens"),
        (tokens >= policy.quality.min_tokens, f"quality.min_tokens: {tokens:,} tokens"),
        (
            not limit or first <= 0 or last <= limit * first,
            f"quality.max_loss_ratio: the loss went from {first:.3f} to {last:.3f}",
        ),
    ]
    for holds, message in checks:
        if not holds:
            raise RejectedError(f"below the federation's {message}; see tapestry/policy.json")
