"""The node's side of the protocol; every request goes through the egress ledger."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import grpc

from tapestry.checkpoints.statements import Contribution
from tapestry.errors import UnavailableError
from tapestry.identity.certificates import certificate_request, create_tls_key
from tapestry.identity.envelopes import Envelope
from tapestry.identity.membership import IdentityFolder, Membership
from tapestry.params.fragments import unpack_missing
from tapestry.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    rounds_pb2,
    rounds_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from tapestry.wire.bulk import BulkStub, Pieces, PutFragment
from tapestry.wire.egress import EgressLedger
from tapestry.wire.fetching import Fetcher
from tapestry.wire.kernel import counted
from tapestry.wire.ledger import LedgerClient
from tapestry.wire.limits import CALL_SECONDS, COMMIT_SECONDS, PIECE_BYTES, UPLOADS_IN_FLIGHT
from tapestry.wire.members import open_member_channel
from tapestry.wire.messages import envelope_message, envelope_value
from tapestry.wire.statuses import errors_from_status
from tapestry_node.home import NodeHome

_Granting = transfer_pb2.OpenUploadResponse | transfer_pb2.PutFragmentResponse
"""Answers that say how much may be in flight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """The coordinator's present state, not yet verified."""

    plan: Envelope | None
    manifest: Envelope
    candidate: Envelope | None
    """Manifest of the next checkpoint, which is to be measured before it is published."""
    is_finished: bool
    notice: str
    ledger_head: str = ""
    """A note: the newest head of the ledger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """What was left out of what this member sent, and why."""

    id: int
    round: int
    kind: str
    reason: str
    at: float
    """Unix seconds, by the coordinator's clock."""
    answer: str


class NodeClient:
    """One connection to the coordinator."""

    def __init__(
        self, membership: Membership, identity: IdentityFolder, ledger: EgressLedger
    ) -> None:
        """Open a channel over mutual TLS; nothing is sent yet."""
        self.address = membership.address
        self._membership = membership
        self._identity = identity
        self._channel = channel = open_member_channel(membership, identity, ledger)
        self._rounds = rounds_pb2_grpc.RoundsServiceStub(channel)
        self._transfer = transfer_pb2_grpc.TransferServiceStub(channel)
        self._bulk = BulkStub(channel)
        self._enrolment = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        self.fetcher = Fetcher(channel, self.address)
        self.ledger = LedgerClient(channel, self.address)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def watch(self) -> Iterator[Told]:
        """Yield the coordinator's state, at once and after every change, until the line breaks.

        Raises:
            UnavailableError: Nobody answers, the line broke, or this connection was closed.
        """
        with errors_from_status(self.address):
            try:
                messages = self._rounds.WatchPlans(rounds_pb2.WatchPlansRequest())
            except ValueError as error:  # what gRPC raises for a channel that is closed
                raise UnavailableError("this connection was closed") from error
            for message in messages:
                yield Told(
                    plan=envelope_value(message.plan) if message.HasField("plan") else None,
                    manifest=envelope_value(message.manifest),
                    candidate=(
                        envelope_value(message.candidate) if message.HasField("candidate") else None
                    ),
                    is_finished=message.is_finished,
                    notice=message.notice,
                    ledger_head=message.ledger_head,
                )

    def report(
        self, *, round_number: int, step: int, steps: int, loss: float, speed: float
    ) -> None:
        """Tell progress; `speed` in tokens per second."""
        with errors_from_status(self.address):
            self._rounds.Report(
                rounds_pb2.ReportRequest(
                    round=round_number, step=step, steps=steps, loss=loss, tokens_per_second=speed
                ),
                timeout=CALL_SECONDS,
            )

    def decline(self, *, round_number: int, reason: str) -> None:
        """Refuse a plan."""
        with errors_from_status(self.address):
            self._rounds.Decline(
                rounds_pb2.DeclineRequest(round=round_number, reason=reason), timeout=CALL_SECONDS
            )

    def submit_evaluation(
        self, *, manifest: str, bits_per_byte: float, held_out_bytes: int, language: str
    ) -> None:
        """Tell what a checkpoint scores on this node's held-out text."""
        with errors_from_status(self.address):
            self._rounds.SubmitEvaluation(
                rounds_pb2.SubmitEvaluationRequest(
                    manifest_digest=bytes.fromhex(manifest),
                    bits_per_byte=bits_per_byte,
                    held_out_bytes=held_out_bytes,
                    language=language,
                ),
                timeout=CALL_SECONDS,
            )

    def exclusions(self) -> list[Exclusion]:
        """Return what was left out of what this member sent, newest first."""
        with errors_from_status(self.address):
            response = self._rounds.ListExclusions(
                rounds_pb2.ListExclusionsRequest(), timeout=CALL_SECONDS
            )
        return [
            Exclusion(
                id=one.id,
                round=one.round,
                kind=one.kind,
                reason=one.reason,
                at=one.at,
                answer=one.answer,
            )
            for one in response.exclusions
        ]

    def answer(self, exclusion_id: int, text: str) -> None:
        """Say something to an exclusion; it is kept beside it.

        Raises:
            RejectedError: This member has no exclusion with that number.
        """
        request = rounds_pb2.AnswerExclusionRequest(id=exclusion_id, answer=text)
        with errors_from_status(self.address):
            self._rounds.AnswerExclusion(request, timeout=CALL_SECONDS)

    def upload(
        self,
        contribution: Contribution,
        envelope: Envelope,
        digests: Sequence[bytes],
        read_fragment: Callable[[int], bytes],
        *,
        on_arrived: Callable[[int, int], None] | None = None,
    ) -> Envelope:
        """Send what is missing of a contribution, commit it, and return the receipt.

        Can be repeated after any failure: only fragments that did not arrive are sent again.

        Args:
            contribution: What `envelope` holds.
            envelope: The signed contribution.
            digests: SHA-256 of each encoded fragment.
            read_fragment: Index -> encoded bytes, which have that digest.
            on_arrived: Told how many fragments have arrived, and how many there are.

        Raises:
            UnavailableError: The line broke; call again.
            RejectedError: The round does not take it.
        """
        number = contribution.round
        with errors_from_status(self.address):
            opened = self._transfer.OpenUpload(
                transfer_pb2.OpenUploadRequest(
                    round=number,
                    base_digest=bytes.fromhex(contribution.base),
                    codec=contribution.codec,
                    fragment_digests=b"".join(digests),
                ),
                timeout=COMMIT_SECONDS,
            )
            if opened.HasField("receipt"):
                return envelope_value(opened.receipt)
            missing = unpack_missing(opened.missing, len(digests))
            count = _counting(on_arrived, len(digests) - len(missing), len(digests))
            self._put_all(number, missing, digests, read_fragment, count, granted=opened)
            committed = self._transfer.Commit(
                transfer_pb2.CommitRequest(contribution=envelope_message(envelope)),
                timeout=COMMIT_SECONDS,
            )
        return envelope_value(committed.receipt)

    def _put_all(
        self,
        number: int,
        indices: Sequence[int],
        digests: Sequence[bytes],
        read_fragment: Callable[[int], bytes],
        count: Callable[[], None],
        *,
        granted: _Granting,
    ) -> None:
        """Send fragments, as many in flight as the coordinator says in every answer."""
        in_flight: deque[grpc.Future] = deque()  # type: ignore[type-arg]

        def wait_for_oldest() -> None:
            nonlocal granted
            granted = in_flight.popleft().result()
            count()

        try:
            for index in indices:
                data = read_fragment(index)
                fragment = PutFragment(number, index, data, digests[index])
                call = self._put(fragment, piece_bytes=max(PIECE_BYTES, granted.piece_bytes))
                in_flight.append(call)
                while len(in_flight) >= max(1, min(granted.window, UPLOADS_IN_FLIGHT)):
                    wait_for_oldest()
            while in_flight:
                wait_for_oldest()
        finally:
            for future in in_flight:  # after a failure: they would meet those sent again
                future.cancel()

    def _put(self, fragment: PutFragment, *, piece_bytes: int) -> grpc.Future:  # type: ignore[type-arg]
        """Begin to send a fragment, in one message if it may be."""
        if len(fragment.data) <= piece_bytes:
            return self._bulk.put_fragment.future(fragment, timeout=COMMIT_SECONDS)
        pieces = Pieces(fragment, piece_bytes=piece_bytes)
        return self._bulk.put_pieces.future(pieces, timeout=COMMIT_SECONDS)

    def renew(self) -> None:
        """Replace the member certificate by a fresh one with a new key.

        The channel keeps the old one until the next connection.
        """
        key = create_tls_key()
        request = certificate_request(key, member_id=self._membership.member_id)
        with errors_from_status(self.address):
            response = self._enrolment.Renew(
                enrolment_pb2.RenewRequest(certificate_request=request), timeout=CALL_SECONDS
            )
        self._identity.replace_certificate(response.certificate, key)

    def leave(self, reason: str) -> float:
        """End this node's own membership; return when, in Unix seconds by the coordinator's clock.

        Can be repeated after any failure.
        """
        with errors_from_status(self.address):
            response = self._enrolment.Leave(
                enrolment_pb2.LeaveRequest(reason=reason), timeout=CALL_SECONDS
            )
        return response.left_at


def _counting(
    on_arrived: Callable[[int, int], None] | None, done: int, of: int
) -> Callable[[], None]:
    """Return what is to be called once more for each fragment that has arrived."""

    def count() -> None:
        nonlocal done
        done += 1
        if on_arrived is not None:
            on_arrived(done, of)

    if on_arrived is not None:
        on_arrived(done, of)
    return count


@contextmanager
def connected(
    home: NodeHome,
    *,
    clock: Callable[[], float],
    allowed_by: str = "",
    address: str | None = None,
) -> Iterator[NodeClient]:
    """Connect as a node for a command; its daemon may run meanwhile.

    What is sent goes into the node's ledger, and the kernel's count of it beside that.

    Args:
        home: Of the node.
        clock: Unix seconds.
        allowed_by: As in `EgressLedger.allowed_by`.
        address: Of the coordinator; None: where it was last.
    """
    known = home.identity.load()
    membership = known if address is None else replace(known, address=address)
    ledger = EgressLedger(home.egress, to=membership.address, clock=clock)
    ledger.allowed_by = allowed_by
    with (
        closing(ledger),
        closing(NodeClient(membership, home.identity, ledger)) as client,
        counted(ledger, clock=clock),
    ):
        yield client
