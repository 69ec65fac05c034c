"""Whether a checkpoint's round went by the federation's own rules: from its folder alone, offline.

The plan, what every member signed, the policy and the manifest lie in the folder. Here they are
held against each other, and what the policy decides is decided once more: who had a say, each
weight and clip factor, the outer step's settings. The first thing that does not fit is named.

What this cannot know: the norms, which need the vectors, and the weights of the rules of distances.
Both are recomputed by `tapestry.checkpoints.replay`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tapestry.checkpoints.deciding import (
    NEWCOMER,
    Counted,
    cap_of,
    is_left_out,
    outer_optimizer,
    outer_record,
    require_fit,
    require_floor,
    rule_record,
    shares,
    weightless,
)
from tapestry.checkpoints.folder import POLICY_JSON, file_entry, read_round
from tapestry.checkpoints.manifest import Lineage, Manifest, Participation, RoundRecord
from tapestry.checkpoints.policy import FederationPolicy, published_policy
from tapestry.checkpoints.statements import Contribution, RoundPlan, payload_digest
from tapestry.errors import ConfigError, RejectedError, UntrustedError
from tapestry.identity.envelopes import Envelope


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedRound:
    """A round that went by the rules."""

    plan: RoundPlan
    policy: FederationPolicy
    contributions: tuple[Contribution, ...]
    """In the order of the manifest's `participation`."""


def verify_round(folder: Path, lineage: Lineage) -> VerifiedRound | None:
    """Verify what the newest checkpoint of `lineage`, which lies in `folder`, was made from.

    Args:
        folder: Whose files are verified.
        lineage: Of the checkpoint, verified.

    Returns:
        What was signed in the round; None of genesis, which no round made.

    Raises:
        UntrustedError: A statement is missing, foreign or altered, or the manifest says something
            that does not follow from statements and policy.
    """
    manifest = lineage.newest
    made, base = manifest.made, lineage.parent
    if made is None or base is None:
        return None
    policy = _policy(folder, made)
    envelopes = read_round(folder)
    plan = _plan(envelopes, lineage, made)
    contributions = _contributions(envelopes[1:], lineage, made)
    _require_cohort(plan, policy, made)
    _require_outer_chain(base, made)
    if made.reverted is None:
        _require_floors(plan, policy, made, contributions)
        _require_shares(plan, policy, made, lineage)
        _require_settings(plan, policy, made, base)
    else:
        _require_unchanged(manifest, base)
    return VerifiedRound(plan=plan, policy=policy, contributions=contributions)


def _policy(folder: Path, made: RoundRecord) -> FederationPolicy:
    path = folder / POLICY_JSON
    try:
        digest = file_entry(folder, POLICY_JSON).digest
    except OSError as error:
        raise UntrustedError(f"{path}: cannot be read: {error.strerror}") from error
    if digest != made.policy:
        raise UntrustedError(f"{path}: is not the policy that the manifest names")
    return published_policy(path)


def _plan(envelopes: Sequence[Envelope], lineage: Lineage, made: RoundRecord) -> RoundPlan:
    manifest = lineage.newest
    what = f"plan of round {manifest.round}"
    if not envelopes:
        raise UntrustedError(f"{what}: missing from the checkpoint")
    if payload_digest(envelopes[0]) != made.plan:
        raise UntrustedError(f"{what}: is not the one that the manifest names")
    plan = RoundPlan.opened(envelopes[0], public_key=lineage.coordinator_key, what=what)
    said = (plan.genesis, plan.round, plan.base, plan.layout)
    if said != (lineage.genesis_digest, manifest.round, manifest.parent, manifest.layout):
        raise UntrustedError(f"{what}: is for another round, base, layout or federation")
    wanted = (plan.policy, plan.inner, plan.codec, plan.quorum)
    if wanted != (made.policy, made.inner, made.codec, made.quorum):
        raise UntrustedError(
            f"{what}: says another policy, inner steps, codec or quorum than the manifest"
        )
    return plan


def _contributions(
    envelopes: Sequence[Envelope], lineage: Lineage, made: RoundRecord
) -> tuple[Contribution, ...]:
    """Return what the members signed, compared with what the manifest says of it."""
    parts = made.participation
    members = [part.member_id for part in parts]
    if members != sorted(set(members)):
        raise UntrustedError("manifest: a member has two parts in the round, or they are unordered")
    if len(envelopes) != len(parts):
        raise UntrustedError(
            f"round: {len(envelopes)} contributions are in the checkpoint, the manifest names "
            f"{len(parts)}"
        )
    return tuple(
        _contribution(envelope, part, lineage)
        for envelope, part in zip(envelopes, parts, strict=True)
    )


def _contribution(envelope: Envelope, part: Participation, lineage: Lineage) -> Contribution:
    what = f"contribution of {part.member_id}"
    if payload_digest(envelope) != part.contribution:
        raise UntrustedError(f"{what}: is not the one that the manifest names")
    made = Contribution.opened(envelope, public_key=bytes.fromhex(part.key), what=what)
    number = lineage.newest.round - part.staleness
    if number < 1 or part.base_round != (number - 1 if part.staleness else None):
        raise UntrustedError(f"{what}: the manifest says {part.staleness} rounds late, impossibly")
    said = (made.member_id, made.genesis, made.round, made.base)
    if said != (part.member_id, lineage.genesis_digest, number, lineage.digests[number - 1]):
        raise UntrustedError(f"{what}: is for another round, base, federation or of another member")
    if (made.tokens, made.root) != (part.tokens, part.root):
        raise UntrustedError(f"{what}: the manifest says other tokens or another root than it")
    return made


def _require_cohort(plan: RoundPlan, policy: FederationPolicy, made: RoundRecord) -> None:
    """Make sure that everybody who was invited is accounted for, and enough of them took part."""
    present = {part.member_id for part in made.participation}
    in_time = {part.member_id for part in made.participation if part.weight and not part.staleness}
    for stranger in sorted(in_time - set(plan.cohort)):
        raise UntrustedError(f"manifest: {stranger} has a say and was not in the plan's cohort")
    if made.reverted is None:
        out = {p.member_id for p in made.participation if is_left_out(p) and p.reason != NEWCOMER}
        needed = max(plan.quorum, policy.privacy.min_quorum)
        if len(present - out) < needed:
            raise UntrustedError(
                f"manifest: {len(present - out)} contributions count, the quorum is {needed}"
            )
    absent = [absence.member_id for absence in made.absent]
    if sorted(absent) != sorted(set(plan.cohort) - present):
        raise UntrustedError("manifest: those absent are not the cohort without those present")


def _require_floors(
    plan: RoundPlan,
    policy: FederationPolicy,
    made: RoundRecord,
    contributions: Sequence[Contribution],
) -> None:
    """Make sure that nothing has weight which plan and policy refuse; late ones had older ones."""
    for part, contribution in zip(made.participation, contributions, strict=True):
        if part.staleness > policy.lateness.max_staleness:
            raise UntrustedError(
                f"contribution of {part.member_id}: {part.staleness} rounds late, "
                f"lateness.max_staleness is {policy.lateness.max_staleness}"
            )
        if part.weight == 0 or part.staleness:
            continue
        try:
            require_fit(contribution, plan.of(part.member_id))
            require_floor(contribution, policy)
        except RejectedError as error:
            raise UntrustedError(f"contribution of {part.member_id}: {error}") from error


def _require_shares(
    plan: RoundPlan, policy: FederationPolicy, made: RoundRecord, lineage: Lineage
) -> None:
    """Decide weights and clip factors once more, and compare."""
    out = {part.member_id: part.reason for part in made.participation if is_left_out(part)}
    expected_out = weightless(
        excluded={member: why for member, why in out.items() if why != NEWCOMER},
        present=[part.member_id for part in made.participation],
        earlier=lineage.earlier,
        policy=policy,
        quorum=plan.quorum,
    )
    for member in sorted(set(out) ^ set(expected_out)):
        raise UntrustedError(
            f"manifest: {member} is {'' if member in out else 'not '}left out as a newcomer, "
            "against influence.newcomer_rounds"
        )
    counted = [part for part in made.participation if part.member_id not in out]
    if not counted:
        raise UntrustedError("manifest: nobody has a say, and yet the consensus moved")
    try:
        given = shares(policy, [Counted.of(part) for part in counted])
        rule = policy.aggregation.aggregation_rule()
        rule.require(len(counted))
    except ConfigError as error:
        raise UntrustedError(f"manifest: the policy forbids this round: {error}") from error
    for part in counted:
        share = given[part.member_id]
        if part.clip_factor != share.clip_factor:
            raise UntrustedError(
                f"manifest: {part.member_id} has the clip factor {part.clip_factor!r}, by policy "
                f"{share.clip_factor!r}"
            )
        if rule.needs_gram:
            continue  # a matter of distances: replayed
        weight = 1 / len(counted) if rule.is_one_vote_each else share.weight
        if part.weight != weight:
            raise UntrustedError(
                f"manifest: {part.member_id} has the weight {part.weight!r}, by policy {weight!r}"
            )
    _require_bounded(policy, counted)


def _require_bounded(policy: FederationPolicy, counted: Sequence[Participation]) -> None:
    """Make sure of what holds for every rule: nobody above the cap, all together at most one."""
    if math.fsum(part.weight for part in counted) > 1 + 1e-9:
        raise UntrustedError("manifest: the weights sum to more than 1")
    rule = policy.aggregation.aggregation_rule()
    cap = 1.0 if rule.is_one_vote_each else cap_of(policy.aggregation, len(counted))
    for part in counted:
        if part.weight > cap + 1e-9:
            raise UntrustedError(
                f"manifest: {part.member_id} has the weight {part.weight:g}, above the influence "
                f"cap of {cap:g}"
            )


def _require_settings(
    plan: RoundPlan, policy: FederationPolicy, made: RoundRecord, base: Manifest
) -> None:
    """Make sure that rule, clip, cap and outer step are those of the policy."""
    settings = policy.aggregation
    counted = [part for part in made.participation if not is_left_out(part)]
    one_vote = settings.aggregation_rule().is_one_vote_each
    optimizer = outer_optimizer(policy, plan, base, members=len(counted))
    expected = {
        "rule": rule_record(settings),
        "codec": settings.codec,
        "clip": settings.clip,
        "gamma": 0.0 if one_vote else settings.gamma,
        "influence_cap": 1.0 if one_vote else cap_of(settings, len(counted)),
        "downlink": settings.downlink,
        "outer": outer_record(optimizer, base=base, state_root=made.outer.state_root),
    }
    for name, value in expected.items():
        found = getattr(made, name)
        if found != value:
            raise UntrustedError(f"manifest: {name} is {found!s:.120}, by policy {value!s:.120}")


def _require_outer_chain(base: Manifest, made: RoundRecord) -> None:
    before = None if base.made is None else base.made.outer.state_root
    if made.outer.state_before != before:
        raise UntrustedError(
            "manifest: the outer state before the round is not the one after the round before"
        )


def _require_unchanged(manifest: Manifest, base: Manifest) -> None:
    """Make sure that a reverted round moved nothing."""
    made = manifest.made
    assert made is not None  # noqa: S101 - by the caller
    if manifest.vector_root != base.vector_root or any(p.weight for p in made.participation):
        raise UntrustedError("manifest: the round was reverted, and yet the consensus moved")
    if made.outer.state_root != made.outer.state_before:
        raise UntrustedError("manifest: the round was reverted, and yet the outer state moved")
