"""Handing a contribution in, step by step, over a network that loses and repeats calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tapestry.checkpoints.statements import RoundPlan
from tapestry.errors import TapestryError
from tapestry.identity.envelopes import Envelope
from tapestry.params.codecs import Float32Array
from tapestry.params.fragments import fragment_digest, fragments_root, unpack_missing
from tapestry.v1 import transfer_pb2
from tapestry.wire.bulk import PutFragment
from tapestry.wire.messages import envelope_message, envelope_value
from tests.coordinator.small import declare, encode
from tests.simulation.coordinator import Coordinator
from tests.simulation.history import Acknowledged, History
from tests.simulation.world import Network, World


@dataclass
class Spooled:
    """What a member trained, on its disk."""

    plan: RoundPlan
    envelope: Envelope
    fragments: list[bytes]


class Sender(Protocol):
    """A member, as far as it hands in."""

    coordinator: Coordinator
    network: Network
    world: World
    history: History
    member_id: str
    kind: str
    life: int
    certificate: bytes
    spool: dict[int, Spooled]
    receipts: set[int]
    sending: set[int]

    def sent(self, number: int, receipt: Envelope) -> None:
        """Take a receipt."""

    def not_sent(self, number: int, call: str, error: TapestryError) -> None:
        """Try again later if that can help."""

    def refused(self, call: str, error: TapestryError) -> None:
        """Note what was refused."""


def delta_of(member_id: str, round_number: int, elements: int) -> Float32Array:
    """What an honest member contributes, in every history."""
    rng = np.random.default_rng([*member_id.encode(), round_number])
    return rng.standard_normal(elements, np.float32) * np.float32(0.1)


class Sending:
    """One try of handing a contribution in."""

    def __init__(self, member: Sender, number: int) -> None:
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
            if self._life == member.life and self._number in member.sending:
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
            lambda error: member.refused("commit", error),
        )
