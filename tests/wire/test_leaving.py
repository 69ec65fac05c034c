"""A member is revoked while its round is open: out of the round, the others undisturbed."""

import json
from contextlib import ExitStack

import pytest

from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.cli.main import main
from tapestry_coordinator.events import Left
from tapestry_coordinator.exclusions import NO_WEIGHT, record_weightless
from tapestry_coordinator.round_state import Phase
from tests.wire.serving import Coordinator, Line, gathered
from tests.wire.test_no_harm import closed_round, made, measure
from tests.wire.test_policy import DELTA, contribute, parts

EVERY_DATABASE = True

REASON = "not a member any more when the round closed"


def opened(coordinator: Coordinator, stack: ExitStack) -> tuple[RoundPlan, dict[str, Line]]:
    """A round of three, all of whom are waited for; a and b have contributed."""
    _plan, lines = gathered(coordinator, stack, "a", "b", "c")
    assert coordinator.plan.cohort == ("a", "b", "c")
    for name in ("a", "b"):
        contribute(lines[name], coordinator.plan)
    return coordinator.plan, lines


def test_a_revoked_members_contribution_has_no_weight_and_the_reason_is_on_record(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = opened(coordinator, stack)
    coordinator.revoke("a")
    contribute(lines["c"], plan)  # nobody has looked since: this closes the round
    assert coordinator.desk.state.phase is Phase.AGGREGATING
    manifest = made(coordinator.aggregate())
    record_weightless(coordinator.registry, manifest)
    found = {m: (part.weight, part.reason) for m, part in parts(manifest).items()}
    assert found == {"a": (0.0, REASON), "b": (0.5, ""), "c": (0.5, "")}
    (exclusion,) = coordinator.registry.exclusions()
    assert (exclusion.member_id, exclusion.kind, exclusion.reason) == ("a", NO_WEIGHT, REASON)
    assert coordinator.registry.contributions(1)[0].member_id == "a", "what came stays on record"
    events = [event for _at, event in coordinator.registry.round_events(1)]
    (noted,) = [event for event in events if isinstance(event, Left)]
    assert (noted.member_id, noted.reason) == ("a", REASON)


def test_a_restart_and_a_new_membership_bring_nothing_back(
    coordinator: Coordinator, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, lines = opened(coordinator, stack)
    coordinator.revoke("a")
    with coordinator.join("a").connected() as line:  # before any tick
        assert coordinator.desk.state.excluded == {"a": REASON}
        stored = coordinator.registry.contribution(1, "a")
        assert stored is not None
        envelope = line.declared(plan, [DELTA.tobytes()], tokens=7)
        assert line.commit(envelope) == stored.receipt, "nobody contributes twice"
    members = {name: lines[name].member for name in ("b", "c")}
    stack.close()
    again = coordinator.restarted()
    assert again.desk.state.excluded == {"a": REASON}
    assert main(["coordinator", "status", "--json", "--dir", str(again.home.folder)]) == 0
    assert json.loads(capsys.readouterr().out)["excluded"] == {"a": REASON}
    assert main(["coordinator", "status", "--dir", str(again.home.folder)]) == 0
    assert f"excluded: a: {REASON}" in capsys.readouterr().out
    with members["c"].connected(again) as line:
        contribute(line, plan)
    assert parts(made(again.aggregate()))["a"].weight == 0.0
    again.stop()


def test_without_a_quorum_the_round_waits_for_another_contribution(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = opened(coordinator, stack)
    coordinator.revoke("a")
    coordinator.clock.forward(301.0)  # the grace of the quorum that there was
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.OPEN
    contribute(lines["c"], plan)
    assert coordinator.desk.state.phase is Phase.AGGREGATING


def test_the_gate_does_not_wait_for_a_member_that_was_revoked(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    lines = closed_round(coordinator, stack, action="hold")
    candidate = coordinator.propose()
    coordinator.revoke("a")
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.MEASURING
    measure(lines["b"], payload_digest(candidate), 2.0)
    assert coordinator.desk.state.phase is Phase.RELEASING
    published = coordinator.aggregate()
    assert published.payload == candidate.payload, "a's part stays: the round had closed"
