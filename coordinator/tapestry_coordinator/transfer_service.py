"""The transfer service: checkpoints down, contributions up."""

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import grpc

from tapestry.checkpoints.deciding import require_floor
from tapestry.checkpoints.folder import CARD_FILE, read_envelope
from tapestry.checkpoints.statements import Contribution
from tapestry.errors import RejectedError, UntrustedError
from tapestry.ledger.proof import PROOF_FILE
from tapestry.params.fragments import pack_missing, split_digests
from tapestry.params.layout import ParameterLayout
from tapestry.v1 import transfer_pb2, transfer_pb2_grpc
from tapestry.wire.bulk import PutFragment
from tapestry.wire.limits import FETCH_CHUNK_BYTES
from tapestry.wire.messages import digest_value, envelope_message, envelope_value
from tapestry.wire.statuses import status_from_errors
from tapestry_coordinator import failpoints
from tapestry_coordinator.arrivals import rejoined
from tapestry_coordinator.callers import identify, require_contributor
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.exclusions import recording_refusals
from tapestry_coordinator.uploads import FragmentStore
from tapestry_coordinator.windows import Windows


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
            try:
                self._desk.files.have(number)
                card = read_envelope(folder / CARD_FILE, what="card")
                proof = folder / PROOF_FILE
                proved = proof.read_bytes() if proof.is_file() else b""
            except (OSError, UntrustedError) as error:
                if folder.is_dir():
                    raise
                raise RejectedError(f"checkpoint {number} is not kept any more") from error
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
                receipt = self._desk.inbox.receipt(member_id, round_number=request.round)
                if receipt is not None:
                    return transfer_pb2.OpenUploadResponse(receipt=envelope_message(receipt))
                plan = self._desk.inbox.require_upload(
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
                receipt = self._desk.inbox.receipt(member.member_id, round_number=number)
                if receipt is None:
                    policy = self._desk.inbox.policy_of(member.member_id, round_number=number)
                    require_floor(contribution, policy)
                    found = self._store.finished(number, member.member_id)
                    root, norm = found or self._store.finish(number, member.member_id)
                    if root.hex() != contribution.root:
                        raise RejectedError("the signed root is not that of the fragments received")
                    self._store.secure(number, member.member_id, root=root.hex())
                    failpoints.reach("contribution-durable")
                    receipt = self._desk.inbox.commit(member, contribution, envelope, norm=norm)
                    failpoints.reach("receipt-recorded")
            self._windows.close(member.member_id)
        return transfer_pb2.CommitResponse(receipt=envelope_message(receipt))


def _chunks(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(min(offset, path.stat().st_size))
        while data := file.read(FETCH_CHUNK_BYTES):
            yield data
