"""Joining: a real coordinator that certifies over TLS, and what is on the disk afterwards."""

import dataclasses
import hashlib
import ssl
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.cli.main import main
from tapestry.errors import ConfigError, RejectedError, UnavailableError, UntrustedError
from tapestry.identity.certificates import create_authority, read_member_certificate
from tapestry.identity.invitations import Invitation, encode
from tapestry.identity.keys import load_tls_key
from tapestry.wire.egress import read_ledger
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.inviting import make_invitation
from tapestry_node.home import NodeHome, NodeState, require_node
from tapestry_node.joining import join
from tests.conftest import Federation
from tests.e2e.live import served_copy


def now() -> float:
    return datetime.now(UTC).timestamp()


@pytest.fixture(scope="module")
def coordinator(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CoordinatorHome]:
    """Serve a copy of the small federation, as a process, while this module's tests run."""
    with served_copy(federation, tmp_path_factory.mktemp("joining")) as live:
        yield live.home


_members = iter(f"member-{number}" for number in range(100))


@pytest.fixture
def invitation(coordinator: CoordinatorHome) -> Invitation:
    """An invitation for somebody new."""
    return make_invitation(coordinator, next(_members), now=now())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_member_knows_its_federation_and_pins_root_key_and_genesis(
    coordinator: CoordinatorHome, invitation: Invitation, tmp_path: Path
) -> None:
    membership = join(invitation, tmp_path / "node", now=now())
    genesis = coordinator.load_genesis()
    assert membership.federation == "loom"
    assert membership.member_id == invitation.member_id
    assert membership.address == coordinator.load_settings().network.address
    assert membership.genesis == genesis.genesis_digest
    assert bytes.fromhex(membership.coordinator_key) == genesis.coordinator_key
    identity = require_node(tmp_path / "node").identity
    assert identity.load() == membership
    root = ssl.PEM_cert_to_DER_cert(identity.root_pem().decode())
    assert hashlib.sha256(root).digest() == invitation.root_fingerprint


BEGINS_WITH = {
    "contributor": ("a member of loom\n", "tapestry node run {} --data YOUR_TEXT\n"),
    "observer": (", as observer\n", "--data YOUR_TEXT    # measures every checkpoint; trains none"),
    "operator": (", as operator\n", "tapestry coordinator status --as {}\n"),
    "auditor": (", as auditor\n", "pull audit-N --round N --archive --dir {}\n"),
}


@pytest.mark.parametrize("role", list(BEGINS_WITH))
def test_a_new_member_is_told_what_its_role_begins_with(
    coordinator: CoordinatorHome, tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str
) -> None:
    invited = make_invitation(coordinator, next(_members), now=now(), role=role)
    node = tmp_path / "node"
    assert main(["node", "join", encode(invited), "--dir", str(node)]) == 0
    out = capsys.readouterr().out
    says, command = BEGINS_WITH[role]
    assert says in out
    assert command.format(node) in out
    assert ("node run" in out) == (role != "auditor")
    assert require_node(node).identity.load().role == role


def test_the_certificate_names_the_member_and_is_of_the_key_that_was_made_here(
    invitation: Invitation, tmp_path: Path
) -> None:
    join(invitation, tmp_path / "node", now=now())
    identity = NodeHome(tmp_path / "node").identity
    named = read_member_certificate(identity.certificate_pem(), federation="loom")
    assert named.member_id == invitation.member_id
    assert named.not_before <= datetime.now(UTC) < named.not_after
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem())
    root = x509.load_pem_x509_certificate(identity.root_pem())
    certificate.verify_directly_issued_by(root)
    certified, made = certificate.public_key(), load_tls_key(identity.folder / "tls.key")
    assert isinstance(certified, EllipticCurvePublicKey)
    assert certified.public_numbers() == made.public_key().public_numbers()


def test_only_the_owner_can_read_what_joining_made(invitation: Invitation, tmp_path: Path) -> None:
    node = tmp_path / "deep" / "node"
    join(invitation, node, now=now())
    assert mode_of(node) == 0o700
    assert mode_of(node / "identity") == 0o700
    assert mode_of(node / "identity" / "tls.key") == 0o600
    assert mode_of(node / "identity" / "signing.key") == 0o600
    assert mode_of(node / "corpus") == 0o700


def test_a_new_node_has_a_policy_to_edit_and_knows_no_checkpoint(
    invitation: Invitation, tmp_path: Path
) -> None:
    join(invitation, tmp_path, now=now())
    assert files_below(tmp_path) == [
        "egress.jsonl",
        "identity/membership.json",
        "identity/root.crt",
        "identity/signing.key",
        "identity/tls.crt",
        "identity/tls.key",
        "node.toml",
    ]
    assert NodeHome(tmp_path).load_state() == NodeState()


def test_a_policy_that_was_written_before_joining_is_kept(
    invitation: Invitation, tmp_path: Path
) -> None:
    (tmp_path / "node.toml").write_text("[policy]\nmin_quorum = 7\n", encoding="utf-8")
    join(invitation, tmp_path, now=now())
    assert NodeHome(tmp_path).load_settings().policy.min_quorum == 7


def test_what_joining_sent_is_in_the_egress_ledger(invitation: Invitation, tmp_path: Path) -> None:
    join(invitation, tmp_path, now=now())
    (departure,) = read_ledger(tmp_path / "egress.jsonl")
    assert departure.call == "/tapestry.v1.EnrolmentService/Enrol"
    assert departure.to == invitation.address


def test_a_new_member_can_pull_the_newest_checkpoint(
    invitation: Invitation, federation: Federation, tmp_path: Path
) -> None:
    join(invitation, tmp_path / "node", now=now())
    pulled = tmp_path / "pulled"
    assert main(["checkpoint", "pull", str(pulled), "--dir", str(tmp_path / "node")]) == 0
    expected = payload_digest(federation.closed.lineage[0])
    assert verify_checkpoint(pulled).manifest_digest == expected


def test_what_pulling_asked_for_is_in_the_egress_ledger(
    invitation: Invitation, tmp_path: Path
) -> None:
    membership = join(invitation, tmp_path / "node", now=now())
    home, out = NodeHome(tmp_path / "node"), tmp_path / "pulled"
    assert main(["checkpoint", "pull", str(out), "--dir", str(home.folder)]) == 0
    assert home.egress.is_file()
    sent = [d for d in read_ledger(home.egress) if d.to == membership.address]
    calls = {departure.call.rsplit("/", 1)[-1] for departure in sent}
    assert calls == {"Describe", "Lineage", "Fetch"}


def test_a_folder_holds_one_membership(
    coordinator: CoordinatorHome, invitation: Invitation, tmp_path: Path
) -> None:
    membership = join(invitation, tmp_path, now=now())
    another = make_invitation(coordinator, next(_members), now=now())
    with pytest.raises(ConfigError, match=f"this node is {membership.member_id} of loom already"):
        join(another, tmp_path, now=now())
    join(another, tmp_path / "other", now=now())  # and the invitation is not used up by that
    assert NodeHome(tmp_path).identity.load() == membership


def test_an_invitation_works_once_even_for_two_at_the_same_time(
    invitation: Invitation, tmp_path: Path
) -> None:
    outcomes: list[str] = []

    def try_to_join(folder: Path) -> None:
        try:
            outcomes.append(join(invitation, folder, now=now()).member_id)
        except RejectedError as error:
            outcomes.append(str(error))

    threads = [
        threading.Thread(target=try_to_join, args=(tmp_path / name,)) for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [said for said in outcomes if said != invitation.member_id]
    assert len(outcomes) == 2
    assert len(refused) == 1
    assert "was used already: ask for a new one" in refused[0]
    assert [(tmp_path / name / "identity").exists() for name in ("one", "two")].count(True) == 1


# What a failed join leaves


def test_an_expired_invitation_is_not_even_sent(invitation: Invitation, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has expired: ask for a new one"):
        join(invitation, tmp_path / "node", now=invitation.expires_at)
    assert not (tmp_path / "node").exists()
    join(invitation, tmp_path / "node", now=now())  # the token was not used up


def test_a_forged_token_leaves_no_identity(invitation: Invitation, tmp_path: Path) -> None:
    forged = dataclasses.replace(invitation, token=bytes(32))
    with pytest.raises(RejectedError):
        join(forged, tmp_path, now=now())
    assert files_below(tmp_path) == ["egress.jsonl"]  # what was tried is on record


def test_an_invitation_is_bound_to_its_member(invitation: Invitation, tmp_path: Path) -> None:
    other = dataclasses.replace(invitation, member_id="somebody-else")
    with pytest.raises(RejectedError):
        join(other, tmp_path, now=now())
    assert files_below(tmp_path) == ["egress.jsonl"]  # what was tried is on record
    join(invitation, tmp_path, now=now())


def test_an_invitation_to_another_federation_is_refused_by_name(
    invitation: Invitation, tmp_path: Path
) -> None:
    other = dataclasses.replace(invitation, federation="heddle")
    with pytest.raises(RejectedError, match="this is the coordinator of loom"):
        join(other, tmp_path, now=now())
    assert files_below(tmp_path) == ["egress.jsonl"]  # what was tried is on record


def test_nothing_is_told_to_a_coordinator_with_another_root(
    invitation: Invitation, tmp_path: Path
) -> None:
    pem = create_authority("loom", now=datetime.now(UTC)).certificate_pem
    foreign = dataclasses.replace(
        invitation, root_certificate=ssl.PEM_cert_to_DER_cert(pem.decode())
    )
    with pytest.raises(UntrustedError, match="is not the coordinator of this federation"):
        join(foreign, tmp_path, now=now())
    assert files_below(tmp_path) == ["egress.jsonl"]  # what was tried is on record
    join(invitation, tmp_path, now=now())  # the token did not leave: it works


def test_the_door_of_members_does_not_take_strangers(
    coordinator: CoordinatorHome, invitation: Invitation, tmp_path: Path
) -> None:
    members = dataclasses.replace(invitation, address=coordinator.load_settings().network.address)
    with pytest.raises((UntrustedError, UnavailableError)):
        join(members, tmp_path, now=now())
    assert files_below(tmp_path) == ["egress.jsonl"]  # what was tried is on record


def test_a_coordinator_that_does_not_answer_is_named(
    invitation: Invitation, tmp_path: Path
) -> None:
    silent = dataclasses.replace(invitation, address="localhost:1")
    with pytest.raises(UnavailableError, match="localhost:1 does not answer"):
        join(silent, tmp_path, now=now())
    assert files_below(tmp_path) == ["egress.jsonl"]  # what was tried is on record
    join(invitation, tmp_path, now=now())


def test_a_join_that_a_crash_cut_short_can_be_repeated(
    invitation: Invitation, tmp_path: Path
) -> None:
    left_over = tmp_path / ".identity.part"  # what SIGKILL leaves while keys are written
    left_over.mkdir(mode=0o700)
    (left_over / "tls.key").write_bytes(b"half a k")
    assert join(invitation, tmp_path, now=now()).member_id == invitation.member_id
    assert NodeHome(tmp_path).identity.load().member_id == invitation.member_id


def test_a_folder_that_cannot_be_one_is_named_before_the_invitation_is_used(
    invitation: Invitation, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="file"):
        join(invitation, tmp_path / "file", now=now())


def test_an_identity_without_a_membership_is_not_told_to_join(
    invitation: Invitation, tmp_path: Path
) -> None:
    (tmp_path / "identity").mkdir()  # as a partial restore from a backup leaves it
    with pytest.raises(ConfigError) as caught:
        join(invitation, tmp_path, now=now())
    assert "tapestry node join" not in str(caught.value)
    assert str(tmp_path / "identity") in str(caught.value)


def test_genesis_in_the_membership_is_the_digest_of_the_signed_manifest(
    coordinator: CoordinatorHome, federation: Federation, invitation: Invitation, tmp_path: Path
) -> None:
    membership = join(invitation, tmp_path, now=now())
    assert membership.genesis == payload_digest(federation.closed.lineage[0])
    assert membership.genesis == coordinator.load_genesis().newest_digest
