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
