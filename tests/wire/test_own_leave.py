"""A member that ends its own membership, over mutual TLS."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from tapestry.v1 import enrolment_pb2
from tapestry_coordinator.actions import newest_actions
from tapestry_coordinator.roster import LEFT, REVOKED
from tapestry_coordinator.round_state import Phase
from tests.wire.serving import CALL_SECONDS, Coordinator, Line, gathered
from tests.wire.test_no_harm import made
from tests.wire.test_policy import contribute, parts

EVERY_DATABASE = True


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


def test_a_round_goes_on_without_who_left_and_keeps_what_it_had_sent(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack, "a", "b", "c")
    for name in ("a", "b"):
        contribute(lines[name], plan)
    leave(lines["a"])
    assert coordinator.desk.state.phase is Phase.OPEN
    leave(lines["c"])
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.AGGREGATING, "nobody is waited for"
    weights = {m: part.weight for m, part in parts(made(coordinator.aggregate())).items()}
    assert weights == {"a": 0.5, "b": 0.5}
