"""From an invitation to a member: keys are made here and never leave."""

import ssl
from contextlib import closing
from pathlib import Path

import grpc

from tapestry.errors import ConfigError, RejectedError
from tapestry.identity.certificates import certificate_request, create_tls_key
from tapestry.identity.envelopes import sign
from tapestry.identity.invitations import Invitation
from tapestry.identity.keys import generate_signing_key, public_bytes
from tapestry.identity.membership import CONTRIBUTOR, Membership
from tapestry.v1 import enrolment_pb2, enrolment_pb2_grpc
from tapestry.wire.channels import open_channel
from tapestry.wire.egress import EgressInterceptor, EgressLedger
from tapestry.wire.limits import CALL_SECONDS
from tapestry.wire.statuses import errors_from_status
from tapestry_node.home import NodeHome

_ENROL_TYPE = "application/vnd.tapestry.enrol.v1"


def join(invitation: Invitation, folder: Path, *, now: float) -> Membership:
    """Use `invitation` up and make a node in `folder`.

    Raises:
        ConfigError: There is a node already, or the invitation has expired.
        RejectedError: The coordinator refuses it: used, unknown, expired.
        UntrustedError: Whoever answers is not the coordinator of the invitation's federation.
        UnavailableError: Nobody answers.
    """
    home = NodeHome(folder.resolve())
    if home.folder.exists() and not home.folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder for the node")
    if home.identity.folder.exists():
        known = home.identity.load()
        raise ConfigError(
            f"{folder}: this node is {known.member_id} of {known.federation} already; "
            "use another --dir for another membership"
        )
    if now >= invitation.expires_at:
        raise ConfigError("the invitation has expired: ask for a new one")
    home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tls_key, signing_key = create_tls_key(), generate_signing_key()
    request = certificate_request(tls_key, member_id=invitation.member_id)
    root_pem = ssl.DER_cert_to_PEM_cert(invitation.root_certificate).encode()
    ledger = EgressLedger(home.egress, to=invitation.address, clock=lambda: now)
    with closing(ledger), open_channel(invitation.address, root_pem=root_pem) as channel:
        guarded = grpc.intercept_channel(channel, EgressInterceptor(ledger))
        stub = enrolment_pb2_grpc.EnrolmentServiceStub(guarded)
        with errors_from_status(invitation.address):
            response = stub.Enrol(
                enrolment_pb2.EnrolRequest(
                    federation=invitation.federation,
                    member_id=invitation.member_id,
                    token=invitation.token,
                    certificate_request=request,
                    signing_key=public_bytes(signing_key),
                    signing_key_proof=sign(_ENROL_TYPE, request, signing_key).signature,
                ),
                timeout=CALL_SECONDS,
            )
    if len(response.coordinator_key) != 32 or len(response.genesis_digest) != 32:
        raise RejectedError("the coordinator's answer is incomplete: it may be another version")
    membership = Membership(
        federation=invitation.federation,
        member_id=invitation.member_id,
        address=response.address,
        coordinator_key=response.coordinator_key.hex(),
        genesis=response.genesis_digest.hex(),
        role=response.role or CONTRIBUTOR,
    )
    home.identity.create(
        membership,
        root_pem=root_pem,
        certificate_pem=response.certificate,
        tls_key=tls_key,
        signing_key=signing_key,
    )
    home.make_folders()
    home.load_settings()
    return membership


def next_steps(role: str, node: Path) -> list[str]:
    """Return the commands that a new member of a role begins with."""
    watching = (
        f"tapestry node run {node} --data YOUR_TEXT    # measures every checkpoint; trains none"
    )
    return {
        "observer": [watching],
        "operator": [f"tapestry coordinator status --as {node}", watching],
        "auditor": [
            f"tapestry checkpoint pull audit-N --round N --archive --dir {node}",
            "tapestry checkpoint verify audit-N/published/round-N --archive audit-N",
        ],
    }.get(role, [f"tapestry node run {node} --data YOUR_TEXT"])
