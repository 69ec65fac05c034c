"""Simulated institutions: slow, forgetful, silent, unwilling, and lying ones among the honest."""

from functools import lru_cache
from hashlib import sha256
from typing import Any

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import Receipt, RoundPlan, payload_digest
from tapestry.errors import TapestryError, UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.v1 import rounds_pb2
from tapestry_coordinator.announcing import Announcement
from tests.coordinator.small import STEPS, declare, encode, signing_key
from tests.simulation.calls import Stream
from tests.simulation.coordinator import Coordinator
from tests.simulation.history import Acknowledged, Refused, Told
from tests.simulation.plants import enrol
from tests.simulation.sending import Sending, Spooled, delta_of
from tests.simulation.world import Network

KINDS = ("honest", "forgetful", "silent", "unwilling", "liar")
LIES = ("root", "bytes", "tokens", "base", "key", "somebody else", "twice")


_HARMED = 60
"""Of 256 checkpoints, about, a member finds so many worse than the one before."""


@lru_cache(1024)
def plan_in(payload: bytes) -> RoundPlan:
    """Read a plan that the coordinator has signed."""
    return RoundPlan.parsed(payload, what="plan")


@lru_cache(1024)
def number_of(payload: bytes) -> int:
    """Return the round of a manifest."""
    return Manifest.parsed(payload, what="manifest").round


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
        measures: bool = False,
    ) -> None:
        self.coordinator, self.network, self.member_id = coordinator, network, member_id
        self.world, self.history = coordinator.world, coordinator.history
        self.kind, self.pace_seconds = kind, pace_seconds
        self.generation = 0
        self.measures = measures
        """Whether it says how good a checkpoint is for its text."""
        self.certificate = enrol(coordinator.plant, member_id, 0, now=self.world.calendar())
        self.stream: Stream | None = None
        self.spool: dict[int, Spooled] = {}
        self.receipts: set[int] = set()
        self.life = 0
        """Counts its restarts: what a past life had begun has no effect."""
        self.sending: set[int] = set()
        self._lies: dict[int, str] = {}
        self._training: RoundPlan | None = None
        self._newest: Announcement | None = None
        self._contributed = 0
        """The newest round whose plan it has answered with a contribution."""
        self._answered = 0
        """The newest round that has used one."""
        self._measured: set[str] = set()
        self._said: set[str] = set()
        """What it has measured, and what of it the coordinator has taken."""
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
        self._training = None
        self.sending.clear()
        self._measured.clear()
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
        """Take up a new membership after a revocation, as soon as the coordinator is there."""
        try:
            self.coordinator.do(lambda process: process.desk.note_who_left())
        except TapestryError:
            self.world.after(5.0, self.come_back)
            return
        self.generation += 1
        self.certificate = enrol(
            self.coordinator.plant, self.member_id, self.generation, now=self.world.calendar()
        )
        self.life += 1
        self._training = None
        self.sending.clear()
        self.connect()

    # What it hears and answers

    def hear(self, stream: int, told: Announcement) -> None:
        """Take note of the coordinator's state, and answer a plan."""
        self.history.told.append(
            Told(self.world.now, self.member_id, stream, told.manifest, told.plan, told.candidate)
        )
        self._newest = told
        newest = number_of(told.manifest.payload)
        for number in sorted(set(self.spool) - self.receipts):
            if self.kind != "liar" and self.spool[number].plan.max_staleness + number > newest:
                self._send(number)
        if self.measures:
            self._measure_newest()
        self._answer()

    def _answer(self) -> None:
        """Answer the newest plan, unless this node is at one that is still of use."""
        if self._newest is None or self._newest.plan is None:
            return
        plan = plan_in(self._newest.plan.payload)
        if self.kind == "unwilling":
            self._decline(plan)
        elif self.kind != "silent" and not self._has_answered(plan):
            busy = self._training
            staleness = 0 if busy is None else plan.round - busy.round
            is_other = busy is None or staleness > busy.max_staleness
            if is_other or (staleness == 0 and busy is not None and busy.base != plan.base):
                self._train(plan)

    def _has_answered(self, plan: RoundPlan) -> bool:
        """As the daemon: a late contribution answers the round that uses it, in lockstep."""
        answered = 0 if plan.is_asynchronous else self._answered
        return plan.round <= max(answered, self._contributed)

    def _measure_newest(self) -> None:
        """Measure the newest checkpoint, and after that the candidate that is to follow it."""
        told = self._newest
        if told is None:
            return
        base = payload_digest(told.manifest)
        if base not in self._said:
            self._measure(base, number_of(told.manifest.payload))
        elif told.candidate is not None:
            self._measure(payload_digest(told.candidate), number_of(told.candidate.payload))

    def _measure(self, digest: str, number: int) -> None:
        """Say how good a checkpoint is for this member's text: the same in all runs."""
        if digest in self._measured:
            return
        self._measured.add(digest)
        is_worse = sha256(f"{self.member_id} {number}".encode()).digest()[0] < _HARMED
        request = rounds_pb2.SubmitEvaluationRequest(
            manifest_digest=bytes.fromhex(digest),
            bits_per_byte=2.0 + number * 0.01 + (0.5 if is_worse and number else 0.0),
            held_out_bytes=1000,
            language="fra",
        )
        life = self.life

        def answered(_answer: object) -> None:
            self._said.add(digest)
            self._measure_newest()

        def failed(error: TapestryError) -> None:
            self.refused("evaluate", error)
            if life == self.life and isinstance(error, UnavailableError):
                self._measured.discard(digest)
                self.world.after(self.world.between(1.0, 8.0), self._measure_newest)

        def submit() -> None:
            certificate = self.certificate
            self.network.call(
                lambda: self.coordinator.evaluate(certificate, request), answered, failed
            )

        self.world.after(self.world.between(0.5, 10.0), submit)

    def _decline(self, plan: RoundPlan) -> None:
        request = rounds_pb2.DeclineRequest(round=plan.round, reason="policy forbids it")
        self.network.call(
            lambda: self.coordinator.decline(self.certificate, request),
            lambda _answer: None,
            lambda error: self.refused("decline", error),
        )

    def refused(self, call: str, error: TapestryError) -> None:
        self.history.refused.append(Refused(self.world.now, self.member_id, call, str(error)))

    def _train(self, plan: RoundPlan) -> None:
        known = self.spool.get(plan.round)
        if known is not None and known.plan.base == plan.base:
            self._send(plan.round)
            return
        self._training = plan
        life = self.life
        steps = plan.of(self.member_id).inner.steps
        seconds = self.pace_seconds * steps / STEPS * self.world.between(0.5, 1.5)
        self.world.after(seconds, lambda: done(life))

        def done(life: int) -> None:
            if life == self.life and self._training is plan:
                self._training = None
                self.spool[plan.round] = self._trained(plan, seconds)
                self._send(plan.round)
                if plan.is_asynchronous:
                    self._answer()

    def _trained(self, plan: RoundPlan, seconds: float) -> Spooled:
        small = self.coordinator.plant.small
        layout = small.layout
        delta = delta_of(self.member_id, plan.round, layout.elements)
        fragments = encode(delta, layout, plan.codec)
        changes: dict[str, Any] = {}
        root = fragments_root(list(map(fragment_digest, fragments)))
        lie = ""
        if self.kind == "liar":  # one a round: what it sent truthfully before would be there
            lie = self._lies.setdefault(plan.round, self.world.random.choice(LIES))
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
        inner = plan.of(self.member_id).inner
        values: dict[str, Any] = {
            "tokens": inner.tokens,
            "steps": inner.steps,
            "metrics": {"seconds": seconds},
            **changes,
        }
        name = "nobody" if lie == "somebody else" else self.member_id
        envelope = declare(plan, name, root=root, fragments=len(fragments), **values)
        if lie and lie != "twice":
            self.history.lies.add(envelope.signature.hex())
        return Spooled(plan, envelope, fragments)

    # Handing in

    def _send(self, number: int) -> None:
        """Open, put what is missing, commit; each may fail, and is tried again."""
        if number in self.sending or number in self.receipts:
            return
        self.sending.add(number)
        Sending(self, number).open()

    def sent(self, number: int, receipt: Envelope) -> None:
        """Take a receipt."""
        self.sending.discard(number)
        self.receipts.add(number)
        used = Receipt.parsed(receipt.payload, what="receipt").used_round
        self._contributed = max(number, self._contributed)
        self._answered = max(used, self._answered)
        self.history.acknowledged.append(Acknowledged(self.world.now, self.member_id, receipt))
        self._answer()

    def not_sent(self, number: int, call: str, error: TapestryError) -> None:
        """Try again later if that can help."""
        life = self.life
        if not isinstance(error, UnavailableError):
            self.sending.discard(number)
            self.refused(call, error)
            return
        self.world.after(self.world.between(0.5, 8.0), lambda: again(life))

        def again(life: int) -> None:
            if life == self.life:
                self.sending.discard(number)
                if number in self.spool:
                    self._send(number)
