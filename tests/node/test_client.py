"""What the node's connection sends, against a real server over mutual TLS, and its ledger."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import Contribution
from tapestry.errors import RejectedError, TapestryError
from tapestry.identity.certificates import (
    certificate_request,
    create_authority,
    create_tls_key,
    issue_member_certificate,
    issue_server_certificate,
    read_member_certificate,
)
from tapestry.identity.envelopes import Envelope
from tapestry.identity.keys import private_pem
from tapestry.identity.membership import IdentityFolder, Membership
from tapestry.params.fragments import fragment_digest, fragments_root, pack_missing
from tapestry.v1 import enrolment_pb2, rounds_pb2, transfer_pb2
from tapestry.wire.channels import server_credentials
from tapestry.wire.egress import Departure, EgressLedger, read_ledger
from tapestry.wire.limits import PIECE_BYTES, UPLOADS_IN_FLIGHT
from tapestry.wire.messages import envelope_message
from tapestry_node.client import NodeClient

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
FRAGMENTS = [bytes([number]) * (1000 + number) for number in range(6)]
RECEIPT = Envelope("receipt", b"{}", "signer", b"signature")
BEGAN = datetime.now(UTC)


@dataclass
class Coordinator(grpc.GenericRpcHandler):
    """Answers as a coordinator would, and keeps the bytes that came."""

    ledger: Path
    missing: list[bool] = field(default_factory=lambda: [True] * len(FRAGMENTS))
    has_receipt: bool = False
    certificate: bytes = b""
    came: list[tuple[str, bytes]] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)
    """Calls that arrived before their line was in the ledger."""
    windows: list[int] = field(default_factory=lambda: [1])
    """What the answers to an upload grant, one after the other; the last one again and again."""
    piece_bytes: int = 0
    most: int = 0
    """Fragments that were ever here at once."""
    _here: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        call = str(details.method).rsplit("/", 1)[-1]

        def answer(request: bytes, _context: grpc.ServicerContext) -> bytes:
            if self.ledger.read_text().count(f"/{call}") <= self.count(call):
                self.unwritten.append(call)
            self.came.append((call, request))
            return self.answer(call)

        def gather(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            first, *others = requests
            self.came += [(f"{call}, going on", request) for request in others]
            with self._changed:
                self._here += 1
                self.most = max(self.most, self._here)
                self._changed.notify_all()
                wanted = self.windows[0]
                self._changed.wait_for(lambda: self._here >= wanted, timeout=0.3)
                answered = answer(first, context)
                self._here -= 1
            return answered

        if call == "PutFragment":
            return grpc.stream_unary_rpc_method_handler(gather)
        return grpc.unary_unary_rpc_method_handler(answer)

    def granted(self) -> int:
        return self.windows.pop(0) if len(self.windows) > 1 else self.windows[0]

    def count(self, call: str) -> int:
        return sum(name == call for name, _request in self.came)

    def answer(self, call: str) -> bytes:
        receipt = envelope_message(RECEIPT)
        if call == "OpenUpload":
            missing = pack_missing(self.missing)
            answer = transfer_pb2.OpenUploadResponse(
                missing=missing, window=self.granted(), piece_bytes=self.piece_bytes
            )
            if self.has_receipt:
                answer = transfer_pb2.OpenUploadResponse(receipt=receipt)
            return answer.SerializeToString()
        if call == "PutFragment":
            answered = transfer_pb2.PutFragmentResponse(
                window=self.granted(), piece_bytes=self.piece_bytes
            )
            return answered.SerializeToString()
        if call == "Commit":
            return transfer_pb2.CommitResponse(receipt=receipt).SerializeToString()
        if call == "Renew":
            return enrolment_pb2.RenewResponse(certificate=self.certificate).SerializeToString()
        return b""


@dataclass
class Line:
    """A node's connection to a coordinator."""

    coordinator: Coordinator
    client: NodeClient
    identity: IdentityFolder
    renewed: bytes
    """A certificate of somebody else's key, in the member's name."""

    @property
    def departures(self) -> list[Departure]:
        return list(read_ledger(self.coordinator.ledger))

    def fragments(self) -> list[transfer_pb2.PutFragmentRequest]:
        """Return the fragments that arrived, by index."""
        sent = [r for call, r in self.coordinator.came if call == "PutFragment"]
        messages = list(map(transfer_pb2.PutFragmentRequest.FromString, sent))
        return sorted(messages, key=lambda message: message.index)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    authority = create_authority("loom", now=BEGAN)
    server_key, key = create_tls_key(), create_tls_key()
    coordinator = Coordinator(tmp_path / "egress.jsonl")
    server = grpc.server(ThreadPoolExecutor(8), handlers=(coordinator,))
    certificate = issue_server_certificate(
        authority, server_key.public_key(), federation="loom", hosts=[], now=BEGAN
    )
    port = server.add_secure_port(
        "127.0.0.1:0",
        server_credentials(
            certificate_pem=certificate,
            key_pem=private_pem(server_key),
            root_pem=authority.certificate_pem,
        ),
    )

    def certified(member_id: str) -> bytes:
        return issue_member_certificate(
            authority,
            certificate_request(key, member_id=member_id),
            federation="loom",
            member_id=member_id,
            now=BEGAN,
            lifetime_days=30,
        )

    membership = Membership(
        federation="loom",
        member_id="fr-bnf",
        address=f"localhost:{port}",
        coordinator_key="a" * 64,
        genesis="b" * 64,
    )
    identity = IdentityFolder(tmp_path / "identity")
    identity.create(
        membership,
        root_pem=authority.certificate_pem,
        certificate_pem=certified("fr-bnf"),
        tls_key=key,
        signing_key=KEY,
    )
    server.start()
    ledger = EgressLedger(coordinator.ledger, to=membership.address, clock=lambda: 1.0)
    with closing(ledger), closing(NodeClient(membership, identity, ledger)) as client:
        yield Line(coordinator, client, identity, certified("is-lbs"))
    server.stop(None).wait()


def contribution(fragments: list[bytes]) -> Contribution:
    return Contribution(
        genesis="b" * 64,
        round=3,
        base="c" * 64,
        member_id="fr-bnf",
        codec="int8",
        fragments=len(fragments),
        root=fragments_root(list(map(fragment_digest, fragments))).hex(),
        tokens=1,
        steps=1,
        norm=1.0,
    )


def upload(line: Line, fragments: list[bytes] = FRAGMENTS) -> Envelope:
    """Send a contribution."""
    declared = contribution(fragments)
    digests = list(map(fragment_digest, fragments))
    return line.client.upload(declared, declared.signed(KEY), digests, fragments.__getitem__)


def test_an_upload_sends_every_fragment_and_returns_the_receipt(line: Line) -> None:
    assert upload(line) == RECEIPT
    calls = [call for call, _request in line.coordinator.came]
    assert calls == ["OpenUpload", *["PutFragment"] * 6, "Commit"]
    arrived = [(message.round, message.index, message.data) for message in line.fragments()]
    assert arrived == [(3, index, data) for index, data in enumerate(FRAGMENTS)]


def test_only_what_did_not_arrive_is_sent_again(line: Line) -> None:
    line.coordinator.missing = [False, True, False, False, True, False]
    upload(line)
    assert [message.index for message in line.fragments()] == [1, 4]


def test_a_contribution_with_a_receipt_is_not_sent_again(line: Line) -> None:
    line.coordinator.has_receipt = True
    assert upload(line) == RECEIPT
    assert [departure.call for departure in line.departures] == [
        "/tapestry.v1.TransferService/OpenUpload"
    ]


def test_every_request_of_an_upload_is_in_the_ledger_before_it_arrives(line: Line) -> None:
    upload(line)
    assert line.coordinator.unwritten == []
    assert len(line.departures) == len(line.coordinator.came) == 8


def test_a_fragment_is_entered_with_the_size_and_digest_of_its_data(line: Line) -> None:
    upload(line)
    entered = [d for d in line.departures if d.call.endswith("/PutFragment")]
    assert [(d.bytes, d.digest) for d in entered] == [
        (len(message.data), hashlib.sha256(message.data).hexdigest())
        for message in line.fragments()
    ]


def test_other_requests_are_entered_with_the_size_and_digest_of_the_message(line: Line) -> None:
    upload(line)
    line.client.report(round_number=3, step=1, steps=2, loss=3.5, speed=100.0)
    line.client.decline(round_number=3, reason="no")
    line.client.submit_evaluation(
        manifest="d" * 64, bits_per_byte=2.5, held_out_bytes=9, language="fra"
    )
    entered = [d for d in line.departures if not d.call.endswith("/PutFragment")]
    arrived = [(call, r) for call, r in line.coordinator.came if call != "PutFragment"]
    assert [(d.call.rsplit("/", 1)[-1], d.bytes, d.digest) for d in entered] == [
        (call, len(request), hashlib.sha256(request).hexdigest()) for call, request in arrived
    ]
    reason = rounds_pb2.DeclineRequest.FromString(dict(arrived)["Decline"]).reason
    assert reason == "no"


def test_the_ledger_tells_what_left(line: Line) -> None:
    upload(line)
    entered = [d.digest for d in line.departures if d.call.endswith("/PutFragment")]
    left = [hashlib.sha256(message.data).hexdigest() for message in line.fragments()]
    assert entered == left


def test_a_renewed_certificate_of_another_member_is_not_taken(line: Line) -> None:
    line.coordinator.certificate = line.renewed
    before = line.identity.certificate_pem()
    with pytest.raises(TapestryError, match="names is-lbs; not taken"):
        line.client.renew()
    assert line.identity.certificate_pem() == before
    named = read_member_certificate(before, federation="loom")
    assert named.member_id == "fr-bnf"


def test_a_renewed_certificate_that_is_none_is_refused(line: Line) -> None:
    line.coordinator.certificate = b"no certificate"
    before = line.identity.certificate_pem()
    with pytest.raises(TapestryError):
        line.client.renew()
    assert line.identity.certificate_pem() == before


def test_a_call_that_is_refused_is_an_error_of_ours(line: Line, tmp_path: Path) -> None:
    line.client.report(round_number=1, step=1, steps=1, loss=1.0, speed=1.0)
    line.coordinator.ledger = tmp_path / "missing"  # the handler fails: an internal error
    with pytest.raises(RejectedError, match="refused the call"):
        line.client.report(round_number=1, step=2, steps=2, loss=1.0, speed=1.0)


# How much may be in flight


@pytest.mark.parametrize(
    ("windows", "most"),
    [([1], 1), ([2], 2), ([3], 3), ([100], UPLOADS_IN_FLIGHT), ([0], 1), ([1, 1, 3], 3)],
)
def test_as_many_fragments_are_in_flight_as_the_coordinator_says(
    line: Line, windows: list[int], most: int
) -> None:
    line.coordinator.windows = windows
    assert upload(line) == RECEIPT
    assert line.coordinator.most == most
    assert [message.index for message in line.fragments()] == list(range(6))


@pytest.mark.parametrize(
    ("piece_bytes", "messages"),
    [(0, 3), (1, 3), (PIECE_BYTES, 3), (2 * PIECE_BYTES, 2), (3 * PIECE_BYTES, 1)],
)
def test_a_fragment_goes_in_pieces_as_large_as_the_coordinator_says(
    line: Line, piece_bytes: int, messages: int
) -> None:
    line.coordinator.piece_bytes = piece_bytes
    line.coordinator.missing = [True]
    data = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"end"
    upload(line, [data])
    sent = [r for call, r in line.coordinator.came if call.startswith("PutFragment")]
    arrived = [transfer_pb2.PutFragmentRequest.FromString(piece).data for piece in sent]
    assert b"".join([arrived[-1], *arrived[:-1]]) == data, "the first is entered last"
    assert len(sent) == messages
    (entered,) = [d for d in line.departures if d.call.endswith("/PutFragment")]
    assert (entered.bytes, entered.digest) == (len(data), hashlib.sha256(data).hexdigest())
