"""The three gRPC services: decode, ask the desk, encode.

Who calls is taken from the certificate of the connection, never from a field, and looked up at
every call: a revoked member is refused on a connection that was open before.
"""

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tapestry.checkpoints.deciding import require_floor
from tapestry.checkpoints.folder import CARD_FILE, read_envelope
from tapestry.checkpoints.statements import Contribution
from tapestry.errors import RejectedError, UntrustedError
from tapestry.identity.certificates import (
    Authority,
    issue_member_certificate,
    read_member_certificate,
)
from tapestry.identity.envelopes import pre_authentication_encoding
from tapestry.identity.invitations import TOKEN_BYTES, token_digest
from tapestry.ledger.proof import PROOF_FILE
from tapestry.params.fragments import DIGEST_BYTES, pack_missing, split_digests
from tapestry.params.layout import ParameterLayout
from tapestry.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    rounds_pb2,
    rounds_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from tapestry.wire.bulk import PutFragment
from tapestry.wire.limits import FETCH_CHUNK_BYTES, HEARTBEAT_SECONDS
from tapestry.wire.messages import digest_value, envelope_message, envelope_value
from tapestry.wire.statuses import status_from_errors
from tapestry_coordinator import failpoints
from tapestry_coordinator.arrivals import rejoined
from tapestry_coordinator.crowd import Refusals
from tapestry_coordinator.desk import Announcement, Desk
from tapestry_coordinator.exclusions import recording_refusals
from tapestry_coordinator.leaving import end_membership
from tapestry_coordinator.operating import Operator
from tapestry_coordinator.roster import ACTIVE, CONTRIBUTOR, LEFT, OPERATOR, Member
from tapestry_coordinator.testimony import StoredEvaluation
from tapestry_coordinator.uploads import FragmentStore
from tapestry_coordinator.windows import Windows

ENROL_TYPE = "application/vnd.tapestry.enrol.v1"

_log = logging.getLogger(__name__)
_MAX_TEXT = 500
_refusals = Refusals()
_LISTED = 100
_MAX_ID = 2**62


def identify(context: grpc.ServicerContext, desk: Desk) -> Member:
    """Return the member whose certificate opened this connection; log it if that is none.

    Raises:
        UntrustedError: Not a member of this federation, or not any more.
    """
    try:
        return _identified(context, desk, statuses=(ACTIVE,))
    except UntrustedError as error:
        _refusals.note(str(error), peer=context.peer())
        raise


def _identified(context: grpc.ServicerContext, desk: Desk, *, statuses: tuple[str, ...]) -> Member:
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    certificate = read_member_certificate(bytes(pem), federation=desk.genesis.origin.federation)
    member = desk.registry.member(certificate.member_id)
    if member is None or member.status not in statuses:
        has_left = member is not None and member.status == LEFT
        says = "has left this federation" if has_left else "is not a member of this federation"
        raise UntrustedError(
            f"{certificate.member_id} {says}{'' if has_left else ' any more'}: ask the "
            "coordinator's operator"
        )
    now = datetime.fromtimestamp(desk.calendar(), UTC)
    if not certificate.not_before <= now < certificate.not_after:
        raise UntrustedError(
            f"{member.member_id}: the certificate is valid until "
            f"{certificate.not_after:%Y-%m-%d %H:%M} UTC, and here it is {now:%Y-%m-%d %H:%M}: "
            "compare the clocks, or ask for a new invitation"
        )
    if f"{certificate.serial:x}" not in (member.certificate_serial, member.previous_serial):
        raise UntrustedError(
            f"{member.member_id}: the certificate was replaced by a newer one: use that, or ask "
            "for a new invitation"
        )
    return member


def require_contributor(member: Member) -> None:
    """Refuse what only members that train may do.

    Raises:
        UntrustedError: The member observes.
    """
    if member.role != CONTRIBUTOR:
        raise UntrustedError(
            f"{member.member_id} is in this federation as {member.role}, and does not contribute: "
            "the coordinator's operator can invite it anew as contributor"
        )


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
            member = _identified(context, self._desk, statuses=(ACTIVE, LEFT))
            now = self._desk.calendar()
            left_at = end_membership(
                self._desk.registry, member.member_id, reason=_one_line(request.reason), now=now
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


def operator_of(context: grpc.ServicerContext, desk: Desk) -> Operator:
    """Return what an operator acts through.

    Raises:
        UntrustedError: The caller is a member without that role, or none.
    """
    member = identify(context, desk)
    if member.role != OPERATOR:
        raise UntrustedError(
            f"{member.member_id} is in this federation as {member.role}: only an operator may do "
            "this"
        )
    return Operator(desk.home, desk.registry, who=member.member_id, clock=desk.calendar)


class RoundsService(rounds_pb2_grpc.RoundsServiceServicer):
    """Plans out; progress, refusals and evaluations in."""

    def __init__(self, desk: Desk, stopping: threading.Event) -> None:
        """Serve until `stopping` is set."""
        self._desk = desk
        self._stopping = stopping

    def WatchPlans(
        self, request: rounds_pb2.WatchPlansRequest, context: grpc.ServicerContext
    ) -> Iterator[rounds_pb2.WatchPlansResponse]:
        """Send the present state, and again after every change and at every heartbeat."""
        with status_from_errors(context):
            member_id = identify(context, self._desk).member_id
            version, response = -1, rounds_pb2.WatchPlansResponse()
            with self._desk.present(member_id) as is_newest:
                while context.is_active() and not self._stopping.is_set() and is_newest():
                    told = self._desk.announcement(
                        member_id, after=version, timeout_seconds=HEARTBEAT_SECONDS
                    )
                    identify(context, self._desk)
                    if told is not None:
                        version, response = told.version, _told_message(told)
                    if is_newest():
                        yield response

    def Report(
        self, request: rounds_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.ReportResponse:
        """Note a member's progress."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            now = self._desk.clock()
            self._desk.registry.seen(member.member_id, now=now)
            self._desk.live.reported(
                member.member_id,
                round_number=request.round,
                step=request.step,
                steps=request.steps,
                loss=request.loss,
                tokens_per_second=request.tokens_per_second,
                now=now,
            )
        _log.debug(
            "round %d: %s at step %d of %d, loss %.3f, %.0f tokens/s",
            request.round,
            member.member_id,
            request.step,
            request.steps,
            request.loss,
            request.tokens_per_second,
        )
        return rounds_pb2.ReportResponse()

    def Decline(
        self, request: rounds_pb2.DeclineRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.DeclineResponse:
        """Note that a member's policy forbids the plan."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            reason = _one_line(request.reason)
            self._desk.decline(member.member_id, round_number=request.round, reason=reason)
        return rounds_pb2.DeclineResponse()

    def ListExclusions(
        self, request: rounds_pb2.ListExclusionsRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.ListExclusionsResponse:
        """Return what was left out of what the caller sent."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            found = self._desk.registry.exclusions(member.member_id, last=_LISTED)
        return rounds_pb2.ListExclusionsResponse(
            exclusions=[
                rounds_pb2.Exclusion(
                    id=one.id,
                    round=one.round,
                    kind=one.kind,
                    reason=one.reason,
                    at=one.at,
                    answer=one.answer,
                )
                for one in found
            ]
        )

    def AnswerExclusion(
        self, request: rounds_pb2.AnswerExclusionRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.AnswerExclusionResponse:
        """Keep what the caller says to an exclusion of its own."""
        with status_from_errors(context):
            member_id = identify(context, self._desk).member_id
            text, now = _one_line(request.answer), self._desk.clock()
            self._desk.registry.answer(min(request.id, _MAX_ID), member_id, text, now=now)
        return rounds_pb2.AnswerExclusionResponse()

    def SubmitEvaluation(
        self, request: rounds_pb2.SubmitEvaluationRequest, context: grpc.ServicerContext
    ) -> rounds_pb2.SubmitEvaluationResponse:
        """Note what a member measured of a published checkpoint."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            digest = digest_value(request.manifest_digest, what="manifest_digest")
            number = self._desk.round_of(digest)
            if number is None:
                raise RejectedError(
                    f"no checkpoint of this federation has the digest {digest[:16]}"
                )
            if not 0 <= request.bits_per_byte <= 64 or not 0 < request.held_out_bytes < 2**53:
                raise RejectedError(
                    f"{request.bits_per_byte} bits per byte over {request.held_out_bytes} bytes "
                    "is not a measurement"
                )
            self._desk.evaluate(
                StoredEvaluation(
                    round=number,
                    member_id=member.member_id,
                    language=_one_line(request.language)[:64],
                    bits_per_byte=request.bits_per_byte,
                    held_out_bytes=request.held_out_bytes,
                )
            )
        return rounds_pb2.SubmitEvaluationResponse()


class TransferService(transfer_pb2_grpc.TransferServiceServicer):
    """Checkpoints down, contributions up; `put_fragment` and `fetch` are `wire.bulk`'s."""

    def __init__(self, desk: Desk, store: FragmentStore, layout: ParameterLayout) -> None:
        """Receive contributions into `store`."""
        self._desk = desk
        self._store = store
        self._layout = layout
        self._windows = Windows()

    def Describe(
        self, request: transfer_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.DescribeResponse:
        """Return manifest and card of one checkpoint."""
        with status_from_errors(context):
            identify(context, self._desk)
            newest = self._desk.registry.newest_round() or 0
            number = request.round if request.HasField("round") else newest
            manifest = self._desk.registry.manifest(number) if number <= newest else None
            if manifest is None:
                raise RejectedError(f"there is no checkpoint {number}: the newest is {newest}")
            folder = self._desk.home.checkpoint(number)
            if not folder.is_dir():
                raise RejectedError(f"checkpoint {number} is not kept any more")
            self._desk.have_indexed(number)
            card = read_envelope(folder / CARD_FILE, what="card")
            proof = folder / PROOF_FILE
            proved = proof.read_bytes() if proof.is_file() else b""
        return transfer_pb2.DescribeResponse(
            manifest=envelope_message(manifest), card=envelope_message(card), ledger_proof=proved
        )

    def Lineage(
        self, request: transfer_pb2.LineageRequest, context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.LineageResponse]:
        """Send the manifests from genesis on."""
        with status_from_errors(context):
            identify(context, self._desk)
            for envelope in self._desk.registry.lineage(min(request.last_round, 2**53)):
                yield transfer_pb2.LineageResponse(manifest=envelope_message(envelope))

    def fetch(
        self, request: transfer_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Send a published file from an offset on."""
        with status_from_errors(context):
            identify(context, self._desk)
            path = self._desk.file(digest_value(request.digest, what="digest"))
            yield from _chunks(path, request.offset_bytes)

    def OpenUpload(
        self, request: transfer_pb2.OpenUploadRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.OpenUploadResponse:
        """Say which fragments are missing, or return the receipt."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            require_contributor(member)
            member_id = member.member_id
            base = digest_value(request.base_digest, what="base_digest")
            with self._store.turn(member_id):
                receipt = self._desk.receipt(member_id, round_number=request.round)
                if receipt is not None:
                    return transfer_pb2.OpenUploadResponse(receipt=envelope_message(receipt))
                plan = self._desk.require_upload(
                    member_id, round_number=request.round, base=base, codec=request.codec
                )
                digests = split_digests(request.fragment_digests, expected=self._layout.fragments)
                missing = self._store.open(
                    request.round,
                    member_id,
                    codec=request.codec,
                    digests=digests,
                    max_element=plan.max_element,
                )
                grant = self._windows.open(member_id)
        return transfer_pb2.OpenUploadResponse(
            missing=pack_missing(missing), window=grant.fragments, piece_bytes=grant.piece_bytes
        )

    def put_fragment(
        self, requests: Iterator[PutFragment], context: grpc.ServicerContext
    ) -> transfer_pb2.PutFragmentResponse:
        """Validate and store one fragment; nothing of it is read before the member's turn comes."""
        with status_from_errors(context):
            member_id = identify(context, self._desk).member_id
            with self._windows.place(member_id, context.is_active):
                self._take(requests, member_id)
        grant = self._windows.granted(member_id)
        return transfer_pb2.PutFragmentResponse(
            window=grant.fragments, piece_bytes=grant.piece_bytes
        )

    def _take(self, requests: Iterator[PutFragment], member_id: str) -> None:
        first = next(requests, None)
        if first is None:
            raise RejectedError("the call has no message: send a fragment, or none")
        number, index, pieces = first.round, first.index, rejoined([first], requests)
        del first  # here, so that no piece is held while the others come
        with recording_refusals(self._desk, member_id):
            size = self._store.take(
                number, member_id, index=index, pieces=map(attrgetter("data"), pieces)
            )
        self._desk.live.received(member_id, round_number=number, size=size, now=self._desk.clock())

    def Commit(
        self, request: transfer_pb2.CommitRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.CommitResponse:
        """Take a complete, signed contribution into the round."""
        with status_from_errors(context):
            member = identify(context, self._desk)
            require_contributor(member)
            envelope = envelope_value(request.contribution)
            contribution = Contribution.opened(
                envelope,
                public_key=bytes.fromhex(member.signing_key),
                what=f"contribution of {member.member_id}",
            )
            if contribution.member_id != member.member_id:
                raise RejectedError(
                    f"the contribution names {contribution.member_id}, the connection is "
                    f"{member.member_id}'s"
                )
            number = contribution.round
            with (
                self._store.turn(member.member_id),
                recording_refusals(self._desk, member.member_id),
            ):
                receipt = self._desk.receipt(member.member_id, round_number=number)
                if receipt is None:
                    policy = self._desk.policy_of(member.member_id, round_number=number)
                    require_floor(contribution, policy)
                    found = self._store.finished(number, member.member_id)
                    root, norm = found or self._store.finish(number, member.member_id)
                    if root.hex() != contribution.root:
                        raise RejectedError("the signed root is not that of the fragments received")
                    self._store.secure(number, member.member_id, root=root.hex())
                    failpoints.reach("contribution-durable")
                    receipt = self._desk.commit(member, contribution, envelope, norm=norm)
                    failpoints.reach("receipt-recorded")
            self._windows.close(member.member_id)
        return transfer_pb2.CommitResponse(receipt=envelope_message(receipt))


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


def _told_message(told: Announcement) -> rounds_pb2.WatchPlansResponse:
    return rounds_pb2.WatchPlansResponse(
        plan=None if told.plan is None else envelope_message(told.plan),
        manifest=envelope_message(told.manifest),
        candidate=None if told.candidate is None else envelope_message(told.candidate),
        is_finished=told.is_finished,
        notice=told.notice,
        ledger_head=told.ledger_head,
    )


def _serial(certificate: bytes, federation: str) -> int:
    return read_member_certificate(certificate, federation=federation).serial


def _one_line(text: str) -> str:
    """Return text from outside as one short printable line."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:_MAX_TEXT]


def _chunks(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(min(offset, path.stat().st_size))
        while data := file.read(FETCH_CHUNK_BYTES):
            yield data
