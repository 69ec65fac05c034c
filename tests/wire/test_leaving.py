<<<<<<< HEAD
"""A member that ends its own membership, over mutual TLS."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tapestry.v1 import enrolment_pb2
from tapestry_coordinator.actions import newest_actions
from tapestry_coordinator.registry import LEFT, REVOKED
from tests.coordinator.small import found_small
from tests.wire.serving import CALL_SECONDS, Coordinator, Line


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    serving = Coordinator(found_small(tmp_path / "fed"))
    yield serving
    serving.stop()


def leave(line: Line, reason: str = "our law has changed") -> float:
    request = enrolment_pb2.LeaveRequest(reason=reason)
    return line.enrolment.Leave(request, timeout=CALL_SECONDS).left_at


@contextmanager
def denied(says: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError, match=says) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def status_of(coordinator: Coordinator, member_id: str) -> str:
    member = coordinator.registry.member(member_id)
    assert member is not None
    return member.status


def test_a_member_leaves_by_itself_and_is_refused_at_its_next_call(
    coordinator: Coordinator,
) -> None:
    with coordinator.join("fr-bnf").connected() as line:
        line.describe()
        left_at = leave(line)
        with denied("fr-bnf has left this federation"):
            line.describe()
    assert left_at == coordinator.clock.now
    assert status_of(coordinator, "fr-bnf") == LEFT
    (action,) = newest_actions(coordinator.registry, last=5)
    assert (action.who, action.what, action.detail) == ("fr-bnf", "leave", "our law has changed")


def test_leaving_again_with_the_same_certificate_is_answered_as_before(
    coordinator: Coordinator,
) -> None:
    with coordinator.join("fr-bnf").connected() as line:
        first = leave(line)
        coordinator.clock.forward(60)
        assert leave(line) == first
    assert len(newest_actions(coordinator.registry, last=5)) == 1


def test_nobody_leaves_for_another_or_after_a_revocation(coordinator: Coordinator) -> None:
    other = coordinator.join("is-lbs")
    with coordinator.join("fr-bnf").connected() as line:
        coordinator.revoke("fr-bnf")
        with denied("not a member of this federation any more"):
            leave(line)
    assert status_of(coordinator, "fr-bnf") == REVOKED
    with other.connected() as line:
        line.describe()


def test_who_has_left_may_be_invited_again(coordinator: Coordinator) -> None:
    with coordinator.join("fr-bnf").connected() as line:
        leave(line)
    with coordinator.join("fr-bnf").connected() as line:
        line.describe()


def test_an_open_stream_of_plans_ends_with_the_membership(coordinator: Coordinator) -> None:
    member = coordinator.join("fr-bnf")
    with member.connected() as line, member.connected() as other:
        watch = line.watch()
        leave(other)
        with denied("has left"):
            while True:
                watch.next()
=======
"""A member is revoked while its round is open: out of the round, the others undisturbed."""

import json
from contextlib import ExitStack

import pytest

from tapestry.checkpoints.statements import RoundPlan, payload_digest
from tapestry.cli.main import main
from tapestry_coordinator.exclusions import NO_WEIGHT, record_weightless
from tapestry_coordinator.rounds import Left, Phase
from tests.wire.serving import Coordinator, Line, gathered
from tests.wire.test_no_harm import closed_round, made, measure
from tests.wire.test_policy import DELTA, contribute, parts

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
>>>>>>> main
