"""The three services over real connections: mutual TLS on loopback, only the clock is ours."""

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import Receipt, RoundPlan, payload_digest
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.cli.main import main
from tapestry.errors import RejectedError, TapestryError, UnavailableError, UntrustedError
from tapestry.identity.certificates import (
    create_tls_key,
    issue_server_certificate,
    read_member_certificate,
)
from tapestry.identity.envelopes import sign
from tapestry.identity.keys import load_tls_key, private_pem, public_bytes
from tapestry.params.fragments import fragment_digest, fragments_root, unpack_missing
from tapestry.v1 import enrolment_pb2, enrolment_pb2_grpc, rounds_pb2, transfer_pb2
from tapestry.v1.rounds_pb2_grpc import RoundsServiceStub
from tapestry.wire.channels import (
    open_channel,
    server_credentials,
)
from tapestry.wire.limits import FETCH_CHUNK_BYTES, MAX_MESSAGE_BYTES
from tapestry.wire.messages import envelope_message, envelope_value
from tapestry.wire.statuses import errors_from_status
from tapestry_coordinator.card import write_card
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.testimony import StoredEvaluation
from tapestry_coordinator.uploads import FragmentStore
from tests.coordinator.small import MOST_TOKENS, forget_stores, found_small
from tests.servers import sqlite_alone
from tests.wire.conftest import ROUNDS
from tests.wire.serving import (
    CALL_SECONDS,
    ENROL_TYPE,
    WORKERS,
    Coordinator,
    Line,
    Member,
    gathered,
)

# A store keeps the files of unfinished uploads open and cannot be closed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
let_go = pytest.fixture(scope="module", autouse=True)(forget_stores)

HALF = np.float32([0.5, 0.25])
REASON = "tapestry-reason"


@contextmanager
def refused(
    cause: str, family: type[TapestryError] = RejectedError
) -> Iterator[pytest.ExceptionInfo[TapestryError]]:
    """The call inside comes back as this family of error, with a sentence."""
    with (
        pytest.raises(family, match=cause) as refusal,
        errors_from_status("the coordinator"),
    ):
        yield refusal
    assert type(refusal.value) is family, refusal.value
    assert "Traceback" not in str(refusal.value)
    assert "Exception calling application" not in str(refusal.value)


# Enrolment


def test_an_invitation_becomes_a_certificate_that_opens_the_other_port(
    coordinator: Coordinator,
) -> None:
    member, invitation = Member(coordinator, "fr-bnf"), coordinator.invite("fr-bnf")
    with member.knocking() as stub:
        response = stub.Enrol(member.enrolment(invitation), timeout=CALL_SECONDS)
    named = read_member_certificate(response.certificate, federation="loom")
    assert named.member_id == "fr-bnf"
    lifetime = named.not_after.timestamp() - coordinator.clock.now
    assert lifetime == pytest.approx(30 * 86_400, abs=1.0)
    assert response.coordinator_key == public_bytes(coordinator.small.key)
    assert response.genesis_digest.hex() == coordinator.desk.genesis.genesis_digest
    assert response.address == "localhost:7443"
    known = coordinator.registry.member("fr-bnf")
    assert known is not None
    assert (known.signing_key, known.joined_at) == (
        public_bytes(member.signing_key).hex(),
        coordinator.clock.now,
    )
    assert known.certificate_serial == f"{named.serial:x}"
    member.certificate = response.certificate
    with member.connected() as line:
        assert line.describe().HasField("manifest")


def test_the_name_in_a_certificate_request_is_ignored(coordinator: Coordinator) -> None:
    member, invitation = Member(coordinator, "fr-bnf"), coordinator.invite("fr-bnf")
    request = Member(coordinator, "is-lbs").request(member.tls_key)
    with member.knocking() as stub:
        response = stub.Enrol(
            member.enrolment(invitation, certificate_request=request), timeout=CALL_SECONDS
        )
    assert read_member_certificate(response.certificate, federation="loom").member_id == "fr-bnf"


OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"token": b"x" * 32}, "does not know this invitation: ask for a new one"),
        ({"token": b"x" * 31}, "token is damaged: ask for a new one"),
        ({"token": b""}, "token is damaged"),
        ({"member_id": "is-lbs"}, "does not know this invitation"),
        ({"member_id": "../../etc"}, "does not know this invitation"),
        ({"federation": "warp"}, "the coordinator of loom, the invitation is to 'warp'"),
        ({"signing_key": b"short"}, "not a raw Ed25519 public key of 32 bytes"),
        ({"signing_key": b"\xff" * 32}, "does not hold the signing key"),
        ({"signing_key": public_bytes(OTHER_KEY)}, "does not hold the signing key"),
        ({"signing_key_proof": b""}, "does not hold the signing key"),
        ({"signing_key_proof": b"\x00" * 64}, "does not hold the signing key"),
        ({"certificate_request": b""}, "certificate request: cannot be read"),
        ({"certificate_request": b"garbage"}, "certificate request: cannot be read"),
        ({"certificate_request": b"x" * 9000}, "certificate request: 9,000 bytes came"),
    ],
)
def test_an_enrolment_that_is_wrong_is_refused_and_the_invitation_stays_good(
    coordinator: Coordinator, changes: dict[str, Any], cause: str
) -> None:
    member, invitation = Member(coordinator, "fr-bnf"), coordinator.invite("fr-bnf")
    with member.knocking() as stub:
        with refused(cause):
            stub.Enrol(member.enrolment(invitation, **changes), timeout=CALL_SECONDS)
        assert coordinator.registry.members() == []
        stub.Enrol(member.enrolment(invitation), timeout=CALL_SECONDS)


def test_a_proof_over_another_request_is_refused(coordinator: Coordinator) -> None:
    member, invitation = Member(coordinator, "fr-bnf"), coordinator.invite("fr-bnf")
    proof = sign(ENROL_TYPE, member.request(create_tls_key()), member.signing_key).signature
    with member.knocking() as stub, refused("does not hold the signing key"):
        stub.Enrol(member.enrolment(invitation, signing_key_proof=proof), timeout=CALL_SECONDS)


def test_a_request_for_another_kind_of_key_is_refused(coordinator: Coordinator) -> None:
    member, invitation = Member(coordinator, "fr-bnf"), coordinator.invite("fr-bnf")
    request = member.request(ec.generate_private_key(ec.SECP384R1()))
    with member.knocking() as stub, refused("expected an ECDSA key on the curve P-256"):
        stub.Enrol(member.enrolment(invitation, certificate_request=request), timeout=CALL_SECONDS)


def test_an_invitation_works_once(coordinator: Coordinator) -> None:
    member, invitation = Member(coordinator, "fr-bnf"), coordinator.invite("fr-bnf")
    thief = Member(coordinator, "fr-bnf")
    thief.signing_key = OTHER_KEY
    with member.knocking() as stub:
        stub.Enrol(member.enrolment(invitation), timeout=CALL_SECONDS)
        with refused("this invitation was used already: ask for a new one"):
            stub.Enrol(thief.enrolment(invitation), timeout=CALL_SECONDS)
    known = coordinator.registry.member("fr-bnf")
    assert known is not None
    assert known.signing_key == public_bytes(member.signing_key).hex()


def test_an_invitation_expires(coordinator: Coordinator) -> None:
    member, invitation = Member(coordinator, "fr-bnf"), coordinator.invite("fr-bnf")
    coordinator.clock.forward(72 * 3600)
    with member.knocking() as stub, refused("has expired: ask for a new one"):
        stub.Enrol(member.enrolment(invitation), timeout=CALL_SECONDS)


# Who may call


@contextmanager
def kept_out() -> Iterator[None]:
    """TLS ends the connection; a node may see no more of it than that."""
    with (
        pytest.raises((UntrustedError, UnavailableError)),
        errors_from_status("the coordinator"),
    ):
        yield


def test_a_call_without_a_certificate_does_not_get_through(coordinator: Coordinator) -> None:
    with (
        open_channel(coordinator.address, root_pem=coordinator.root_pem) as channel,
        kept_out(),
    ):
        RoundsServiceStub(channel).Report(rounds_pb2.ReportRequest(), timeout=CALL_SECONDS)


def test_a_certificate_of_another_root_does_not_get_through(coordinator: Coordinator) -> None:
    coordinator.join("a")
    other = found_small(coordinator.home.folder.parent / "other", federation="warp")
    forger = coordinator.issue("a", authority=other.home.load_authority())
    with forger.connected() as line, kept_out():
        line.describe()


def test_an_expired_certificate_does_not_get_through(coordinator: Coordinator) -> None:
    # TLS hangs up without a word; the node's daemon looks at its own certificate first.
    coordinator.join("a")
    late = coordinator.issue("a", age_days=60)  # of 7
    with late.connected() as line, refused(r"hangs up .* the two clocks", UnavailableError):
        line.describe()


def test_a_certificate_that_is_not_valid_yet_does_not_get_through(
    coordinator: Coordinator,
) -> None:
    coordinator.join("a")
    early = coordinator.issue("a", age_days=-2)  # made where the clock is two days ahead
    with early.connected() as line, refused(r"hangs up .* the two clocks", UnavailableError):
        line.describe()


@pytest.mark.parametrize("days", [-200, 2])
def test_a_coordinator_whose_clock_is_wrong_is_told_from_a_false_one(
    coordinator: Coordinator, days: int
) -> None:
    started = datetime.now(UTC) + timedelta(days=days)
    with (
        serving_alone(coordinator, lambda: started) as address,
        coordinator.join("a").connected(address=address) as line,
        refused("by this machine's clock is not valid now: compare the clocks", UnavailableError),
    ):
        line.describe()


@contextmanager
def serving_alone(coordinator: Coordinator, clock: Callable[[], datetime]) -> Iterator[str]:
    """A listening port with the coordinator's own certificate by that clock, and no service."""
    key = load_tls_key(coordinator.home.tls_key)
    certificate = issue_server_certificate(
        coordinator.authority, key.public_key(), federation="loom", hosts=[], now=clock()
    )
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = server_credentials(
        certificate_pem=certificate, key_pem=private_pem(key), root_pem=coordinator.root_pem
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_coordinator_of_another_federation_is_not_believed(coordinator: Coordinator) -> None:
    member = coordinator.join("a")
    other = found_small(coordinator.home.folder.parent / "other", federation="warp")
    with (
        open_channel(
            coordinator.address,
            root_pem=other.home.load_authority().certificate_pem,
            certificate_pem=member.certificate,
            key_pem=private_pem(member.tls_key),
        ) as channel,
        refused("is not the coordinator of this federation", UntrustedError),
    ):
        RoundsServiceStub(channel).Report(rounds_pb2.ReportRequest(), timeout=CALL_SECONDS)


def test_a_member_does_not_pass_for_the_coordinator(coordinator: Coordinator) -> None:
    # A member's certificate is of the right root; its purpose and name are not the coordinator's.
    member = coordinator.join("a")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port(
        "127.0.0.1:0",
        server_credentials(
            certificate_pem=member.certificate, key_pem=private_pem(member.tls_key), root_pem=None
        ),
    )
    server.start()
    with (
        open_channel(f"127.0.0.1:{port}", root_pem=coordinator.root_pem) as channel,
        kept_out(),
    ):
        enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(
            enrolment_pb2.EnrolRequest(), timeout=CALL_SECONDS
        )
    server.stop(None).wait()


def test_the_coordinators_own_certificate_names_no_member(coordinator: Coordinator) -> None:
    key = load_tls_key(coordinator.home.tls_key)
    certificate = issue_server_certificate(
        coordinator.authority, key.public_key(), federation="loom", hosts=[],
        now=read_member_certificate(
            coordinator.issue("x").certificate, federation="loom"
        ).not_before,
    )  # fmt: skip
    imposing = Member(coordinator, "a")
    imposing.tls_key, imposing.certificate = key, certificate
    with (
        imposing.connected() as line,
        kept_out(),
    ):
        line.describe()


def test_a_good_certificate_of_somebody_who_never_enrolled_is_refused(
    coordinator: Coordinator,
) -> None:
    with (
        coordinator.issue("stranger").connected() as line,
        refused("stranger is not a member of this federation any more", UntrustedError),
    ):
        line.describe()


Call = Callable[[Line], object]
CALLS: dict[str, Call] = {
    "Report": lambda line: line.rounds.Report(rounds_pb2.ReportRequest(), timeout=CALL_SECONDS),
    "Decline": lambda line: line.rounds.Decline(rounds_pb2.DeclineRequest(), timeout=CALL_SECONDS),
    "SubmitEvaluation": lambda line: line.rounds.SubmitEvaluation(
        rounds_pb2.SubmitEvaluationRequest(), timeout=CALL_SECONDS
    ),
    "WatchPlans": lambda line: line.watch(),
    "Describe": lambda line: line.describe(),
    "Lineage": lambda line: list(
        line.transfer.Lineage(transfer_pb2.LineageRequest(), timeout=CALL_SECONDS)
    ),
    "Fetch": lambda line: list(
        line.transfer.Fetch(transfer_pb2.FetchRequest(digest=b"x" * 32), timeout=CALL_SECONDS)
    ),
    "OpenUpload": lambda line: line.transfer.OpenUpload(
        transfer_pb2.OpenUploadRequest(), timeout=CALL_SECONDS
    ),
    "PutFragment": lambda line: line.put(1, 0, b""),
    "Commit": lambda line: line.transfer.Commit(transfer_pb2.CommitRequest(), timeout=CALL_SECONDS),
    "Renew": lambda line: line.enrolment.Renew(enrolment_pb2.RenewRequest(), timeout=CALL_SECONDS),
}


def test_a_revoked_member_is_refused_on_its_open_connection_whatever_it_calls(
    coordinator: Coordinator,
) -> None:
    with coordinator.join("a").connected() as line:
        line.describe()
        coordinator.revoke("a")
        for call in CALLS.values():
            with refused("a is not a member of this federation any more", UntrustedError):
                call(line)


def test_a_revoked_member_hears_no_further_plan_on_its_open_stream(
    coordinator: Coordinator,
) -> None:
    with coordinator.join("a").connected() as line:
        watch = line.watch()
        coordinator.revoke("a")
        coordinator.desk.wake()
        with refused("a is not a member of this federation any more", UntrustedError):
            watch.next()


def test_a_revoked_member_that_is_invited_again_comes_with_its_new_certificate_only(
    coordinator: Coordinator,
) -> None:
    stolen = coordinator.join("a")
    coordinator.revoke("a")
    again = coordinator.join("a")
    with again.connected() as line:
        line.describe()
    with stolen.connected() as line, refused("a.* certificate", UntrustedError):
        line.describe()


def test_a_certificate_that_expired_is_refused_on_an_open_connection(
    coordinator: Coordinator,
) -> None:
    with coordinator.join("a").connected() as line:
        line.describe()
        coordinator.clock.forward(31 * 86_400)  # certificates live for 30 days
        with refused("a.* certificate", UntrustedError):
            line.describe()


# Renewal


def renewal(key: ec.EllipticCurvePrivateKey, member: Member) -> enrolment_pb2.RenewRequest:
    return enrolment_pb2.RenewRequest(certificate_request=member.request(key))


def test_a_certificate_is_renewed_over_the_one_still_valid(coordinator: Coordinator) -> None:
    member, key = coordinator.join("a"), create_tls_key()
    before = read_member_certificate(member.certificate, federation="loom")
    with member.connected() as line:
        coordinator.clock.forward(3600)
        response = line.enrolment.Renew(renewal(key, member), timeout=CALL_SECONDS)
        line.describe()
    after = read_member_certificate(response.certificate, federation="loom")
    assert after.member_id == "a"
    assert (after.not_after - before.not_after).total_seconds() == pytest.approx(3600, abs=1)
    known = coordinator.registry.member("a")
    assert known is not None
    assert known.certificate_serial == f"{after.serial:x}"
    coordinator.clock.forward(-3600)
    member.tls_key, member.certificate = key, issued_now(member, key)
    with member.connected() as line:
        line.describe()


def issued_now(member: Member, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Renew at the present time, so that TLS takes the certificate."""
    with member.connected() as line:
        response = line.enrolment.Renew(renewal(key, member), timeout=CALL_SECONDS)
    certificate: bytes = response.certificate
    return certificate


def test_a_renewal_names_the_caller_whatever_the_request_says(coordinator: Coordinator) -> None:
    member = coordinator.join("a")
    request = Member(coordinator, "b").request(create_tls_key())
    with member.connected() as line:
        response = line.enrolment.Renew(
            enrolment_pb2.RenewRequest(certificate_request=request), timeout=CALL_SECONDS
        )
    assert read_member_certificate(response.certificate, federation="loom").member_id == "a"


def test_a_renewal_without_a_certificate_is_refused(coordinator: Coordinator) -> None:
    member = coordinator.join("a")
    with member.knocking() as stub, refused("member certificate: names no", UntrustedError):
        stub.Renew(renewal(create_tls_key(), member), timeout=CALL_SECONDS)


def test_a_renewal_with_garbage_is_refused_and_changes_nothing(coordinator: Coordinator) -> None:
    member = coordinator.join("a")
    before = coordinator.registry.member("a")
    with member.connected() as line, refused("certificate request: cannot be read"):
        line.enrolment.Renew(
            enrolment_pb2.RenewRequest(certificate_request=b"garbage"), timeout=CALL_SECONDS
        )
    assert coordinator.registry.member("a") == before


# Plans


def test_a_member_hears_at_once_what_is_waited_for(coordinator: Coordinator) -> None:
    with coordinator.join("a").connected() as line:
        first = line.watch().first
    assert first.notice == "waiting for members: 1 here, 2 needed to open round 1"
    assert not first.HasField("plan")
    assert not first.is_finished
    genesis = envelope_value(first.manifest)
    assert payload_digest(genesis) == coordinator.desk.genesis.genesis_digest


def test_a_plan_is_signed_and_names_its_cohort_and_base(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, _lines = gathered(coordinator, stack)
    envelope = coordinator.registry.plan(1, 1)
    assert envelope is not None
    key = public_bytes(coordinator.small.key)
    assert RoundPlan.opened(envelope, public_key=key, what="plan") == plan
    assert (plan.round, plan.attempt, plan.cohort, plan.quorum) == (1, 1, ("a", "b"), 2)
    assert plan.base == plan.genesis == coordinator.desk.genesis.genesis_digest
    assert plan.deadline == coordinator.clock.now + 3600
    assert plan.codec == "float32"


def test_a_member_that_reconnects_gets_the_open_plan_again(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    again = lines["a"].watch()
    assert again.until_plan() == plan
    again.end()
    with lines["b"].member.connected() as fresh:
        assert fresh.watch().first.HasField("plan"), "in the very first message"


def test_a_restarted_coordinator_tells_the_same_plan(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    stack.close()
    restarted = coordinator.restarted()
    with lines["a"].member.connected(restarted) as line:
        assert line.watch().until_plan() == plan
    restarted.stop()


def test_who_comes_late_is_told_why_there_is_no_plan(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    gathered(coordinator, stack)
    with coordinator.join("c").connected() as line:
        first = line.watch().first
    assert not first.HasField("plan")
    assert first.notice == "round 1 opened before this node came; it joins the next one"


def test_who_hangs_up_is_not_counted_as_here(coordinator: Coordinator) -> None:
    member, other = coordinator.join("a"), coordinator.join("b")
    with member.connected() as line:
        line.watch()
        assert coordinator.desk.here() == ["a"]
    gone = threading.Event()
    for _try in range(100):
        coordinator.desk.wake()
        if not coordinator.desk.here():
            break
        gone.wait(0.05)
    assert coordinator.desk.here() == []
    with other.connected() as line:
        assert "1 here" in line.watch().first.notice


def test_a_refusal_of_the_plan_is_noted_in_one_line(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    _plan, lines = gathered(coordinator, stack)
    lines["a"].rounds.Decline(
        rounds_pb2.DeclineRequest(round=1, reason="too\nlong\x00 " + "x" * 900),
        timeout=CALL_SECONDS,
    )
    (reason,) = coordinator.desk.state.declined.values()
    assert reason.startswith("too long xxx")
    assert len(reason) == 500


def test_the_operator_is_told_why_a_round_goes_on_that_all_have_answered(
    coordinator: Coordinator, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    _plan, lines = gathered(coordinator, stack)
    for member, waited in (("a", "waiting for: b\n"), ("b", "of the quorum of 2 are missing")):
        request = rounds_pb2.DeclineRequest(round=1, reason="no")
        lines[member].rounds.Decline(request, timeout=CALL_SECONDS)
        assert main(["coordinator", "status", "--dir", str(coordinator.home.folder)]) == 0
        assert waited in capsys.readouterr().out


def test_a_refusal_of_another_round_is_refused(coordinator: Coordinator, stack: ExitStack) -> None:
    _plan, lines = gathered(coordinator, stack)
    for number in (0, 2, 2**64 - 1):
        with refused(f"round {number} is over, round 1 is open: wait for the next plan"):
            lines["a"].rounds.Decline(rounds_pb2.DeclineRequest(round=number), timeout=CALL_SECONDS)
    with coordinator.join("c").connected() as line, refused("c is not in the cohort of round 1"):
        line.rounds.Decline(rounds_pb2.DeclineRequest(round=1), timeout=CALL_SECONDS)


def test_progress_shows_that_a_member_is_alive(coordinator: Coordinator) -> None:
    with coordinator.join("a").connected() as line:
        coordinator.clock.forward(77)
        line.rounds.Report(
            rounds_pb2.ReportRequest(round=1, step=2, steps=10, loss=float("nan")),
            timeout=CALL_SECONDS,
        )
    known = coordinator.registry.member("a")
    assert known is not None
    assert known.last_seen_at == coordinator.clock.now


# A whole round


def test_a_round_from_plan_to_checkpoint(coordinator: Coordinator, stack: ExitStack) -> None:
    plan, lines = gathered(coordinator, stack)
    watch = lines["a"].watch()
    for name, line in lines.items():
        receipt = line.commit(line.sent(plan, HALF if name == "a" else -HALF / 2))
        opened = Receipt.opened(
            receipt, public_key=public_bytes(coordinator.small.key), what="receipt"
        )
        assert (opened.round, opened.member_id) == (1, name)
        assert opened.accepted_at == coordinator.clock.now
    assert coordinator.desk.state.phase is Phase.AGGREGATING
    envelope = coordinator.aggregate()
    message = watch.first
    while payload_digest(envelope_value(message.manifest)) != payload_digest(envelope):
        message = watch.next()
    assert not message.HasField("plan")
    made = verify_checkpoint(coordinator.home.checkpoint(1)).manifest.made
    assert made is not None
    assert [p.member_id for p in made.participation] == ["a", "b"]
    # equal weights, clip 1.5 x median: norms n and n/2, median .75 n, limit 1.125 n: no clipping;
    # aggregate = (HALF - HALF / 2) / 2 = HALF / 4; step = .6 * (1 + .9) * HALF / 4
    np.testing.assert_allclose(coordinator.small.vector(1), 1 - 0.6 * 1.9 * HALF / 4, rtol=1e-6)
    number = coordinator.desk.state.number
    assert (number, coordinator.registry.newest_round()) == (2, 1)


def test_a_receipt_is_for_exactly_what_was_signed(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    envelope = lines["a"].sent(plan, HALF)
    receipt = Receipt.parsed(lines["a"].commit(envelope).payload, what="receipt")
    assert receipt.contribution == payload_digest(envelope)
    assert receipt.root == fragments_root([fragment_digest(HALF.tobytes())]).hex()
    stored = coordinator.registry.contribution(1, "a")
    assert stored is not None
    assert stored.envelope == envelope
    assert stored.norm == pytest.approx(float(np.linalg.norm(HALF)))


def test_the_end_of_the_federation_is_told(stack: ExitStack, coordinator: Coordinator) -> None:
    rounds = ROUNDS.model_copy(update={"total": 1})
    last = Coordinator(found_small(coordinator.home.folder.parent / "last", rounds=rounds))
    with ExitStack() as inner:
        plan, lines = gathered(last, inner)
        for line in lines.values():
            line.commit(line.sent(plan, HALF))
        last.aggregate()
        watch = lines["a"].watch()
        assert watch.first.is_finished
        assert watch.first.notice == "no further round is planned"
    last.stop()
    stack.close()


# Uploads


def whole() -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.zeros(2**20 + 2, np.float32)
    values[0], values[-1] = 3.0, 4.0
    return values


def test_fragments_of_full_size_come_through_and_only_missing_ones_are_asked_for(
    large: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(large, stack)
    line, delta = lines["a"], whole()
    fragments = [delta[: 2**20].tobytes(), delta[2**20 :].tobytes()]
    assert len(fragments[0]) == 4 * 2**20
    assert unpack_missing(line.open_upload(plan, fragments).missing, 2) == [0, 1]
    line.put(1, 0, fragments[0])
    assert unpack_missing(line.open_upload(plan, fragments).missing, 2) == [1]
    with refused("1 fragments are missing: send them before committing"):
        line.commit(line.declared(plan, fragments))
    line.put(1, 0, fragments[0])
    line.put(1, 1, fragments[1])
    line.commit(line.declared(plan, fragments))
    stored = large.registry.contribution(1, "a")
    assert stored is not None
    assert stored.norm == 5.0  # 3, 4, 5


def test_an_upload_goes_on_after_a_restart(large: Coordinator, stack: ExitStack) -> None:
    plan, lines = gathered(large, stack)
    delta = whole()
    fragments = [delta[: 2**20].tobytes(), delta[2**20 :].tobytes()]
    lines["a"].open_upload(plan, fragments)
    lines["a"].put(1, 0, fragments[0])
    stack.close()
    restarted = large.restarted()
    with lines["a"].member.connected(restarted) as line:
        with refused("no upload is open: announce"):
            line.put(1, 1, fragments[1])
        assert unpack_missing(line.open_upload(plan, fragments).missing, 2) == [1]
        line.put(1, 1, fragments[1])
        line.commit(line.declared(plan, fragments))
    restarted.stop()


def test_a_message_over_the_limit_is_refused_and_the_connection_lives(
    large: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(large, stack)
    line = lines["a"]
    line.open_upload(plan, [b"1", b"2"])
    unlimited = grpc.secure_channel(
        large.address,
        grpc.ssl_channel_credentials(
            large.root_pem, private_pem(line.member.tls_key), line.member.certificate
        ),
        options=[
            ("grpc.ssl_target_name_override", "coordinator.tapestry.internal"),
            ("grpc.max_send_message_length", -1),
        ],
    )
    with unlimited:
        loud = Line(line.member, unlimited)
        with refused("refused the call .resource_exhausted.: .*larger than max"):
            loud.put(1, 0, bytes(MAX_MESSAGE_BYTES))
        loud.describe()
    line.describe()


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"round": 2}, "round 2 is over, round 1 is open"),
        ({"round": 0}, "round 0 is over, round 1 is open"),
        ({"base_digest": b"x" * 32}, "a trained from 787878787878, round 1 starts from .*: fetch"),
        ({"base_digest": b"x"}, "base_digest: a digest has 32 bytes, got 1"),
        ({"codec": "int8"}, "codec 'int8': round 1 asks for float32"),
        ({"codec": "x" * 900}, "codec 'x.{38}: round 1 asks for float32"),
        ({"fragment_digests": b""}, "expected 1 fragment digests of 32 bytes, got 0 bytes"),
        ({"fragment_digests": b"x" * 64}, "expected 1 fragment digests of 32 bytes, got 64"),
        ({"fragment_digests": b"x" * 33}, "expected 1 fragment digests of 32 bytes, got 33"),
    ],
)
def test_an_announcement_that_does_not_fit_the_plan_is_refused(
    coordinator: Coordinator, stack: ExitStack, changes: dict[str, Any], cause: str
) -> None:
    plan, lines = gathered(coordinator, stack)
    with refused(cause):
        lines["a"].open_upload(plan, [HALF.tobytes()], **changes)
    assert not coordinator.home.contributions.exists(), "nothing is kept of it"


def test_who_is_not_in_the_cohort_cannot_upload(coordinator: Coordinator, stack: ExitStack) -> None:
    plan, _lines = gathered(coordinator, stack)
    with coordinator.join("c").connected() as line, refused("c is not in the cohort of round 1"):
        line.open_upload(plan, [HALF.tobytes()])


def test_nobody_can_upload_while_no_round_is_open(coordinator: Coordinator) -> None:
    with coordinator.join("a").connected() as line, refused(r"round 1 is not open \(waiting\)"):
        line.transfer.OpenUpload(
            transfer_pb2.OpenUploadRequest(round=1, base_digest=b"x" * 32), timeout=CALL_SECONDS
        )


def test_a_fragment_that_was_not_announced_is_refused(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    data = HALF.tobytes()
    with refused("no upload is open: announce the contribution's digests first"):
        lines["a"].put(1, 0, data)
    lines["a"].open_upload(plan, [data])
    with refused("no upload is open"):
        lines["b"].put(1, 0, data)
    with refused("no upload is open"):
        lines["a"].put(2, 0, data)
    with refused("fragment 0: its bytes do not have the announced digest"):
        lines["a"].put(1, 0, data[::-1])
    with refused("fragment 7 does not exist: the vector of 2 elements has fragments 0 to 0"):
        lines["a"].put(1, 7, data)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (np.float32([1.0, np.nan]), "NaN or infinite elements"),
        (np.float32([np.inf, 1.0]), "NaN or infinite elements"),
        (np.float32([11.0, 1.0]), "has an element of 11, the federation accepts up to 10"),
        (np.float32([1.0]), "float32 fragment of 2 elements has 8 bytes, got 4"),
    ],
)
def test_a_fragment_that_is_no_pseudo_gradient_is_refused_on_arrival(
    coordinator: Coordinator, stack: ExitStack, values: Any, cause: str
) -> None:
    plan, lines = gathered(coordinator, stack)
    data = values.tobytes()
    lines["a"].open_upload(plan, [data])
    with refused(cause):
        lines["a"].put(1, 0, data)
    with refused("1 fragments are missing"):
        lines["a"].commit(lines["a"].declared(plan, [data]))


# Commits


@pytest.mark.parametrize(
    ("changes", "cause", "family"),
    [
        ({"key": OTHER_KEY}, "contribution of a: signed by key", UntrustedError),
        ({"named": "b"}, "the contribution names b, the connection is a's", RejectedError),
        ({"root": b"r" * 32}, "the signed root is not that of the fragments", RejectedError),
        ({"genesis": "0" * 64}, "starts from another checkpoint: train again", RejectedError),
        ({"base": "0" * 64}, "starts from another checkpoint: train again", RejectedError),
        ({"codec": "int8"}, "the contribution is in int8, not float32", RejectedError),
        (
            {"tokens": MOST_TOKENS + 1},
            "claims 81 tokens in 10 steps, the plan allows 80 in 10",
            RejectedError,
        ),
        ({"steps": 11}, "claims 80 tokens in 11 steps, the plan allows 80 in 10", RejectedError),
    ],
)
def test_a_commit_that_does_not_fit_is_refused_and_a_right_one_still_taken(
    coordinator: Coordinator,
    stack: ExitStack,
    changes: dict[str, Any],
    cause: str,
    family: type[TapestryError],
) -> None:
    plan, lines = gathered(coordinator, stack)
    line = lines["a"]
    envelope = line.sent(plan, HALF, **changes)
    with refused(cause, family):
        line.commit(envelope)
    assert coordinator.desk.state.arrived == {}
    line.commit(line.sent(plan, HALF))
    assert set(coordinator.desk.state.arrived) == {"a"}


def test_a_commit_to_another_round_is_refused(coordinator: Coordinator, stack: ExitStack) -> None:
    plan, lines = gathered(coordinator, stack)
    line = lines["a"]
    line.sent(plan, HALF)
    with refused("round|fragments"):
        line.commit(line.declared(plan, [HALF.tobytes()], round=2))


@pytest.mark.parametrize("payload", [b"", b"{}", b"not json", b"\xff" * 100, b"[" * 100_000])
def test_a_commit_of_garbage_is_refused(
    coordinator: Coordinator, stack: ExitStack, payload: bytes
) -> None:
    plan, lines = gathered(coordinator, stack)
    kind = "application/vnd.tapestry.contribution.v1+json"
    signed = sign(kind, payload, lines["a"].member.signing_key)
    with refused("contribution of a: ", UntrustedError):
        lines["a"].commit(signed)
    assert plan.round == coordinator.desk.state.number


def test_a_second_commit_returns_the_first_receipt(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    line = lines["a"]
    envelope = line.sent(plan, HALF)
    first = line.commit(envelope)
    coordinator.clock.forward(60)
    assert line.commit(envelope) == first
    other = line.declared(plan, [HALF.tobytes()], tokens=1)
    assert line.commit(other) == first, "the first answer counts"
    assert envelope_value(line.open_upload(plan, [HALF.tobytes()]).receipt) == first
    lines["b"].commit(lines["b"].sent(plan, HALF))
    coordinator.aggregate()
    assert line.commit(envelope) == first, "after the round too"


def test_a_commit_lost_between_file_and_record_is_taken_up(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    envelope = lines["a"].sent(plan, HALF)
    coordinator.store.finish(1, "a")  # and the process dies before the record
    stack.close()
    restarted = coordinator.restarted()
    with lines["a"].member.connected(restarted) as line:
        receipt = Receipt.parsed(line.commit(envelope).payload, what="receipt")
    assert receipt.contribution == payload_digest(envelope)
    restarted.stop()


def test_a_late_contribution_is_told_that_the_round_is_over(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack, "a", "b", "c")
    late = lines["c"].sent(plan, HALF)
    for name in ("a", "b"):
        lines[name].commit(lines[name].sent(plan, HALF))
    coordinator.clock.forward(300)
    coordinator.desk.pass_time()
    with refused(r"round 1 is not open \(aggregating\): wait for the next plan"):
        lines["c"].commit(late)
    coordinator.aggregate()
    with refused("round 1 is over, round 2 is"):
        lines["c"].commit(late)


class GatedStore(FragmentStore):
    """A store whose `open` waits for a signal: an announcement caught in mid-call."""

    gate: threading.Event | None = None
    reached = threading.Event()

    def open(self, *arguments: Any, **named: Any) -> list[bool]:
        if self.gate is not None:
            gate, self.gate = self.gate, None
            self.reached.set()
            gate.wait(2.0)
        return super().open(*arguments, **named)


def test_an_announcement_that_crosses_a_commit_does_not_spoil_what_was_accepted(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    small = found_small(coordinator.home.folder.parent / "gated", rounds=ROUNDS)
    store = GatedStore(small.home.contributions, small.layout)
    gated = Coordinator(small, store=store)
    stack.callback(gated.stop)
    plan, lines = gathered(gated, stack)
    envelope = lines["a"].sent(plan, HALF)
    store.gate = gate = threading.Event()
    crossing = threading.Thread(target=lambda: lines["a"].open_upload(plan, [(HALF * 2).tobytes()]))
    crossing.start()
    assert store.reached.wait(5.0)
    try:
        lines["a"].commit(envelope)
    except grpc.RpcError:
        return  # not accepted: nothing is promised
    finally:
        gate.set()
        crossing.join()
    lines["b"].commit(lines["b"].sent(plan, HALF))
    assert (
        FragmentStore(small.home.contributions, small.layout).read(1, "a", 0) == HALF.tobytes()
    ), "accepted with a receipt, and the round can never be aggregated"
    gated.aggregate()


def test_what_one_member_adds_to_its_contribution_does_not_keep_the_next_plan_from_all(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    honest = lines["a"].sent(plan, HALF)
    numbers = b"[" + b",".join([b"1e15"] * 260_000) + b"]"  # 1.3 MB; 1000000000000000.0 is longer
    payload = honest.payload.replace(b'"statistics":{}', b'"statistics":{"x":' + numbers + b"}")
    assert len(honest.payload) < len(payload) < MAX_MESSAGE_BYTES
    envelope = sign(honest.payload_type, payload, lines["a"].member.signing_key)
    try:
        lines["a"].commit(envelope)
    except grpc.RpcError:
        return  # refused: that is as good
    lines["b"].commit(lines["b"].sent(plan, HALF))
    coordinator.aggregate()
    with errors_from_status("the coordinator"):
        coordinator.desk.pass_time()
        following = lines["b"].watch().until_plan()
    assert following.round == 2


def test_figures_that_overflow_when_they_are_added_up_do_not_end_the_coordinator(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    for line in lines.values():
        honest = line.sent(plan, HALF)
        payload = honest.payload.replace(b'"statistics":{}', b'"statistics":{"x":[1.5e308]}')
        envelope = sign(honest.payload_type, payload, line.member.signing_key)
        with suppress(grpc.RpcError):
            line.commit(envelope)
    if coordinator.desk.state.phase is Phase.AGGREGATING:
        coordinator.aggregate()
        coordinator.desk.pass_time()  # what `serve` does five times a second, outside any `try`
        assert coordinator.desk.state.phase is Phase.OPEN


def test_one_member_that_listens_many_times_does_not_keep_the_others_out(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    greedy, other = coordinator.join("a"), coordinator.join("b")
    with other.connected() as line:
        line.describe()
        channel = stack.enter_context(greedy.connected()).channel
        for _stream in range(WORKERS):
            call = RoundsServiceStub(channel).WatchPlans(rounds_pb2.WatchPlansRequest())
            stack.callback(call.cancel)
            with suppress(grpc.RpcError):
                next(call)
        with errors_from_status("the coordinator"):
            line.transfer.Describe(transfer_pb2.DescribeRequest(), timeout=CALL_SECONDS)


# Checkpoints down


def test_manifest_and_card_are_described(coordinator: Coordinator, stack: ExitStack) -> None:
    plan, lines = gathered(coordinator, stack)
    for line in lines.values():
        line.commit(line.sent(plan, HALF))
    newest = coordinator.aggregate()
    line = lines["a"]
    assert envelope_value(line.describe().manifest) == newest
    assert envelope_value(line.describe(1).manifest) == newest
    assert payload_digest(envelope_value(line.describe(0).manifest)) == plan.genesis
    assert line.describe(0).HasField("card")
    with refused("there is no checkpoint 2: the newest is 1"):
        line.describe(2)


@pytest.mark.parametrize("number", [2**53, 2**63, 2**64 - 1])
def test_a_number_that_no_round_has_is_refused_and_no_error_of_the_program(
    coordinator: Coordinator, stack: ExitStack, number: int
) -> None:
    plan, lines = gathered(coordinator, stack)
    line = lines["a"]
    with refused(f"there is no checkpoint {number}"):
        line.describe(number)
    with refused(f"round {number} is over"):
        line.open_upload(plan, [HALF.tobytes()], round=number)
    with refused("no upload is open"):
        line.put(number, 0, HALF.tobytes())


def test_the_lineage_is_sent_oldest_first(coordinator: Coordinator, stack: ExitStack) -> None:
    plan, lines = gathered(coordinator, stack)
    for line in lines.values():
        line.commit(line.sent(plan, HALF))
    coordinator.aggregate()

    def lineage(last: int) -> list[str]:
        request = transfer_pb2.LineageRequest(last_round=last)
        stream = lines["a"].transfer.Lineage(request, timeout=CALL_SECONDS)
        return [payload_digest(envelope_value(response.manifest)) for response in stream]

    known = [payload_digest(envelope) for envelope in coordinator.registry.lineage()]
    assert len(known) == 2
    assert lineage(0) == known[:1]
    assert lineage(1) == lineage(2**64 - 1) == known


def fetched(line: Line, digest: bytes, offset: int = 0) -> list[bytes]:
    request = transfer_pb2.FetchRequest(digest=digest, offset_bytes=offset)
    return [r.data for r in line.transfer.Fetch(request, timeout=CALL_SECONDS)]


def test_a_file_is_sent_from_any_offset_on(large: Coordinator) -> None:
    manifest = verify_checkpoint(large.home.checkpoint(0)).manifest
    (entry,) = [e for e in manifest.files if e.name == "model.safetensors"]
    content = (large.home.checkpoint(0) / "model.safetensors").read_bytes()
    digest = bytes.fromhex(entry.digest)
    with large.join("a").connected() as line:
        pieces = fetched(line, digest)
        assert b"".join(pieces) == content
        assert max(map(len, pieces)) == FETCH_CHUNK_BYTES
        for offset in (1, FETCH_CHUNK_BYTES, len(content) - 1, len(content)):
            assert b"".join(fetched(line, digest, offset)) == content[offset:]
        for offset in (len(content) + 1, 2**63, 2**64 - 1):
            assert fetched(line, digest, offset) == []


def test_only_what_is_published_can_be_fetched(coordinator: Coordinator) -> None:
    secret = (coordinator.home.signing_key).read_bytes()
    digest = fragment_digest(secret)
    with coordinator.join("a").connected() as line:
        with refused(f"no published file has the digest {digest.hex()[:16]}"):
            fetched(line, digest)
        for wrong in (b"", b"x", b"x" * 33):
            with refused(f"digest: a digest has 32 bytes, got {len(wrong)}"):
                fetched(line, wrong)


def test_every_file_of_a_checkpoint_can_be_fetched(coordinator: Coordinator) -> None:
    verified = verify_checkpoint(coordinator.home.checkpoint(0))
    with coordinator.join("a").connected() as line:
        for entry in (*verified.manifest.files, *verified.card.files):
            data = b"".join(fetched(line, bytes.fromhex(entry.digest)))
            assert data == (coordinator.home.checkpoint(0) / entry.name).read_bytes(), entry.name


# Evaluations


def evaluation(coordinator: Coordinator, **changes: Any) -> rounds_pb2.SubmitEvaluationRequest:
    values = {
        "manifest_digest": bytes.fromhex(coordinator.desk.genesis.genesis_digest),
        "bits_per_byte": 2.5,
        "held_out_bytes": 4096,
        "language": "fr",
        **changes,
    }
    return rounds_pb2.SubmitEvaluationRequest(**values)


def test_a_measurement_is_kept_under_its_members_name(coordinator: Coordinator) -> None:
    with coordinator.join("a").connected() as line:
        line.rounds.SubmitEvaluation(evaluation(coordinator), timeout=CALL_SECONDS)
        request = evaluation(coordinator, bits_per_byte=2.25, language="a\nb" + "x" * 99)
        line.rounds.SubmitEvaluation(request, timeout=CALL_SECONDS)
    (kept,) = coordinator.registry.evaluations()
    assert (kept.round, kept.member_id, kept.bits_per_byte) == (0, "a", 2.25)
    assert kept.language == ("a b" + "x" * 99)[:64]


@pytest.mark.parametrize(
    "changes",
    [
        {"bits_per_byte": -0.1},
        {"bits_per_byte": 64.1},
        {"bits_per_byte": float("nan")},
        {"bits_per_byte": float("inf")},
        {"held_out_bytes": 0},
        {"held_out_bytes": 2**53},
        {"held_out_bytes": 2**64 - 1},
    ],
)
def test_a_figure_that_is_no_measurement_is_refused(
    coordinator: Coordinator, changes: dict[str, Any]
) -> None:
    with coordinator.join("a").connected() as line, refused("is not a measurement"):
        line.rounds.SubmitEvaluation(evaluation(coordinator, **changes), timeout=CALL_SECONDS)
    assert coordinator.registry.evaluations() == []


def test_a_measurement_of_nothing_published_is_refused(coordinator: Coordinator) -> None:
    with coordinator.join("a").connected() as line:
        with refused("no checkpoint of this federation has the digest 7878787878787878"):
            line.rounds.SubmitEvaluation(
                evaluation(coordinator, manifest_digest=b"x" * 32), timeout=CALL_SECONDS
            )
        with refused("manifest_digest: a digest has 32 bytes, got 0"):
            line.rounds.SubmitEvaluation(
                evaluation(coordinator, manifest_digest=b""), timeout=CALL_SECONDS
            )


# Errors


def no_space(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("call", "status", "reason"),
    [
        (CALLS["OpenUpload"], grpc.StatusCode.FAILED_PRECONDITION, "rejected"),
        (CALLS["Fetch"], grpc.StatusCode.FAILED_PRECONDITION, "rejected"),
        (
            lambda line: line.transfer.Commit(
                transfer_pb2.CommitRequest(contribution=envelope_message(sign("x", b"", OTHER_KEY)))
            ),
            grpc.StatusCode.PERMISSION_DENIED,
            "untrusted",
        ),
    ],
)
def test_an_error_has_a_status_a_reason_for_programs_and_a_sentence_for_people(
    coordinator: Coordinator, call: Call, status: grpc.StatusCode, reason: str
) -> None:
    with coordinator.join("a").connected() as line, pytest.raises(grpc.RpcError) as raised:
        call(line)
    error: Any = raised.value
    assert error.code() is status
    assert dict(error.trailing_metadata())[REASON] == reason
    assert len(error.details().split()) > 3
    assert "\n" not in error.details()


def test_a_full_disk_is_unavailable_and_not_the_nodes_fault(
    coordinator: Coordinator, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, lines = gathered(coordinator, stack)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_space)
        with refused("cannot store this contribution now: its disk is full", UnavailableError):
            lines["a"].open_upload(plan, [HALF.tobytes()])
    lines["a"].commit(lines["a"].sent(plan, HALF))


def test_a_disk_that_fills_up_at_the_last_moment_is_unavailable_too(
    coordinator: Coordinator, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, lines = gathered(coordinator, stack)
    envelope = lines["a"].sent(plan, HALF)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_space)
        with refused("disk is full", UnavailableError):
            lines["a"].commit(envelope)
    lines["a"].commit(lines["a"].sent(plan, HALF))


@contextmanager
def no_file_grows() -> Iterator[None]:
    """Whatever writes past the first kilobyte of a file is told that it cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@sqlite_alone
def test_a_registry_that_cannot_write_is_unavailable_and_the_commit_can_be_repeated(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack)
    envelope = lines["a"].sent(plan, HALF)
    with no_file_grows(), refused("coordinator", UnavailableError):
        lines["a"].commit(envelope)
    receipt = Receipt.parsed(lines["a"].commit(envelope).payload, what="receipt")
    assert receipt.contribution == payload_digest(envelope)


def test_a_coordinator_that_is_gone_is_unavailable(coordinator: Coordinator) -> None:
    member = coordinator.join("a")
    coordinator.stop()
    with member.connected() as line, refused("the coordinator does not answer", UnavailableError):
        line.describe()


def test_a_coordinator_that_stops_ends_its_streams_without_an_error(
    coordinator: Coordinator,
) -> None:
    with coordinator.join("a").connected() as line:
        watch = line.watch()
        stopping = threading.Thread(target=coordinator.stop, kwargs={"grace_seconds": 5.0})
        stopping.start()
        with errors_from_status("the coordinator"), pytest.raises(StopIteration):
            while True:
                watch.next()
        stopping.join()


# Over several rounds


def renew_card(coordinator: Coordinator, number: int) -> None:
    """Renew a checkpoint's card with what members measured, as the aggregator's thread does."""
    write_card(
        coordinator.home.checkpoint(number),
        coordinator.registry.lineage(number),
        coordinator.registry.evaluations(),
        coordinator.small.key,
        notes=coordinator.home.notes(number),
    )
    coordinator.desk.files.index(number)


def test_every_file_of_every_checkpoint_can_be_fetched_after_cards_were_renewed(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    # The first card of round 2 and the last of round 1 have the same results.
    plan, lines = gathered(coordinator, stack)
    for number in (1, 2):
        for line in lines.values():
            line.commit(line.sent(plan, HALF))
        coordinator.aggregate()
        coordinator.desk.evaluate(
            StoredEvaluation(
                round=number, member_id="a", language="fr", bits_per_byte=2.5, held_out_bytes=4096
            )
        )
        renew_card(coordinator, number)
        coordinator.desk.pass_time()
        plan = coordinator.plan
    for number in (0, 1, 2):
        verified = verify_checkpoint(coordinator.home.checkpoint(number))
        for entry in (*verified.manifest.files, *verified.card.files):
            data = b"".join(fetched(lines["b"], bytes.fromhex(entry.digest)))
            assert fragment_digest(data).hex() == entry.digest, (number, entry.name)


def test_a_round_does_not_wait_for_a_member_that_was_revoked(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    plan, lines = gathered(coordinator, stack, "a", "b", "c")
    for name in ("a", "b"):
        lines[name].commit(lines[name].sent(plan, HALF))
    assert coordinator.desk.state.phase is Phase.OPEN
    coordinator.revoke("c")
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.AGGREGATING
    assert coordinator.desk.state.declined == {"c": "not a member any more"}
