"""Whether a history keeps what its federation agreed upon: pure functions over what was recorded.

A   a late contribution is no later than its plan allowed; no candidate is taken for a checkpoint,
    and a reverted round leaves everything as it was; nothing opens while the operator has paused
    it; each plan is under the policy of its time; who was revoked moves nothing; rounds go by the
    seconds that pass, whatever a calendar says
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from tapestry.checkpoints.manifest import Manifest, RoundRecord
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.events import Arrived, Proposed, Published, Ruled
from tapestry_coordinator.round_state import Phase
from tests.simulation.folding import Step, Violation, manifests, plan_in, policy_in, steps
from tests.simulation.history import History

_CLOSE = 1e-3
_TINY = 1e-9


def _plans(history: History) -> dict[int, list[RoundPlan]]:
    """Return the plans of each round, in the order of their attempts."""
    found: dict[int, list[RoundPlan]] = defaultdict(list)
    for number, _attempt, _digest, envelope in history.records.plans:
        found[int(str(number))].append(plan_in(str(envelope)))
    return found


def _policies(history: History) -> dict[str, FederationPolicy]:
    return {str(digest): policy_in(str(body)) for _v, digest, body in history.records.policies}


def _made(history: History) -> Iterator[tuple[Manifest, str, RoundRecord]]:
    """Yield what was published after genesis: the manifest, its digest, and how it was made."""
    for manifest, envelope in manifests(history).values():
        if manifest.made is not None:
            yield manifest, payload_digest(envelope), manifest.made


# Lateness


def late_as_agreed(history: History) -> Iterator[Violation]:
    """Whoever is late was asked, by no more rounds than allowed, and has the discount for it."""
    plans, policies = _plans(history), _policies(history)
    stored = {str(row[2]): row for row in history.records.contributions}
    for manifest, _digest, made in _made(history):
        discount = policies[made.policy].lateness.discount
        for part in made.participation:
            row = stored.get(part.contribution)
            if row is None:
                continue  # said by another check
            late = manifest.round - int(str(row[0]))
            asked = [p for p in plans[int(str(row[0]))] if part.member_id in p.cohort]
            who = f"{part.member_id} in round {manifest.round}"
            if (part.staleness, row[5]) != (late, manifest.round):
                yield Violation("A", f"{who}: {late} rounds late, recorded as {part.staleness}")
            if not any(late <= plan.max_staleness for plan in asked):
                yield Violation("A", f"{who}: {late} rounds late, which no plan allowed")
            if part.base_round != (manifest.round - late - 1 if late else None):
                yield Violation("A", f"{who}: not from checkpoint {part.base_round}")
            if part.weight > made.influence_cap / (1 + discount * late) + _TINY:
                yield Violation("A", f"{who}: {late} rounds late, with weight {part.weight:.3f}")


# The gate


def measured_first(history: History) -> Iterator[Violation]:
    """Where the policy asks members first there is one candidate a round, else there is none."""
    plans, policies = _plans(history), _policies(history)
    proposed = _by_round(history, Proposed)
    for manifest, _digest, _made_by in _made(history):
        if not plans[manifest.round]:
            yield Violation("A", f"round {manifest.round}: was published without a plan")
            continue
        policy = policies[plans[manifest.round][-1].policy]
        wanted = 0 if policy.no_harm.action == "publish" else 1
        count = len(proposed[manifest.round])
        if count != wanted:
            yield Violation("A", f"round {manifest.round}: {count} candidates, not {wanted}")


def candidates_are_no_checkpoints(history: History) -> Iterator[Violation]:
    """Members measure recorded candidates only, each upon the checkpoint before it."""
    proposed = _by_round(history, Proposed)
    known = {
        number: {e.manifest for step in found if isinstance(e := step.event, Proposed)}
        for number, found in proposed.items()
    }
    for told in history.told:
        if told.candidate is None:
            continue
        number = Manifest.parsed(told.manifest.payload, what="manifest").round + 1
        if payload_digest(told.candidate) not in known.get(number, set()):
            yield Violation("A", f"{told.member_id} measured no candidate of round {number}")


def gate_is_kept(history: History) -> Iterator[Violation]:
    """What is published is the candidate, unless somebody dissented or the operator ruled."""
    policies, plans = _policies(history), _plans(history)
    rulings = {row[0]: bool(row[1]) for row in history.records.rulings}
    published = manifests(history)
    ruled = _by_round(history, Ruled)
    last = {step.number: step.before for step in steps(history) if _is(step, Published)}
    for manifest, digest, made in _made(history):
        number = manifest.round
        state = last.get(number)
        if state is None or not state.candidate or not plans[number]:
            continue
        is_ruled = bool(ruled[number])
        if is_ruled and number not in rulings:
            yield Violation("A", f"round {number}: nobody ruled so")
        dissents = any(state.dissent.values())
        holds = policies[plans[number][-1].policy].no_harm.action == "hold"
        may_release = rulings.get(number, False) if is_ruled else not dissents
        may_revert = not rulings.get(number, True) if is_ruled else dissents and not holds
        if made.reverted is None and (digest != state.candidate or not may_release):
            yield Violation("A", f"checkpoint {number} is not a candidate that was agreed to")
        if made.reverted is not None:
            if made.reverted.candidate != state.candidate or not may_revert:
                yield Violation("A", f"round {number} was reverted against what was decided")
            yield from _unchanged(manifest, made, published.get(number - 1))


def _unchanged(
    manifest: Manifest, made: RoundRecord, before: tuple[Manifest, Envelope] | None
) -> Iterator[Violation]:
    if before is None:
        return  # the chain is broken, which another check says
    parent, _envelope = before
    if manifest.vector_root != parent.vector_root:
        yield Violation("A", f"round {manifest.round} was reverted, and its vector is another")
    root = None if parent.made is None else parent.made.outer.state_root
    if (made.outer.state_before, made.outer.state_root) != (root, root):
        yield Violation("A", f"round {manifest.round} was reverted, and its outer state is another")
    if any(part.weight for part in made.participation):
        yield Violation("A", f"round {manifest.round} was reverted, and somebody has a weight")


# The operator


def nothing_opens_while_paused(history: History) -> Iterator[Violation]:
    """No plan is made between a pause and its end."""
    for step in steps(history):
        if step.after.attempt > step.before.attempt and any(
            begun < step.moment < ended for begun, ended in history.pauses
        ):
            yield Violation("A", f"round {step.number} opened while the federation was paused")


def policy_of_its_time(history: History) -> Iterator[Violation]:
    """A round's first plan has the policy that was the newest then, and so have the others."""
    plans = _plans(history)
    for step in steps(history):
        if step.after.attempt != 1 or step.before.attempt != 0 or not plans[step.number]:
            continue
        _at, newest = max(one for one in history.adopted if one[0] <= step.moment)
        found = {plan.policy for plan in plans[step.number]}
        if found != {newest}:
            yield Violation("A", f"round {step.number} is not under the newest policy")
    for manifest, _digest, made in _made(history):
        if any(plan.policy != made.policy for plan in plans[manifest.round]):
            yield Violation("A", f"checkpoint {manifest.round} was made by another policy")


def revoked_move_nothing(history: History) -> Iterator[Violation]:
    """Who was revoked before the round closed has no weight, and nobody else is left out."""
    arrived: dict[tuple[int, str], float] = {}
    closed: dict[int, float] = {}
    for step in steps(history):
        if isinstance(step.event, Arrived):
            arrived[step.number, step.event.member_id] = step.moment
        if step.before.phase is Phase.OPEN and step.after.phase is Phase.AGGREGATING:
            closed[step.number] = step.moment
    for manifest, _digest, made in _made(history):
        if made.reverted is not None:
            continue
        number = manifest.round
        for part in made.participation:
            since = arrived.get((number, part.member_id), 0.0)
            left = any(
                member_id == part.member_id and since <= at < closed.get(number, 0.0)
                for at, member_id in history.departures
            )
            if left != (part.weight == 0):
                what = "moves" if left else "was left out of"
                yield Violation("A", f"{part.member_id} {what} round {number}")


# Clocks


def by_seconds_that_pass(history: History) -> Iterator[Violation]:
    """Between two events of one process its clock goes as time does; no clock goes back."""
    for index, (one, other) in enumerate(pairwise(steps(history)), start=1):
        if other.at < one.at:
            yield Violation("A", f"round {other.number}: the clock went back")
        passed, went = other.moment - one.moment, other.at - one.at
        if index not in history.lives and abs(passed - went) > _CLOSE:
            yield Violation("A", f"round {other.number}: {went:.1f} s by a clock, {passed:.1f} s")


def _by_round(history: History, kind: type) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = defaultdict(list)
    for step in steps(history):
        if _is(step, kind):
            found[step.number].append(step)
    return found


def _is(step: Step, kind: type) -> bool:
    return isinstance(step.event, kind)


CHECKS: Sequence[Callable[[History], Iterator[Violation]]] = (
    late_as_agreed,
    measured_first,
    candidates_are_no_checkpoints,
    gate_is_kept,
    nothing_opens_while_paused,
    policy_of_its_time,
    revoked_move_nothing,
    by_seconds_that_pass,
)
