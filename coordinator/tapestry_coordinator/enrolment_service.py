"""The enrolment service: invitations into certificates, and out again."""

import logging
from datetime import UTC, datetime

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tapestry.errors import RejectedError
from tapestry.identity.certificates import (
    Authority,
    issue_member_certificate,
    read_member_certificate,
)
from tapestry.identity.envelopes import pre_authentication_encoding
from tapestry.identity.invitations import TOKEN_BYTES, token_digest
from tapestry.params.fragments import DIGEST_BYTES
from tapestry.v1 import enrolment_pb2, enrolment_pb2_grpc
from tapestry.wire.statuses import status_from_errors
from tapestry_coordinator.callers import identified, identify, one_line
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.leaving import end_membership
from tapestry_coordinator.roster import ACTIVE, LEFT

ENROL_TYPE = "application/vnd.tapestry.enrol.v1"

_log = logging.getLogger(__name__)


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Invitations into certificates."""

    def __init__(self, desk: Desk, authority: Authority) -> None:
        """Issue certificates of `authority`."""
        self._desk = desk
        self._authority = authority

    def Enrol(
        self, request: enrolment_pb2.EnrolRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.EnrolResponse:
        """Turn an invitation into a member certificate."""
        with status_from_errors(context):
            federation = self._desk.genesis.origin.federation
            if request.federation != federation:
                raise RejectedError(
                    f"this is the coordinator of {federation}, the invitation is to "
                    f"{request.federation!r:.80}"
                )
            if len(request.token) != TOKEN_BYTES:
                raise RejectedError("the invitation's token is damaged: ask for a new one")
            _require_key_proof(request)
            token, now = token_digest(request.token), self._desk.calendar()
            self._desk.registry.require_invitation(token, member_id=request.member_id, now=now)
            certificate = self._issue(request.certificate_request, request.member_id, now)
            self._desk.note_who_left()
            self._desk.registry.enrol(
                token,
                member_id=request.member_id,
                signing_key=request.signing_key,
                certificate_serial=_serial(certificate, federation),
                now=now,
            )
            member = self._desk.registry.member(request.member_id)
        _log.info("%s joined", request.member_id)
        return enrolment_pb2.EnrolResponse(
            certificate=certificate,
            coordinator_key=self._desk.genesis.coordinator_key,
            genesis_digest=bytes.fromhex(self._desk.genesis.genesis_digest),
            address=self._desk.settings.network.address,
            role=member.role if member is not None else "",
        )

    def Renew(
        self, request: enrolment_pb2.RenewRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.RenewResponse:
        """Replace a certificate that is still valid; served over mutual TLS only."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            now = self._desk.calendar()
            certificate = self._issue(request.certificate_request, member.member_id, now)
            serial = _serial(certificate, self._desk.genesis.origin.federation)
            self._desk.registry.renew(member.member_id, certificate_serial=serial)
        return enrolment_pb2.RenewResponse(certificate=certificate)

    def Leave(
        self, request: enrolment_pb2.LeaveRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.LeaveResponse:
        """End the caller's own membership; served over mutual TLS only."""
        with status_from_errors(context):
            member = identified(context, self._desk, statuses=(ACTIVE, LEFT))
            now = self._desk.calendar()
            left_at = end_membership(
                self._desk.registry, member.member_id, reason=one_line(request.reason), now=now
            )
            self._desk.note_who_left()
            self._desk.wake()
        _log.info("%s left", member.member_id)
        return enrolment_pb2.LeaveResponse(left_at=left_at)

    def _issue(self, request: bytes, member_id: str, now: float) -> bytes:
        return issue_member_certificate(
            self._authority,
            request,
            federation=self._desk.genesis.origin.federation,
            member_id=member_id,
            now=datetime.fromtimestamp(now, UTC),
            lifetime_days=self._desk.settings.membership.certificate_days,
        )


def _require_key_proof(request: enrolment_pb2.EnrolRequest) -> None:
    """Refuse a signing key whose private half the caller does not hold."""
    if len(request.signing_key) != DIGEST_BYTES:
        raise RejectedError("the signing key is not a raw Ed25519 public key of 32 bytes")
    signed = pre_authentication_encoding(ENROL_TYPE, request.certificate_request)
    try:
        Ed25519PublicKey.from_public_bytes(request.signing_key).verify(
            request.signing_key_proof, signed
        )
    except (InvalidSignature, ValueError) as error:
        raise RejectedError("the caller does not hold the signing key that it sent") from error


def _serial(certificate: bytes, federation: str) -> int:
    return read_member_certificate(certificate, federation=federation).serial
