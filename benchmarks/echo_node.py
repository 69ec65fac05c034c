"""A node that does not train: it answers every plan with its base plus a little noise.

Everything between institutions is the product's own: mutual TLS, the egress ledger, fetching with
verification, the codec, upload, receipt. Only the inner steps are missing, and torch with them.

    python benchmarks/echo_node.py NODE_FOLDER ...

Several folders are several members in one process, each with a connection of its own.
"""

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import Contribution, RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.errors import UnavailableError
from tapestry.identity.envelopes import Envelope
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.deltas import norm, squared_norm
from tapestry.params.fragments import fragments_root
from tapestry.wire.allocation import spare_what_is_there
from tapestry.wire.egress import EgressLedger
from tapestry_node.client import NodeClient, Told
from tapestry_node.home import NodeHome, require_node
from tapestry_node.spool import Spooled, spooling

_AGAIN_SECONDS = 0.5
_NOISE = np.float32(1e-3)


class EchoNode:
    """Answers plans until no further round is planned."""

    def __init__(self, home: NodeHome, noise: Float32Array) -> None:
        """Take up the membership in `home`; `noise` is at least two fragments long."""
        self.home = home
        self.membership = home.identity.load()
        self.key = home.identity.signing_key()
        ledger = EgressLedger(
            home.egress,
            to=self.membership.address,
            clock=time.time,  # noqa: TID251 - the edge that owns the clock
        )
        self.client = NodeClient(self.membership, home.identity, ledger)
        self.noise = noise
        self.answered = 0
        """The last round that was."""

    def run(self) -> None:
        """Answer what is told; connect again when the line breaks, as a node does."""
        while True:
            try:
                if self.listen():
                    return
            except UnavailableError as error:
                print(f"{self.membership.member_id}: {error}", flush=True)
            time.sleep(_AGAIN_SECONDS)

    def listen(self) -> bool:
        """Answer until the stream ends; tell whether no further round is planned."""
        for told in self.client.watch():
            if told.plan is not None:
                plan = RoundPlan.parsed(told.plan.payload, what="plan")
                if plan.round > self.answered:
                    self.answer(plan, told)
                    self.answered = plan.round
            if told.is_finished:
                return True
        return False

    def answer(self, plan: RoundPlan, told: Told) -> None:
        """Fetch the base, echo it with noise, send the difference."""
        began = time.perf_counter()
        base = self.fetch(told.manifest)
        fetched = time.perf_counter()
        folder = self.home.spool(plan.round)
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt whose line broke
        layout = open_vector_file(base / MODEL_FILE).layout
        codec = codec_named(plan.codec)
        squares = []
        with spooling(folder, self.home.spare_spools) as fragments:
            for index in range(layout.fragments):
                start, stop = layout.bounds(index)
                delta = self.noise[index : index + stop - start]
                squares.append(squared_norm(delta))
                fragments.write(codec.encode(delta))
        contribution = Contribution(
            genesis=plan.genesis,
            round=plan.round,
            base=plan.base,
            member_id=self.membership.member_id,
            codec=plan.codec,
            fragments=layout.fragments,
            root=fragments_root(fragments.digests).hex(),
            tokens=plan.inner.tokens,
            steps=plan.inner.steps,
            norm=norm(squares),
        )
        spooled = Spooled.completed(
            folder,
            contribution,
            contribution.signed(self.key),
            fragments=fragments,
            layout=layout,
        )
        spooled_at = time.perf_counter()
        with spooled.becoming_durable():
            arrived = [spooled_at]
            self.client.upload(
                contribution,
                spooled.envelope,
                spooled.digests,
                spooled.read_fragment,
                on_arrived=lambda _done, _of: arrived.append(time.perf_counter()),
            )
        spooled.remove(self.home.spare_spools)
        done = time.perf_counter()
        print(
            f"round {plan.round}: fetched in {fetched - began:.2f} s, "
            f"encoded in {spooled_at - fetched:.2f} s, sent in {arrived[-1] - spooled_at:.2f} s, "
            f"receipt after {done - arrived[-1]:.2f} s",
            flush=True,
        )

    def fetch(self, envelope: Envelope) -> Path:
        """Return the folder of the newest checkpoint, fetched and verified."""
        key = bytes.fromhex(self.membership.coordinator_key)
        manifest = Manifest.opened(envelope, public_key=key, what="manifest")
        target = self.home.checkpoint(manifest.round)
        if not target.is_dir():
            self.home.fetch(self.client.fetcher, manifest, envelope, target=target)
            self.home.prune(contributed=0, newest=manifest.round)
        return target


def main() -> None:
    """Answer for every folder named, until no further round is planned."""
    spare_what_is_there()
    noise = np.random.default_rng(os.getpid()).standard_normal(2**21, np.float32) * _NOISE
    nodes = [EchoNode(require_node(Path(folder)), noise) for folder in sys.argv[1:]]
    with ThreadPoolExecutor(len(nodes)) as threads:
        for ended in [threads.submit(node.run) for node in nodes]:
            ended.result()


if __name__ == "__main__":
    main()
