"""Members that do not train: what they contribute follows from their name and the round."""

import ssl
import threading
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tapestry.checkpoints.statements import Contribution, Receipt, RoundPlan
from tapestry.errors import RejectedError, UnavailableError
from tapestry.identity.certificates import (
    certificate_request,
    create_tls_key,
    issue_member_certificate,
    read_member_certificate,
)
from tapestry.identity.envelopes import Envelope
from tapestry.identity.keys import public_bytes
from tapestry.identity.membership import Membership
from tapestry.params.codecs import Float32Array
from tapestry.params.deltas import norm, squared_norm
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout
from tapestry.wire.egress import EgressLedger
from tapestry_coordinator.database import database_url
from tapestry_coordinator.registry import Registry
from tapestry_node.client import NodeClient
from tapestry_node.home import NodeHome
from tests.coordinator.small import Small, declare, encode, signing_key

_AGAIN_SECONDS = 0.05
_now = time.time  # noqa: TID251 - the two processes' own clock


def enrolled(small: Small, folder: Path, member_id: str) -> NodeHome:
    """Make a node's folder and its membership, without a coordinator that runs."""
    node, home, now = NodeHome(folder / member_id), small.home, _now()
    authority, genesis = home.load_authority(), home.load_genesis()
    tls_key, key = create_tls_key(), signing_key(member_id)
    certificate = issue_member_certificate(
        authority,
        certificate_request(tls_key, member_id=member_id),
        federation=genesis.origin.federation,
        member_id=member_id,
        now=datetime.fromtimestamp(now, UTC),
    )
    with closing(Registry(database_url(home))) as registry:
        token = member_id.encode().ljust(32)
        registry.add_invitation(token, member_id=member_id, now=now, expires_at=now + 60)
        registry.enrol(
            token,
            member_id=member_id,
            signing_key=public_bytes(key),
            certificate_serial=read_member_certificate(
                certificate, federation=genesis.origin.federation
            ).serial,
            now=now,
        )
    node.folder.mkdir(parents=True)
    node.identity.create(
        Membership(
            federation=genesis.origin.federation,
            member_id=member_id,
            address=home.load_settings().network.address,
            coordinator_key=genesis.coordinator_key.hex(),
            genesis=genesis.genesis_digest,
        ),
        root_pem=ssl.DER_cert_to_PEM_cert(
            ssl.PEM_cert_to_DER_cert(authority.certificate_pem.decode())
        ).encode(),
        certificate_pem=certificate,
        tls_key=tls_key,
        signing_key=key,
    )
    return node


def delta_of(member_id: str, round_number: int, elements: int) -> Float32Array:
    """What a member contributes to a round, always the same."""
    rng = np.random.default_rng([*member_id.encode(), round_number])
    return rng.standard_normal(elements, np.float32) * np.float32(0.01)


class Echo:
    """A member in a thread of its own, through every death of its coordinator."""

    def __init__(self, node: NodeHome, layout: ParameterLayout) -> None:
        self.node, self.layout = node, layout
        self.membership = node.identity.load()
        self.trained: Counter[int] = Counter()
        """How many times it had to train, by round."""
        self.receipts: dict[int, Receipt] = {}
        self.refusals: list[str] = []
        self.reached_at = 0.0
        """When a call was answered last; monotonic seconds."""
        self._spool: dict[int, tuple[Contribution, Envelope, list[bytes]]] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.membership.member_id)

    def __enter__(self) -> "Echo":
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def is_done(self) -> bool:
        """Whether it was told that no further round is planned."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        with closing(
            EgressLedger(self.node.egress, to=self.membership.address, clock=_now)
        ) as ledger:
            while not self._ending.is_set():
                client = NodeClient(self.membership, self.node.identity, ledger)
                try:
                    if self._listen(client):
                        return
                except UnavailableError:
                    self._ending.wait(_AGAIN_SECONDS)
                except RejectedError as error:  # closed in the meantime: the next plan tells
                    self.refusals.append(str(error))
                finally:
                    client.close()

    def _listen(self, client: NodeClient) -> bool:
        """Answer plans until the line breaks; tell whether no further one will come."""
        for told in client.watch():
            self.reached_at = time.monotonic()
            for number in {*self._spool} - {*self.receipts}:
                self._send(client, number)
            if told.is_finished or self._ending.is_set():
                return True
            if told.plan is not None:
                plan = RoundPlan.parsed(told.plan.payload, what="plan")
                if plan.round not in self._spool:
                    self.trained[plan.round] += 1
                    self._spool[plan.round] = self._train(plan)
                    self._send(client, plan.round)
        return False

    def _send(self, client: NodeClient, number: int) -> None:
        """Hand in what was trained, or ask again for the receipt that was not heard."""
        contribution, envelope, fragments = self._spool[number]
        digests = list(map(fragment_digest, fragments))
        receipt = client.upload(contribution, envelope, digests, fragments.__getitem__)
        self.receipts[number] = Receipt.opened(
            receipt, public_key=bytes.fromhex(self.membership.coordinator_key), what="receipt"
        )

    def _train(self, plan: RoundPlan) -> tuple[Contribution, Envelope, list[bytes]]:
        delta = delta_of(self.membership.member_id, plan.round, self.layout.elements)
        fragments = encode(delta, self.layout, plan.codec)
        envelope = declare(
            plan,
            self.membership.member_id,
            root=fragments_root(list(map(fragment_digest, fragments))),
            fragments=len(fragments),
            norm=norm([squared_norm(delta)]),
        )
        return Contribution.parsed(envelope.payload, what="contribution"), envelope, fragments
