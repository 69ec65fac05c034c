"""The ledger over the wire: both ends of LedgerService."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import grpc

from tapestry.errors import RejectedError
from tapestry.ledger.entries import MAX_ENTRY_BYTES
from tapestry.ledger.notes import MAX_NOTE_BYTES
from tapestry.ledger.witness import Growth
from tapestry.v1 import ledger_pb2, ledger_pb2_grpc
from tapestry.wire.limits import CALL_SECONDS
from tapestry.wire.messages import digest_value
from tapestry.wire.statuses import errors_from_status, status_from_errors

MAX_ENTRIES_OF_ANSWER = 1000
MAX_LINE = 500
_MOST_STEPS = 64
_MOST_WITNESSES = 1024


class ShowsLedger(Protocol):
    """What a member can ask of a ledger."""

    def head(self) -> tuple[str, Mapping[str, bytes]]:
        """Return the newest head's note, and the raw keys of present members."""

    def entries(self, begin: int, end: int) -> Sequence[bytes]:
        """Return entries from one number up to, not including, another."""

    def inclusion(self, entry: int | str, size: int) -> tuple[int, bytes, Sequence[bytes]]:
        """Return number, bytes and path of an entry, named by number or by its hex digest."""

    def growth(self, old_size: int, new_size: int) -> Growth:
        """Return the proof that the ledger only grew."""

    def cosign(self, size: int, line: str) -> None:
        """Keep the caller's cosignature of a head."""


class LedgerClient:
    """A member's side; what it returns is not verified yet."""

    def __init__(self, channel: grpc.Channel, address: str) -> None:
        """Speak over `channel`, whose other end is at `address`."""
        self._stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        self._address = address

    def head(self) -> tuple[str, Mapping[str, bytes]]:
        """Return the newest head's note, and the raw keys of present members."""
        with errors_from_status(self._address):
            response = self._stub.Head(ledger_pb2.HeadRequest(), timeout=CALL_SECONDS)
        if len(response.note) > MAX_NOTE_BYTES or len(response.witnesses) > _MOST_WITNESSES:
            raise RejectedError(f"{self._address}: a head that is longer than any is")
        return response.note, {one.member_id: one.signing_key for one in response.witnesses}

    def entries(self, begin: int, end: int) -> list[bytes]:
        """Return entries from one number up to, not including, another, in as many calls as needed.

        Raises:
            RejectedError: The other side does not give them.
        """
        found: list[bytes] = []
        while begin + len(found) < end:
            request = ledger_pb2.EntriesRequest(begin=begin + len(found), end=end)
            with errors_from_status(self._address):
                response = self._stub.Entries(request, timeout=CALL_SECONDS)
            came = list(response.entries)
            if not came or len(came) > end - begin - len(found):
                raise RejectedError(
                    f"{self._address}: {len(came)} entries came from {begin + len(found):,} on, of "
                    f"{end - begin - len(found):,} that its head says there are"
                )
            if any(len(one) > MAX_ENTRY_BYTES for one in came):
                raise RejectedError(f"{self._address}: an entry that is longer than any is")
            found += came
        return found

    def inclusion(self, entry: int | str, size: int) -> tuple[int, bytes, Sequence[bytes]]:
        """Return number, bytes and path of an entry, named by number or by its hex digest."""
        request = ledger_pb2.InclusionRequest(size=size)
        if isinstance(entry, int):
            request.index = entry
        else:
            request.payload_digest = bytes.fromhex(entry)
        with errors_from_status(self._address):
            response = self._stub.Inclusion(request, timeout=CALL_SECONDS)
        return response.index, response.entry, list(response.path)[:_MOST_STEPS]

    def growth(self, old_size: int, new_size: int) -> Growth:
        """Return the proof that the ledger only grew."""
        request = ledger_pb2.ConsistencyRequest(old_size=old_size, new_size=new_size)
        with errors_from_status(self._address):
            response = self._stub.Consistency(request, timeout=CALL_SECONDS)
        return Growth(response.old_root, list(response.path)[:_MOST_STEPS])

    def cosign(self, size: int, line: str) -> None:
        """Hand a cosignature in; may be repeated."""
        with errors_from_status(self._address):
            self._stub.Cosign(ledger_pb2.CosignRequest(size=size, line=line), timeout=CALL_SECONDS)


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """The coordinator's side; who may call at all is for `shown_to` to say."""

    def __init__(self, shown_to: Callable[[grpc.ServicerContext], ShowsLedger]) -> None:
        """Serve callers.

        Args:
            shown_to: The ledger as a caller may see it; raises UntrustedError for strangers.
        """
        self._shown_to = shown_to

    def Head(  # noqa: N802 - gRPC's name
        self,
        request: ledger_pb2.HeadRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> ledger_pb2.HeadResponse:
        """Return the newest head."""
        with status_from_errors(context):
            note, witnesses = self._shown_to(context).head()
            return ledger_pb2.HeadResponse(
                note=note,
                witnesses=[
                    ledger_pb2.Witness(member_id=member_id, signing_key=key)
                    for member_id, key in sorted(witnesses.items())
                ],
            )

    def Entries(  # noqa: N802
        self, request: ledger_pb2.EntriesRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.EntriesResponse:
        """Return some entries."""
        with status_from_errors(context):
            end = min(request.end, request.begin + MAX_ENTRIES_OF_ANSWER)
            found = self._shown_to(context).entries(request.begin, end)
            return ledger_pb2.EntriesResponse(entries=found)

    def Inclusion(  # noqa: N802
        self, request: ledger_pb2.InclusionRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.InclusionResponse:
        """Return the proof that an entry is there."""
        with status_from_errors(context):
            shown = self._shown_to(context)
            entry: int | str = request.index
            if request.WhichOneof("entry") == "payload_digest":
                entry = digest_value(request.payload_digest, what="payload_digest")
            index, leaf, path = shown.inclusion(entry, request.size)
            return ledger_pb2.InclusionResponse(index=index, entry=leaf, path=path)

    def Consistency(  # noqa: N802
        self, request: ledger_pb2.ConsistencyRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.ConsistencyResponse:
        """Return the proof that the ledger only grew."""
        with status_from_errors(context):
            growth = self._shown_to(context).growth(request.old_size, request.new_size)
            return ledger_pb2.ConsistencyResponse(old_root=growth.old_root, path=growth.path)

    def Cosign(  # noqa: N802
        self, request: ledger_pb2.CosignRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.CosignResponse:
        """Keep a cosignature."""
        with status_from_errors(context):
            shown = self._shown_to(context)
            if len(request.line) > MAX_LINE:
                raise RejectedError(f"the line of a cosignature has at most {MAX_LINE} characters")
            shown.cosign(request.size, request.line)
            return ledger_pb2.CosignResponse()


def add_ledger_service(
    shown_to: Callable[[grpc.ServicerContext], ShowsLedger], server: grpc.Server
) -> None:
    """Serve members on `server`."""
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(LedgerService(shown_to), server)
