"""The federation's policy in force: over the wire, in plans, weights, and refusals on record."""

import json
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest

from tapestry.checkpoints.folder import POLICY_JSON
from tapestry.checkpoints.manifest import Manifest, Participation
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import RoundPlan
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.identity.envelopes import Envelope
from tapestry.params.codecs import Float32Array
from tapestry.v1 import rounds_pb2
from tapestry_coordinator.exclusions import NO_WEIGHT, REFUSED, record_weightless
from tests.coordinator.small import MOST_TOKENS, changed_policy
from tests.wire.serving import CALL_SECONDS, Coordinator, Line, gathered

EVERY_DATABASE = True

DELTA = np.array([0.5, -0.25], np.float32)
Lines = dict[str, Line]


def adopt(coordinator: Coordinator, **tables: dict[str, Any]) -> FederationPolicy:
    """As `tapestry coordinator policy apply` does it while the coordinator runs."""
    newest = coordinator.registry.newest_policy()
    assert newest is not None
    policy = changed_policy(newest.policy, **tables)
    coordinator.registry.adopt_policy(policy, now=coordinator.clock())
    return policy


def contribute(line: Line, plan: RoundPlan, **changes: Any) -> Envelope:
    return line.commit(line.sent(plan, DELTA, **changes))


def played(coordinator: Coordinator, lines: Lines, **tokens: int) -> Manifest:
    """Let everybody contribute to the open round and publish it."""
    plan = coordinator.plan
    for name, line in lines.items():
        contribute(line, plan, tokens=tokens.get(name, MOST_TOKENS))
    manifest = Manifest.parsed(coordinator.aggregate().payload, what="manifest")
    record_weightless(coordinator.registry, manifest)
    return manifest


def parts(manifest: Manifest) -> dict[str, Participation]:
    assert manifest.made is not None
    return {part.member_id: part for part in manifest.made.participation}


def said(line: Line) -> list[rounds_pb2.Exclusion]:
    request = rounds_pb2.ListExclusionsRequest()
    return list(line.rounds.ListExclusions(request, timeout=CALL_SECONDS).exclusions)


def test_a_change_is_in_force_when_the_next_round_opens(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    first, lines = gathered(coordinator, stack, "a", "b")
    before = coordinator.desk.policy.policy
    after = adopt(coordinator, aggregation={"learning_rate": 0.125, "clip": 0.0})
    assert first.policy == before.digest != after.digest
    made = played(coordinator, lines).made
    assert made is not None
    assert (made.policy, made.clip) == (before.digest, 1.5)
    coordinator.desk.pass_time()
    assert coordinator.plan.policy == after.digest
    made = played(coordinator, lines).made
    assert made is not None
    assert (made.policy, made.clip, made.outer.learning_rate) == (after.digest, 0.0, 0.125)


def test_a_round_is_made_by_the_policy_of_its_plan_after_a_restart_too(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack, "a", "b")
    for line in lines.values():
        contribute(line, plan)
    policy = changed_policy(coordinator.home.load_policy(), aggregation={"learning_rate": 0.5})
    coordinator.home.save_policy(policy)
    stack.close()
    restarted = coordinator.restarted()
    assert restarted.desk.policy.version == 2
    made = Manifest.parsed(restarted.aggregate().payload, what="manifest").made
    assert made is not None
    assert made.policy == plan.policy != policy.digest
    assert made.outer.learning_rate == 0.6
    restarted.stop()


def test_a_round_that_is_planned_again_keeps_its_policy(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    first, _lines = gathered(coordinator, stack, "a", "b")
    adopt(coordinator, aggregation={"codec": "int8"})
    coordinator.clock.forward(3601)
    coordinator.desk.pass_time()
    again = coordinator.plan
    assert (again.round, again.attempt) == (first.round, 2)
    assert (again.policy, again.codec) == (first.policy, "float32")


def test_the_policy_lies_in_the_checkpoint_that_was_made_by_it(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack, "a", "b")
    played(coordinator, lines)
    folder = coordinator.home.checkpoint(1)
    verify_checkpoint(folder)
    text = (folder / POLICY_JSON).read_text(encoding="utf-8")
    assert FederationPolicy(**json.loads(text)).digest == plan.policy
    (folder / POLICY_JSON).write_text(text.replace("1.5", "2.5"), encoding="utf-8")
    with pytest.raises(Exception, match=POLICY_JSON):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    ("tables", "changes", "key"),
    [
        ({"quality": {"min_tokens": 60}}, {"tokens": 59}, "quality.min_tokens: 59 tokens"),
        ({"privacy": {"min_inner_tokens": 60}}, {"tokens": 59}, "privacy.min_inner_tokens: 59"),
        ({"privacy": {"min_inner_steps": 9}}, {"steps": 8}, "privacy.min_inner_steps: 8 steps"),
        (
            {"quality": {"max_loss_ratio": 1.1}},
            {"metrics": {"loss_first": 2.0, "loss_last": 2.3}},
            "quality.max_loss_ratio: the loss went from 2.000 to 2.300",
        ),
    ],
)
def test_what_is_below_the_floor_is_refused_and_on_record(
    coordinator: Coordinator,
    stack: ExitStack,
    tables: dict[str, dict[str, Any]],
    changes: dict[str, Any],
    key: str,
) -> None:
    adopt(coordinator, **tables)
    plan, lines = gathered(coordinator, stack, "a", "b")
    with pytest.raises(grpc.RpcError, match=key):
        contribute(lines["a"], plan, **changes)
    contribute(lines["b"], plan)
    (exclusion,) = said(lines["a"])
    assert (exclusion.round, exclusion.kind) == (1, REFUSED)
    assert key in exclusion.reason
    assert said(lines["b"]) == []
    contribute(lines["a"], plan)  # what is above the floor is welcome


def test_a_member_answers_what_was_left_out_of_its_own_and_nothing_else(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    adopt(coordinator, quality={"min_tokens": 60})
    plan, lines = gathered(coordinator, stack, "a", "b")
    with pytest.raises(grpc.RpcError):
        contribute(lines["a"], plan, tokens=1)
    (exclusion,) = said(lines["a"])
    request = rounds_pb2.AnswerExclusionRequest(id=exclusion.id, answer="our corpus\nis small")
    with pytest.raises(grpc.RpcError, match="b has no exclusion with the number"):
        lines["b"].rounds.AnswerExclusion(request, timeout=CALL_SECONDS)
    lines["a"].rounds.AnswerExclusion(request, timeout=CALL_SECONDS)
    (stored,) = coordinator.registry.exclusions()
    assert (stored.member_id, stored.answer) == ("a", "our corpus is small")
    assert said(lines["a"])[0].answer == "our corpus is small"
    huge = rounds_pb2.AnswerExclusionRequest(id=2**64 - 1, answer="x")
    with pytest.raises(grpc.RpcError, match="has no exclusion"):
        lines["a"].rounds.AnswerExclusion(huge, timeout=CALL_SECONDS)


def test_a_refused_fragment_is_on_record_and_a_flood_of_them_is_not(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack, "a", "b")
    for element in range(30):
        values: Float32Array = np.array([np.nan if element == 0 else 100.0 + element, 0], "<f4")
        fragments = [values.tobytes()]
        lines["a"].open_upload(plan, fragments)
        with pytest.raises(grpc.RpcError):
            lines["a"].put(plan.round, 0, fragments[0])
    found = coordinator.registry.exclusions("a")
    assert len(found) == 20
    assert "not finite" in found[-1].reason or "NaN" in found[-1].reason
    contribute(lines["a"], plan)
    contribute(lines["b"], plan)
    assert sorted(parts(Manifest.parsed(coordinator.aggregate().payload, what="m"))) == ["a", "b"]


def test_a_newcomer_has_no_weight_until_it_is_known(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    adopt(coordinator, influence={"newcomer_rounds": 2})
    _plan, lines = gathered(coordinator, stack, "a", "b")
    for _round in range(2):  # nobody is known yet: without weights there would be no quorum
        weights = {m: part.weight for m, part in parts(played(coordinator, lines)).items()}
        assert weights == {"a": 0.5, "b": 0.5}
        coordinator.desk.pass_time()
    member = coordinator.join("c")
    lines["c"] = stack.enter_context(member.connected())
    stack.callback(lines["c"].watch().end)
    played(coordinator, {m: lines[m] for m in ("a", "b")})  # opened before c came
    for _round in range(2):
        coordinator.desk.pass_time()
        found = parts(played(coordinator, lines))
        assert (found["c"].weight, found["a"].weight) == (0.0, 0.5)
        assert "newcomer" in found["c"].reason
    coordinator.desk.pass_time()
    assert parts(played(coordinator, lines))["c"].weight == pytest.approx(1 / 3)
    assert {(e.kind, e.member_id) for e in coordinator.registry.exclusions()} == {(NO_WEIGHT, "c")}


def test_a_group_moves_the_consensus_no_further_than_its_cap(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    groups = {"france": ["a", "b", "c"]}
    adopt(coordinator, influence={"groups": groups, "group_cap": 0.4}, aggregation={"gamma": 1.0})
    _plan, lines = gathered(coordinator, stack, "a", "b", "c", "d", "e")
    made = played(coordinator, lines, a=80, b=20, c=20, d=40, e=40)
    weights = {m: part.weight for m, part in parts(made).items()}
    # a may have a quarter, so b and c share .15; d and e may have a quarter each, .1 is nobody's
    expected = {"a": 0.25, "b": 0.075, "c": 0.075, "d": 0.25, "e": 0.25}
    assert weights == pytest.approx(expected)
