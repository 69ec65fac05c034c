"""The coordinator's services on loopback, over mutual TLS, with a clock that the test sets.

Made of the same parts as `CoordinatorServer`, which serves from the main thread only.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from tapestry.checkpoints.statements import RoundPlan
from tapestry.identity.certificates import (
    Authority,
    certificate_request,
    create_tls_key,
    issue_member_certificate,
    issue_server_certificate,
)
from tapestry.identity.envelopes import Envelope, sign
from tapestry.identity.invitations import Invitation
from tapestry.identity.keys import load_tls_key, private_pem, public_bytes
from tapestry.params.codecs import Float32Array
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    rounds_pb2,
    rounds_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from tapestry.wire.admin import add_admin_service
from tapestry.wire.archives import add_archive_service
from tapestry.wire.bulk import add_transfer_service
from tapestry.wire.channels import open_channel, server_credentials
from tapestry.wire.ledger import LedgerClient, add_ledger_service
from tapestry.wire.limits import SERVER_OPTIONS
from tapestry.wire.messages import envelope_message, envelope_value
from tapestry_coordinator.archiving import readable_files
from tapestry_coordinator.callers import operator_of
from tapestry_coordinator.closed_round import ClosedRound, plan_of
from tapestry_coordinator.database import database_url
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.enrolment_service import EnrolmentService
from tapestry_coordinator.inviting import make_invitation
from tapestry_coordinator.places import Places
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import CONTRIBUTOR
from tapestry_coordinator.rounds_service import RoundsService
from tapestry_coordinator.showing import ledger_for
from tapestry_coordinator.transfer_service import TransferService
from tapestry_coordinator.uploads import FragmentStore
from tests.coordinator.small import Small, declare, encode, signing_key

ENROL_TYPE = "application/vnd.tapestry.enrol.v1"
CALL_SECONDS = 20.0
WORKERS = 24


@dataclass
class Clock:
    """The time as the coordinator sees it; TLS looks at the real one."""

    now: float = field(default_factory=lambda: datetime.now(UTC).timestamp())

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


class Coordinator:
    """Two listening ports over one folder; `store` may be one that a test made."""

    def __init__(
        self, small: Small, *, clock: Clock | None = None, store: FragmentStore | None = None
    ) -> None:
        self.small, self.home = small, small.home
        self.clock = clock or Clock()
        self.store = store or FragmentStore(self.home.contributions, small.layout)
        self.registry = Registry(database_url(self.home))
        self.desk = Desk(
            self.home, self.home.load_settings(), self.registry, small.key, clock=self.clock
        )
        self.authority: Authority = self.home.load_authority()
        self.stopping = threading.Event()
        key = load_tls_key(self.home.tls_key)
        certificate = issue_server_certificate(
            self.authority,
            key.public_key(),
            federation=self.federation,
            hosts=[],
            now=datetime.now(UTC),
        )
        self.places = Places(clock=self.clock)
        self._servers: list[grpc.Server] = []
        self._callers: list[ThreadPoolExecutor] = []
        enrolment = EnrolmentService(self.desk, self.authority)
        members, self.address = self._listen(certificate, private_pem(key), self.root_pem)
        rounds_pb2_grpc.add_RoundsServiceServicer_to_server(
            RoundsService(self.desk, self.stopping), members
        )
        transfer: Any = TransferService(self.desk, self.store, small.layout)
        add_transfer_service(transfer, transfer, members)
        add_admin_service(lambda context: operator_of(context, self.desk), members)
        add_archive_service(lambda context, n: readable_files(self.desk, context, n), members)
        add_ledger_service(lambda context: ledger_for(context, self.desk), members)
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, members)
        door, self.door = self._listen(certificate, private_pem(key), None)
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, door)
        for server in self._servers:
            server.start()

    def _listen(
        self, certificate: bytes, key_pem: bytes, root_pem: bytes | None
    ) -> tuple[grpc.Server, str]:
        self._callers.append(ThreadPoolExecutor(WORKERS))
        server = grpc.server(self._callers[-1], interceptors=[self.places], options=SERVER_OPTIONS)
        credentials = server_credentials(
            certificate_pem=certificate, key_pem=key_pem, root_pem=root_pem
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        self._servers.append(server)
        return server, f"127.0.0.1:{port}"

    @property
    def federation(self) -> str:
        return self.desk.genesis.origin.federation

    @property
    def root_pem(self) -> bytes:
        return self.authority.certificate_pem

    def stop(self, *, grace_seconds: float = 0.2) -> None:
        self.stopping.set()
        self.desk.wake()
        for stopped in [server.stop(grace_seconds) for server in self._servers]:
            stopped.wait()
        for threads in self._callers:
            threads.shutdown()
        self.store.close()
        self.registry.close()

    def restarted(self) -> "Coordinator":
        """The same folder served by a new process, as far as its memory goes."""
        self.stop()
        return Coordinator(self.small, clock=self.clock)

    # Members

    def invite(self, member_id: str, *, role: str = CONTRIBUTOR) -> Invitation:
        return make_invitation(self.home, member_id, now=self.clock.now, role=role)

    def join(self, member_id: str, *, role: str = CONTRIBUTOR) -> "Member":
        """Enrol a member through the door."""
        member, invitation = Member(self, member_id), self.invite(member_id, role=role)
        with member.knocking() as stub:
            response = stub.Enrol(member.enrolment(invitation), timeout=CALL_SECONDS)
        member.certificate = response.certificate
        return member

    def issue(
        self, member_id: str, *, authority: Authority | None = None, age_days: int = 0
    ) -> "Member":
        """A certificate of seven days for whoever, without enrolment."""
        member = Member(self, member_id)
        member.certificate = issue_member_certificate(
            authority or self.authority,
            member.request(),
            federation=self.federation,
            member_id=member_id,
            now=datetime.now(UTC) - timedelta(days=age_days),
        )
        return member

    def revoke(self, member_id: str) -> None:
        """As the command does it: another process writes to the same database."""
        registry = Registry(database_url(self.home))
        registry.revoke(member_id, now=self.clock.now)
        registry.close()

    # Rounds

    @property
    def plan(self) -> RoundPlan:
        return plan_of(self.registry, self.desk.state)[0]

    def propose(self) -> Envelope:
        """Let members measure the round that closed, as the aggregator does."""
        closed = ClosedRound.recorded(self.registry, self.desk.state)
        envelope = self.small.publisher.propose(closed)
        self.desk.propose(envelope, closed.policy.no_harm)
        return envelope

    def aggregate(self) -> Envelope:
        """Publish the round that closed, as the aggregator does."""
        closed = ClosedRound.recorded(self.registry, self.desk.state)
        envelope = self.small.publisher.publish(closed)
        self.desk.publish(envelope)
        return envelope


class Member:
    """An institution's keys and certificate, and its connections."""

    def __init__(self, coordinator: Coordinator, member_id: str) -> None:
        self.coordinator = coordinator
        self.member_id = member_id
        self.signing_key = signing_key(member_id)
        self.tls_key: EllipticCurvePrivateKey = create_tls_key()
        self.certificate: bytes = b""

    def request(self, key: EllipticCurvePrivateKey | None = None) -> bytes:
        return certificate_request(key or self.tls_key, member_id=self.member_id)

    def enrolment(self, invitation: Invitation, **changes: Any) -> enrolment_pb2.EnrolRequest:
        """What a node sends to enrol; `changes` replace fields."""
        request = changes.pop("certificate_request", self.request())
        values = {
            "federation": invitation.federation,
            "member_id": invitation.member_id,
            "token": invitation.token,
            "certificate_request": request,
            "signing_key": public_bytes(self.signing_key),
            "signing_key_proof": sign(ENROL_TYPE, request, self.signing_key).signature,
            **changes,
        }
        return enrolment_pb2.EnrolRequest(**values)

    @contextmanager
    def knocking(self) -> Iterator[enrolment_pb2_grpc.EnrolmentServiceStub]:
        """The enrolment service at the door that asks for no certificate."""
        with open_channel(self.coordinator.door, root_pem=self.coordinator.root_pem) as channel:
            yield enrolment_pb2_grpc.EnrolmentServiceStub(channel)

    @contextmanager
    def connected(
        self, coordinator: Coordinator | None = None, *, address: str | None = None
    ) -> Iterator["Line"]:
        """A connection over mutual TLS; `address` may be that of a line in between."""
        to = coordinator or self.coordinator
        with open_channel(
            address or to.address,
            root_pem=to.root_pem,
            certificate_pem=self.certificate,
            key_pem=private_pem(self.tls_key),
        ) as channel:
            yield Line(self, channel)


class Line:
    """One open connection of a member."""

    def __init__(self, member: Member, channel: grpc.Channel) -> None:
        self.member = member
        self.channel = channel
        self.rounds = rounds_pb2_grpc.RoundsServiceStub(channel)
        self.transfer = transfer_pb2_grpc.TransferServiceStub(channel)
        self.enrolment = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        self.ledger = LedgerClient(channel, "the coordinator")

    def describe(self, number: int | None = None) -> transfer_pb2.DescribeResponse:
        return self.transfer.Describe(
            transfer_pb2.DescribeRequest(round=number), timeout=CALL_SECONDS
        )

    def watch(self) -> "Watch":
        """Listen to the coordinator; the first message is there when this returns."""
        return Watch(self.rounds.WatchPlans(rounds_pb2.WatchPlansRequest(), timeout=CALL_SECONDS))

    def open_upload(
        self, plan: RoundPlan, fragments: list[bytes], **changes: Any
    ) -> transfer_pb2.OpenUploadResponse:
        values = {
            "round": plan.round,
            "base_digest": bytes.fromhex(plan.base),
            "codec": plan.codec,
            "fragment_digests": b"".join(map(fragment_digest, fragments)),
            **changes,
        }
        return self.transfer.OpenUpload(
            transfer_pb2.OpenUploadRequest(**values), timeout=CALL_SECONDS
        )

    def put(self, number: int, index: int, data: bytes) -> None:
        request = transfer_pb2.PutFragmentRequest(round=number, index=index, data=data)
        self.transfer.PutFragment(iter([request]), timeout=CALL_SECONDS)

    def commit(self, envelope: Envelope) -> Envelope:
        response = self.transfer.Commit(
            transfer_pb2.CommitRequest(contribution=envelope_message(envelope)),
            timeout=CALL_SECONDS,
        )
        return envelope_value(response.receipt)

    def sent(self, plan: RoundPlan, delta: Float32Array, **changes: Any) -> Envelope:
        """Announce and send all fragments; return the signed contribution, not yet committed."""
        fragments = encode(delta, self.member.coordinator.small.layout, plan.codec)
        self.open_upload(plan, fragments)
        for index, data in enumerate(fragments):
            self.put(plan.round, index, data)
        return self.declared(plan, fragments, **changes)

    def declared(self, plan: RoundPlan, fragments: list[bytes], **changes: Any) -> Envelope:
        root = changes.pop("root", None) or fragments_root(
            [fragment_digest(data) for data in fragments]
        )
        named = changes.pop("named", self.member.member_id)
        changes.setdefault("key", self.member.signing_key)
        return declare(plan, named, root=root, fragments=len(fragments), **changes)


class Watch:
    """A stream of plans."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.first = self.next()

    def next(self) -> rounds_pb2.WatchPlansResponse:
        return next(self._call)

    def until_plan(self) -> RoundPlan:
        """Read on until a plan is open."""
        message = self.first
        while not message.HasField("plan"):
            message = self.next()
        return RoundPlan.parsed(message.plan.payload, what="plan")

    def end(self) -> None:
        self._call.cancel()


def gathered(
    coordinator: Coordinator, stack: ExitStack, *names: str
) -> tuple[RoundPlan, dict[str, Line]]:
    """Let members join and connect; return the plan that opens, and their lines."""
    members = [coordinator.join(name) for name in names or ("a", "b")]
    lines = {member.member_id: stack.enter_context(member.connected()) for member in members}
    watches = [line.watch() for line in lines.values()]
    for watch in watches:
        stack.callback(watch.end)
    return watches[0].until_plan(), lines
