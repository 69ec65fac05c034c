"""Simulated institutions: slow, forgetful, silent, unwilling, and lying ones among the honest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapestry.checkpoints.statements import RoundPlan
from tapestry.errors import TapestryError, UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.params.codecs import Float32Array
from tapestry.params.fragments import fragment_digest, fragments_root, unpack_missing
from tapestry.v1 import rounds_pb2, transfer_pb2
from tapestry.wire.bulk import PutFragment
from tapestry.wire.messages import envelope_message, envelope_value
from tapestry_coordinator.desk import Announcement
from tests.coordinator.small import MOST_TOKENS, declare, encode, signing_key
from tests.simulation.coordinator import Coordinator, Stream
from tests.simulation.history import Acknowledged, Refused, Told
from tests.simulation.plants import enrol
from tests.simulation.world import Network

KINDS = ("honest", "forgetful", "silent", "unwilling", "liar")
LIES = ("root", "bytes", "tokens", "base", "key", "somebody else", "twice")


@dataclass
class Spooled:
    """What a member trained, on its disk."""

    plan: RoundPlan
    envelope: Envelope
    fragments: list[bytes]


def delta_of(member_id: str, round_number: int, elements: int) -> Float32Array:
    """What an honest member contributes, in every history."""
    rng = np.random.default_rng([*member_id.encode(), round_number])
    return rng.standard_normal(elements, np.float32) * np.float32(0.1)


class Member:
    """One institution and its node."""

    def __init__(
        self,
        coordinator: Coordinator,
        network: Network,
        member_id: str,
        *,
        kind: str,
        pace_seconds: float,
    ) -> None:
        self.coordinator, self.network, self.member_id = coordinator, network, member_id
        self.world, self.history = coordinator.world, coordinator.history
        self.kind, self.pace_seconds = kind, pace_seconds
        self.generation = 0
        self.certificate = enrol(coordinator.plant, member_id, 0, now=self.world.now)
        self.stream: Stream | None = None
        self.spool: dict[int, Spooled] = {}
        self.receipts: set[int] = set()
        self.life = 0
        """Counts its restarts: what a past life had begun has no effect."""
        self._training: set[int] = set()
        self._sending: set[int] = set()
        self._opened = 0

    @property
    def is_honest(self) -> bool:
        """Whether it answers every plan truthfully, if it lives long enough."""
        return self.kind in {"honest", "forgetful"}

    # Its connection

    def connect(self) -> None:
        """Listen, and try again while nobody answers."""
        life = self.life
        self._opened += 1
        opened = self._opened

        def hear(stream: int, told: Announcement) -> None:
            if opened == self._opened:
                self.hear(stream, told)

        def perform() -> Stream:
            return self.coordinator.watch(self.member_id, self.certificate, hear, broken)

        def broken() -> None:
            if life == self.life and opened == self._opened:
                self.stream = None
                self.world.after(self.world.between(0.5, 5.0), lambda: self._again(life, opened))

        def failed(_error: TapestryError) -> None:
            broken()

        def answered(stream: Stream) -> None:
            if life == self.life and opened == self._opened:
                self.stream = stream

        self.network.call(perform, answered, failed)

    def _again(self, life: int, opened: int) -> None:
        if life == self.life and opened == self._opened:
            self.connect()

    def crash(self, *, loses_spool: bool) -> None:
        """Die and come back; what was being trained is lost, what was spooled perhaps."""
        self.life += 1
        self._training.clear()
        self._sending.clear()
        if loses_spool:
            self.spool.clear()
        if self.stream is not None:
            self.coordinator.hang_up(self.stream)
        self.stream = None
        life = self.life
        self.world.after(self.world.between(0.5, 60.0), lambda: self._back(life))

    def _back(self, life: int) -> None:
        if life == self.life:
            self.connect()

    def come_back(self) -> None:
        """Take up a new membership after a revocation."""
        self.generation += 1
        self.certificate = enrol(
            self.coordinator.plant, self.member_id, self.generation, now=self.world.now
        )
        self.life += 1
        self._training.clear()
        self._sending.clear()
        self.connect()

    # What it hears and answers

    def hear(self, stream: int, told: Announcement) -> None:
        """Take note of the coordinator's state, and answer a plan."""
        self.history.told.append(
            Told(self.world.now, self.member_id, stream, told.manifest, told.plan)
        )
        for number in sorted(set(self.spool) - self.receipts):
            if self.kind != "liar":
                self._send(number)
        if told.plan is not None:
            plan = RoundPlan.parsed(told.plan.payload, what="plan")
            if self.kind == "unwilling":
                self._decline(plan)
            elif self.kind != "silent" and plan.round not in self._training:
                self._train(plan)

    def _decline(self, plan: RoundPlan) -> None:
        request = rounds_pb2.DeclineRequest(round=plan.round, reason="policy forbids it")
        self.network.call(
            lambda: self.coordinator.decline(self.certificate, request),
            lambda _answer: None,
            lambda error: self._refused("decline", error),
        )

    def _refused(self, call: str, error: TapestryError) -> None:
        self.history.refused.append(Refused(self.world.now, self.member_id, call, str(error)))

    def _train(self, plan: RoundPlan) -> None:
        known = self.spool.get(plan.round)
        if known is not None and known.plan.base == plan.base:
            self._send(plan.round)
            return
        self._training.add(plan.round)
        life = self.life
        self.world.after(self.pace_seconds * self.world.between(0.5, 1.5), lambda: done(life))

        def done(life: int) -> None:
            if life == self.life:
                self._training.discard(plan.round)
                self.spool[plan.round] = self._trained(plan)
                self._send(plan.round)

    def _trained(self, plan: RoundPlan) -> Spooled:
        small = self.coordinator.plant.small
        layout = small.layout
        delta = delta_of(self.member_id, plan.round, layout.elements)
        fragments = encode(delta, layout, plan.codec)
        changes: dict[str, Any] = {}
        root = fragments_root(list(map(fragment_digest, fragments)))
        lie = self.world.random.choice(LIES) if self.kind == "liar" else ""
        if lie == "root":
            root = fragments_root([fragment_digest(b"something else")])
        elif lie == "bytes":
            fragments = [bytes(len(data)) for data in fragments]
        elif lie == "tokens":
            changes["tokens"] = 2**40
        elif lie == "base":
            changes["base"] = "0" * 64
        elif lie == "key":
            changes["key"] = signing_key("nobody")
        elif lie == "somebody else":
            changes["key"] = signing_key(self.member_id)
        values: dict[str, Any] = {"tokens": MOST_TOKENS, **changes}
        name = "nobody" if lie == "somebody else" else self.member_id
        envelope = declare(plan, name, root=root, fragments=len(fragments), **values)
        if lie and lie != "twice":
            self.history.lies.add(envelope.signature.hex())
        return Spooled(plan, envelope, fragments)

    # Handing in

    def _send(self, number: int) -> None:
        """Open, put what is missing, commit; each may fail, and is tried again."""
        if number in self._sending or number in self.receipts:
            return
        self._sending.add(number)
        _Sending(self, number).open()

    def sent(self, number: int, receipt: Envelope) -> None:
        """Take a receipt."""
        self._sending.discard(number)
        self.receipts.add(number)
        self.history.acknowledged.append(Acknowledged(self.world.now, self.member_id, receipt))

    def not_sent(self, number: int, call: str, error: TapestryError) -> None:
        """Try again later if that can help."""
        life = self.life
        if not isinstance(error, UnavailableError):
            self._sending.discard(number)
            self._refused(call, error)
            return
        self.world.after(self.world.between(0.5, 8.0), lambda: again(life))

        def again(life: int) -> None:
            if life == self.life:
                self._sending.discard(number)
                if number in self.spool:
                    self._send(number)


class _Sending:
    """One try of handing a contribution in."""

    def __init__(self, member: Member, number: int) -> None:
        self._member, self._number = member, number
        self._life = member.life
        self._spooled = member.spool[number]
        self._left = 0

    def _call(self, perform: Callable[[], Any], then: Callable[[Any], None], name: str) -> None:
        member = self._member

        def answered(answer: Any) -> None:
            if self._life == member.life:
                then(answer)

        def failed(error: TapestryError) -> None:
            if self._life == member.life and self._number in member._sending:  # noqa: SLF001
                member.not_sent(self._number, name, error)

        member.network.call(perform, answered, failed)

    def open(self) -> None:
        member, spooled = self._member, self._spooled
        digests = list(map(fragment_digest, spooled.fragments))
        if member.kind == "liar" and spooled.fragments and not any(spooled.fragments[0]):
            honest = encode(
                delta_of(
                    member.member_id, self._number, member.coordinator.plant.small.layout.elements
                ),
                member.coordinator.plant.small.layout,
                spooled.plan.codec,
            )
            digests = list(map(fragment_digest, honest))
        request = transfer_pb2.OpenUploadRequest(
            round=self._number,
            base_digest=bytes.fromhex(spooled.plan.base),
            codec=spooled.plan.codec,
            fragment_digests=b"".join(digests),
        )
        certificate = member.certificate
        self._call(
            lambda: member.coordinator.open_upload(certificate, request), self._opened, "open"
        )

    def _opened(self, answer: transfer_pb2.OpenUploadResponse) -> None:
        if answer.HasField("receipt"):
            self._member.sent(self._number, envelope_value(answer.receipt))
            return
        missing = unpack_missing(answer.missing, len(self._spooled.fragments))
        self._left = len(missing)
        if not missing:
            self._commit()
        certificate = self._member.certificate
        for index in missing:
            data = self._spooled.fragments[index]
            request = PutFragment(self._number, index, data, fragment_digest(data))
            self._call(
                lambda request=request: self._member.coordinator.put(certificate, request),
                self._put,
                "put",
            )

    def _put(self, _answer: object) -> None:
        self._left -= 1
        if self._left == 0:
            self._commit()

    def _commit(self) -> None:
        member = self._member
        request = transfer_pb2.CommitRequest(contribution=envelope_message(self._spooled.envelope))
        certificate = member.certificate
        self._call(
            lambda: member.coordinator.commit(certificate, request), self._committed, "commit"
        )

    def _committed(self, answer: transfer_pb2.CommitResponse) -> None:
        member = self._member
        if self._number in member.receipts:
            return
        member.sent(self._number, envelope_value(answer.receipt))
        if member.kind == "liar":
            self._contradict()

    def _contradict(self) -> None:
        """Hand in another contribution to the same round: the first one stands."""
        member, plan = self._member, self._spooled.plan
        other = declare(
            plan, member.member_id, root=fragments_root([fragment_digest(b"2")]), fragments=1
        )
        member.history.lies.add(other.signature.hex())
        request = transfer_pb2.CommitRequest(contribution=envelope_message(other))
        certificate = member.certificate
        member.network.call(
            lambda: member.coordinator.commit(certificate, request),
            lambda answer: member.history.acknowledged.append(
                Acknowledged(member.world.now, member.member_id, envelope_value(answer.receipt))
            ),
            lambda error: member._refused("commit", error),  # noqa: SLF001
        )
