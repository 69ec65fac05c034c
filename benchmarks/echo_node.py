"""A node that does not train: it answers every plan with its base plus a little noise.

Everything between institutions is the product's own: mutual TLS, the egress ledger, fetching with
verification, the codec, upload, receipt. Only the inner steps are missing, and torch with them.

    python benchmarks/echo_node.py NODE_FOLDER
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from tapestry.checkpoints.folder import building
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import Contribution, RoundPlan, payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.identity.envelopes import Envelope
from tapestry.params.codecs import codec_named
from tapestry.params.deltas import norm, squared_norm
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.wire.egress import EgressLedger
from tapestry_node.client import NodeClient, Told
from tapestry_node.home import NodeHome, require_node

_NOISE = np.float32(1e-3)


class EchoNode:
    """Answers plans until no further round is planned."""

    def __init__(self, home: NodeHome) -> None:
        """Take up the membership in `home`."""
        self.home = home
        self.membership = home.identity.load()
        self.key = home.identity.signing_key()
        ledger = EgressLedger(
            home.egress,
            to=self.membership.address,
            clock=time.time,  # noqa: TID251 - the edge that owns the clock
        )
        self.client = NodeClient(self.membership, home.identity, ledger)
        rng = np.random.default_rng(os.getpid())
        self.noise = rng.standard_normal(2**20, np.float32) * _NOISE

    def run(self) -> None:
        """Answer what is told."""
        answered = 0
        for told in self.client.watch():
            if told.plan is not None:
                plan = RoundPlan.parsed(told.plan.payload, what="plan")
                if plan.round > answered:
                    self.answer(plan, told)
                    answered = plan.round
            if told.is_finished:
                return

    def answer(self, plan: RoundPlan, told: Told) -> None:
        """Fetch the base, echo it with noise, send the difference."""
        base = self.fetch(told.manifest)
        spool = self.home.spool(plan.round)
        spool.mkdir(parents=True, exist_ok=True)
        path = spool / "fragments.bin"
        opened = open_vector_file(base / MODEL_FILE)
        codec = codec_named(plan.codec)
        digests, squares, sizes = [], [], []
        with path.open("wb") as file:
            for index in range(opened.layout.fragments):
                start, stop = opened.layout.bounds(index)
                delta = np.roll(self.noise, index)[: stop - start]
                data = codec.encode(np.ascontiguousarray(delta))
                digests.append(fragment_digest(data))
                squares.append(squared_norm(delta))
                sizes.append(len(data))
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        contribution = Contribution(
            genesis=plan.genesis,
            round=plan.round,
            base=plan.base,
            member_id=self.membership.member_id,
            codec=plan.codec,
            fragments=len(digests),
            root=fragments_root(digests).hex(),
            tokens=plan.inner.tokens,
            steps=plan.inner.steps,
            norm=norm(squares),
        )
        with path.open("rb", buffering=0) as file:
            self.client.upload(
                contribution,
                contribution.signed(self.key),
                digests,
                lambda index: os.pread(file.fileno(), sizes[index], index * sizes[0]),
            )
        path.unlink()

    def fetch(self, envelope: Envelope) -> Path:
        """Return the folder of the newest checkpoint, fetched and verified."""
        key = bytes.fromhex(self.membership.coordinator_key)
        manifest = Manifest.opened(envelope, public_key=key, what="manifest")
        target = self.home.checkpoint(manifest.round)
        if not target.is_dir():
            known = sorted(self.home.checkpoints.glob("round-*"), reverse=True)[:1]
            with building(target) as folder:
                self.client.fetcher.fetch_files(
                    manifest.files, folder, parts=self.home.checkpoints / ".parts", known=known
                )
            self.home.prune(contributed=0, newest=manifest.round)
        (self.home.folder / "echo.json").write_text(
            json.dumps({"round": manifest.round, "manifest": payload_digest(envelope)})
        )
        return target


if __name__ == "__main__":
    EchoNode(require_node(Path(sys.argv[1]))).run()
