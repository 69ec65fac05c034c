"""Roles, pauses, and operators at work from afar: real calls over mutual TLS."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest

from tapestry.errors import ConfigError, RejectedError, UntrustedError
from tapestry.identity.certificates import fingerprint
from tapestry.identity.invitations import decode
from tapestry.v1 import admin_pb2, admin_pb2_grpc, rounds_pb2
from tapestry.wire.admin import AdminClient
from tapestry.wire.channels import open_channel
from tapestry_coordinator.actions import record
from tapestry_coordinator.operating import Operator
from tapestry_coordinator.round_state import Phase
from tests.wire.serving import CALL_SECONDS, Coordinator, Line, Watch
from tests.wire.test_service import gathered, refused

EVERY_DATABASE = True

DELTA = np.float32([0.5, -0.25])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def local(coordinator: Coordinator) -> Operator:
    """Somebody at the coordinator's machine."""
    return Operator(coordinator.home, coordinator.registry, clock=coordinator.clock)


@pytest.fixture
def line(coordinator: Coordinator, stack: ExitStack) -> Line:
    """An operator's connection."""
    member = coordinator.join("ops", role="operator")
    return stack.enter_context(member.connected())


@pytest.fixture
def remote(line: Line) -> AdminClient:
    return AdminClient(line.channel, "the coordinator")


def notice(watch: Watch, word: str) -> str:
    """Read on until a notice says so."""
    message = watch.first
    while word not in message.notice:
        message = watch.next()
    assert not message.HasField("plan") or "contributed" in message.notice
    return str(message.notice)


# Pauses


def test_a_pause_keeps_the_next_round_closed_and_lets_the_open_one_end(
    coordinator: Coordinator, local: Operator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    watch = lines["a"].watch()
    local.pause("new disks,\nback at 14:00 UTC")
    coordinator.desk.pass_time()
    assert notice(watch, "paused") == (
        "round 1: 0 of 2 contributed; the operator has paused what comes after it"
    )
    for line in lines.values():
        line.commit(line.sent(plan, DELTA))
    coordinator.aggregate()
    for _ in range(3):
        coordinator.clock.forward(3600)
        coordinator.desk.pass_time()
    assert (coordinator.desk.state.number, coordinator.desk.state.phase) == (2, Phase.WAITING)
    assert notice(watch, "before round 2") == (
        "the federation's operator has paused it before round 2: new disks, back at 14:00 UTC"
    )
    assert local.resume()["was_paused"] is True
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.OPEN


def test_a_pause_outlives_a_restart(coordinator: Coordinator, local: Operator) -> None:
    for name in ("a", "b"):
        coordinator.join(name)
    local.pause("")
    again = coordinator.restarted()
    try:
        with again.join("c").connected() as line, again.join("d").connected() as other:
            watches = [line.watch(), other.watch()]
            again.clock.forward(3600)
            again.desk.pass_time()
            assert again.desk.state.phase is Phase.WAITING
            assert "paused it before round 1" in watches[0].first.notice
    finally:
        again.stop()


def test_a_round_without_a_quorum_is_not_planned_again_while_paused(
    coordinator: Coordinator, local: Operator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    receipt = lines["a"].commit(lines["a"].sent(plan, DELTA))
    local.pause("")
    coordinator.clock.forward(3601)
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.WAITING
    local.resume()
    coordinator.clock.forward(11)
    coordinator.desk.pass_time()
    coordinator.clock.forward(11)
    coordinator.desk.pass_time()
    state = coordinator.desk.state
    assert (state.phase, state.attempt, list(state.arrived)) == (Phase.OPEN, 2, ["a"])
    assert lines["a"].open_upload(coordinator.plan, []).receipt.payload == receipt.payload


def test_to_resume_what_is_not_paused_changes_nothing(local: Operator) -> None:
    assert local.resume() == {"was_paused": False, "paused": None}
    assert local.show("log", last=10) == {"actions": []}


# Roles


def test_an_observer_fetches_and_measures_and_is_in_no_cohort(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    observer = stack.enter_context(coordinator.join("eye", role="observer").connected())
    watch = observer.watch()
    assert "waiting for members: 0 here, 2 needed" in watch.first.notice
    plan, _lines = gathered(coordinator, stack)
    assert plan.cohort == ("a", "b")
    assert notice(watch, "contributed") == "round 1: 0 of 2 contributed"
    described = observer.describe()
    assert described.manifest.payload
    observer.rounds.SubmitEvaluation(
        rounds_pb2.SubmitEvaluationRequest(
            manifest_digest=bytes.fromhex(plan.base),
            bits_per_byte=2.5,
            held_out_bytes=100,
            language="fr",
        ),
        timeout=CALL_SECONDS,
    )
    assert [e.member_id for e in coordinator.registry.evaluations()] == ["eye"]


@pytest.mark.parametrize("role", ["observer", "operator"])
def test_who_does_not_contribute_cannot_upload(
    coordinator: Coordinator, stack: ExitStack, role: str
) -> None:
    plan, lines = gathered(coordinator, stack)
    eye = stack.enter_context(coordinator.join("eye", role=role).connected())
    says = f"eye is in this federation as {role}, and does not contribute"
    with refused(says, UntrustedError):
        eye.open_upload(plan, [b"12345678"])
    with refused(says, UntrustedError):
        eye.commit(eye.declared(plan, [b"12345678"]))
    lines["a"].commit(lines["a"].sent(plan, DELTA))
    assert sorted(coordinator.desk.state.arrived) == ["a"]


def test_a_round_does_not_wait_for_observers(coordinator: Coordinator, stack: ExitStack) -> None:
    """Everybody who could contribute is here, so it opens before the gathering is over."""
    coordinator.join("eye", role="observer")
    gathered(coordinator, stack)
    assert coordinator.desk.state.phase is Phase.OPEN


def test_a_role_is_that_of_the_invitation_and_changes_with_the_next_one(
    coordinator: Coordinator, local: Operator
) -> None:
    coordinator.join("a", role="observer")
    rows = local.show("members", last=1)["members"]
    assert [(m["member_id"], m["role"], m["status"]) for m in rows] == [("a", "observer", "active")]
    invitation = decode(local.invite("a", role="contributor", replaces=True)["invitation"])
    assert rows == local.show("members", last=1)["members"]
    member = coordinator.issue("a")
    with member.knocking() as stub:
        stub.Enrol(member.enrolment(invitation), timeout=CALL_SECONDS)
    assert local.show("members", last=1)["members"][0]["role"] == "contributor"


# Invitations


def test_an_invitation_that_is_sent_again_makes_the_first_one_worthless(
    coordinator: Coordinator, local: Operator
) -> None:
    first = decode(local.invite("a", role="contributor", replaces=False)["invitation"])
    with pytest.raises(ConfigError, match="a has an open invitation: --resend"):
        local.invite("a", role="contributor", replaces=False)
    coordinator.clock.forward(1)
    second = decode(local.invite("a", role="contributor", replaces=True)["invitation"])
    member = coordinator.issue("a")
    with member.knocking() as stub:
        with refused("this invitation was withdrawn"):
            stub.Enrol(member.enrolment(first), timeout=CALL_SECONDS)
        stub.Enrol(member.enrolment(second), timeout=CALL_SECONDS)
    states = [row["state"] for row in local.show("invitations", last=9)["invitations"]]
    assert states == ["withdrawn", "used"]
    coordinator.clock.forward(1e6)
    local.invite("b", role="observer", replaces=False)
    coordinator.clock.forward(1e6)
    rows = local.show("invitations", last=1)["invitations"]
    assert [(row["member_id"], row["role"], row["state"]) for row in rows] == [
        ("b", "observer", "expired")
    ]


def test_a_member_that_lost_its_folder_joins_anew_and_its_old_certificate_ends_then(
    coordinator: Coordinator, local: Operator
) -> None:
    old = coordinator.join("a")
    invitation = decode(local.invite("a", role="contributor", replaces=True)["invitation"])
    with old.connected() as line:
        line.describe()
        new = coordinator.issue("a")
        with new.knocking() as stub:
            answer = stub.Enrol(new.enrolment(invitation), timeout=CALL_SECONDS)
        new.certificate = answer.certificate
        with refused("the certificate was replaced by a newer one", UntrustedError):
            line.describe()
    with new.connected() as line:
        line.describe()


def test_who_is_revoked_before_joining_cannot_use_the_invitation(
    coordinator: Coordinator, local: Operator
) -> None:
    invitation = decode(local.invite("a", role="contributor", replaces=False)["invitation"])
    table = local.revoke("a")
    assert (table["was_member"], table["withdrawn_invitations"]) == (False, 1)
    member = coordinator.issue("a")
    with member.knocking() as stub, refused("this invitation was withdrawn"):
        stub.Enrol(member.enrolment(invitation), timeout=CALL_SECONDS)
    with pytest.raises(ConfigError, match="a is not a member, and has no open invitation"):
        local.revoke("a")


def test_a_role_that_there_is_not_is_named(local: Operator) -> None:
    with pytest.raises(ConfigError, match=r"role 'king': expected one of contributor, observer"):
        local.invite("a", role="king", replaces=False)


# From afar


def test_an_operator_runs_the_federation_from_afar_and_is_on_record(
    coordinator: Coordinator, remote: AdminClient, local: Operator, stack: ExitStack
) -> None:
    status = remote.show("status", last=1)
    assert (status["federation"], status["round"], status["paused"]) == ("loom", 1, None)
    paused = remote.pause("moving house")["paused"]
    assert (paused["who"], paused["reason"]) == ("ops", "moving house")
    assert local.show("status", last=1)["paused"] == paused
    assert remote.resume()["was_paused"] is True
    table = remote.invite("z", role="observer", replaces=False)
    assert (
        fingerprint(table["root_certificate"].encode())
        == decode(table["invitation"]).root_fingerprint
    )
    member = coordinator.issue("z")
    with member.knocking() as stub:
        answer = stub.Enrol(member.enrolment(decode(table["invitation"])), timeout=CALL_SECONDS)
    member.certificate = answer.certificate
    line = stack.enter_context(member.connected())
    line.describe()
    assert remote.revoke("z")["was_member"] is True
    with refused("z is not a member of this federation any more", UntrustedError):
        line.describe()
    rows = remote.show("log", last=100)["actions"]
    assert [(row["who"], row["what"], row["detail"]) for row in rows] == [
        ("ops", "pause", "moving house"),
        ("ops", "resume", ""),
        ("ops", "invite", "z as observer"),
        ("ops", "revoke", "z"),
    ]


def admin_calls(client: AdminClient) -> dict[str, Any]:
    """Every call of the service."""
    return {
        "Status": lambda: client.show("status", last=1),
        "Pause": lambda: client.pause(""),
        "Resume": client.resume,
        "Invite": lambda: client.invite("x", role="operator", replaces=False),
        "Revoke": lambda: client.revoke("ops"),
    }


@pytest.mark.parametrize("role", ["contributor", "observer"])
def test_every_other_role_is_refused_whatever_it_asks(
    coordinator: Coordinator, remote: AdminClient, stack: ExitStack, role: str
) -> None:
    line = stack.enter_context(coordinator.join("x", role=role).connected())
    for call in admin_calls(AdminClient(line.channel, "the coordinator")).values():
        with pytest.raises(UntrustedError, match=f"x is in this federation as {role}: only an op"):
            call()
    assert remote.show("log", last=9) == {"actions": []}


def test_an_operator_that_was_revoked_is_none(
    coordinator: Coordinator, remote: AdminClient
) -> None:
    coordinator.revoke("ops")
    for call in admin_calls(remote).values():
        with pytest.raises(UntrustedError, match="ops is not a member of this federation any more"):
            call()
    assert coordinator.registry.member("x") is None


def test_what_an_operator_asks_wrongly_is_named(remote: AdminClient) -> None:
    with pytest.raises(RejectedError, match="no view 'secrets': there are status, members"):
        remote.show("secrets", last=1)
    with pytest.raises(ConfigError, match="nobody is not a member"):
        remote.revoke("nobody")
    with pytest.raises(ConfigError, match="expected one of contributor"):
        remote.invite("x", role="root", replaces=False)
    with pytest.raises(ConfigError):
        remote.invite("No Slug", role="observer", replaces=False)


def test_no_certificate_no_administration(coordinator: Coordinator) -> None:
    """The enrolment port, where nobody shows a certificate, does not have the service."""
    with (
        open_channel(coordinator.door, root_pem=coordinator.root_pem) as channel,
        pytest.raises(RejectedError, match="unimplemented"),
    ):
        AdminClient(channel, "the door").pause("")


# Rounds


def test_rounds_tell_who_was_there_why_others_were_not_and_what_came(
    coordinator: Coordinator, remote: AdminClient, stack: ExitStack
) -> None:
    assert remote.show("rounds", last=5) == {"rounds": []}
    began = coordinator.clock.now
    plan, lines = gathered(coordinator, stack, "a", "b", "c", "d")
    lines["c"].rounds.Decline(
        rounds_pb2.DeclineRequest(round=1, reason="my policy forbids it"), timeout=CALL_SECONDS
    )
    for name in ("a", "b"):
        coordinator.clock.forward(10)
        lines[name].commit(lines[name].sent(plan, DELTA))
    (row,) = remote.show("rounds", last=5)["rounds"]
    assert row["absent"] == {"c": "my policy forbids it", "d": "nothing came yet"}
    assert (row["phase"], row["closed_at"]) == ("open", None)
    coordinator.clock.forward(300)
    coordinator.desk.pass_time()
    coordinator.aggregate()
    coordinator.desk.pass_time()
    (row,) = [r for r in remote.show("rounds", last=5)["rounds"] if r["round"] == 1]
    assert row == {
        "round": 1,
        "phase": "published",
        "attempts": 1,
        "opened_at": began,
        "closed_at": began + 320,
        "published_at": began + 320,
        "seconds": 320.0,
        "cohort": ["a", "b", "c", "d"],
        "contributions": ["a", "b"],
        "absent": {
            "c": "my policy forbids it",
            "d": "no contribution before the round closed",
        },
        "bytes": 16,
        "excluded": {},
    }


def test_tables_that_do_not_fit_into_an_answer_ask_for_fewer_rows(
    coordinator: Coordinator, remote: AdminClient
) -> None:
    with coordinator.registry.begin() as connection:
        for _ in range(3):
            record(connection, who="x", what="pause", detail="x" * 2_000_000, now=1.0)
    with pytest.raises(RejectedError, match="ask for fewer rows"):
        remote.show("log", last=3)
    assert len(remote.show("log", last=1)["actions"]) == 1


def test_status_codes_are_those_of_the_protocol(coordinator: Coordinator, stack: ExitStack) -> None:
    line = stack.enter_context(coordinator.join("x").connected())
    stub = admin_pb2_grpc.AdminServiceStub(line.channel)
    with pytest.raises(grpc.RpcError) as refusal:
        stub.Pause(admin_pb2.PauseRequest(), timeout=CALL_SECONDS)
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
