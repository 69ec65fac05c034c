"""What a proof costs: files against SHA-256, a replay against the aggregation.

    python benchmarks/proof.py                        # 100M parameters, 8 contributions in int8
    python benchmarks/proof.py --parameters 10e6 --members 4

A federation over a bare vector is founded in a temporary folder and two rounds are published from
random contributions, by the coordinator's own modules, in one process. Of the second round:

- `files`: the first level of `tapestry checkpoint verify`, against hashlib's SHA-256 over the same
  files, one after the other in one thread. Twice that speed is the limit on two cores, since every
  byte of the model is hashed twice.
- `replay`: the third level alone (parent, contributions, step), against the same process's
  aggregation of the round, which also writes vector and state.
- `sample`: eight fragments of it.

The ledger's proofs are measured by `ledger_proof.py`.

The median of the runs counts; what is read lies in the page cache.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from running import median, save

from tapestry.checkpoints.archive import Archive
from tapestry.checkpoints.folder import read_lineage
from tapestry.checkpoints.manifest import Manifest, verify_lineage
from tapestry.checkpoints.policy import save_policy
from tapestry.checkpoints.record import verify_round
from tapestry.checkpoints.replay import replay, sampled
from tapestry.checkpoints.starting import Written
from tapestry.checkpoints.statements import Contribution, Receipt, RoundPlan, payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.identity.keys import public_bytes
from tapestry.params.codecs import codec_named
from tapestry.params.fragments import fragment_digest
from tapestry_coordinator.aggregating import Aggregator
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.publisher import Publisher
from tapestry_coordinator.receiving import StoredContribution
from tapestry_coordinator.uploads import FragmentStore

HERE = Path(__file__).parent
TOKENS = 1000


class Federation:
    """A coordinator's folder, and rounds of random contributions."""

    def __init__(self, folder: Path, parameters: int, members: int, codec: str) -> None:
        """Found it."""
        command = [sys.executable, str(HERE / "found_vector.py"), str(folder), str(parameters)]
        subprocess.run(command, check=True)
        self.home = CoordinatorHome(folder)
        policy = self.home.load_policy()
        aggregation = policy.aggregation.model_copy(update={"codec": codec})
        self.policy = policy.model_copy(update={"aggregation": aggregation})
        save_policy(self.home.policy, self.policy)
        self.layout = open_vector_file(self.home.checkpoint(0) / MODEL_FILE).layout
        self.store = FragmentStore(self.home.contributions, self.layout)
        self.key = self.home.load_signing_key()
        self.members = [f"m{number:02d}" for number in range(members)]

    def closed(self, number: int) -> ClosedRound:
        """Receive everybody's contribution to a round."""
        lineage = read_lineage(self.home.checkpoint(number - 1))
        verified = verify_lineage(lineage)
        plan = RoundPlan(
            genesis=verified.genesis_digest,
            round=number,
            attempt=1,
            base=verified.newest_digest,
            layout=self.layout.digest,
            policy=self.policy.digest,
            cohort=tuple(self.members),
            quorum=1,
            grace_seconds=1.0,
            deadline=1e9,
            objective="causal-lm",
            inner=self.home.load_settings().inner.settings(),
            codec=self.policy.aggregation.codec,
            max_element=10.0,
            seed=1,
        )
        return ClosedRound(
            plan=plan,
            plan_envelope=plan.signed(self.key),
            policy=self.policy,
            closed_at=float(number),
            contributions=[self._sent(plan, name) for name in self.members],
            declined={},
            lineage=lineage,
            evaluations=[],
        )

    def _sent(self, plan: RoundPlan, member: str) -> StoredContribution:
        codec = codec_named(plan.codec)
        rng = np.random.default_rng([plan.round, self.members.index(member)])
        encoded = []
        for index in range(self.layout.fragments):
            start, stop = self.layout.bounds(index)
            encoded.append(codec.encode(rng.standard_normal(stop - start, np.float32) / 100))
        digests = tuple(map(fragment_digest, encoded))
        self.store.open(
            plan.round, member, codec=codec.name, digests=digests, max_element=plan.max_element
        )
        for index, data in enumerate(encoded):
            self.store.put(plan.round, member, index=index, data=data)
        root, norm = self.store.finish(plan.round, member)
        key = Ed25519PrivateKey.from_private_bytes(member.encode().ljust(32, b"."))
        envelope = Contribution(
            genesis=plan.genesis,
            round=plan.round,
            base=plan.base,
            member_id=member,
            codec=codec.name,
            fragments=len(encoded),
            root=root.hex(),
            tokens=TOKENS,
            steps=1,
            norm=norm,
        ).signed(key)
        receipt = Receipt(
            genesis=plan.genesis,
            round=plan.round,
            member_id=member,
            contribution=payload_digest(envelope),
            root=root.hex(),
            accepted_at=1.0,
        )
        return StoredContribution(
            round=plan.round,
            member_id=member,
            digest=payload_digest(envelope),
            envelope=envelope,
            receipt=receipt.signed(self.key),
            norm=norm,
            signing_key=public_bytes(key),
        )

    def aggregate(self, closed: ClosedRound, folder: Path) -> None:
        """Aggregate a round into a folder that nobody needs."""
        folder.mkdir()
        # As after a restart: what is read is compared with the digests, as a replay does it.
        store = FragmentStore(self.home.contributions, self.layout)
        Aggregator(home=self.home, store=store, policy=self.policy, written=Written()).aggregate(
            closed.plan,
            closed.contributions,
            plan_digest=closed.plan_digest,
            base=Manifest.parsed(closed.lineage[-1].payload, what="manifest"),
            folder=folder,
            weightless={},
        )
        shutil.rmtree(folder)


def timed(run: Callable[[], Any], runs: int) -> float:
    """Return the median of the seconds that `run` takes."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return median(taken)


def hashed(folder: Path) -> None:
    """Hash every file of a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--runs", type=int, default=3, help="of each, in turns; the median counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tapestry-proof-") as work:
        federation = Federation(Path(work) / "fed", int(args.parameters), args.members, args.codec)
        publisher = Publisher(home=federation.home, key=federation.key, store=federation.store)
        for number in (1, 2):
            closed = federation.closed(number)
            publisher.publish(closed)
        folder = federation.home.checkpoint(2)
        verified = verify_checkpoint(folder)
        round_ = verify_round(folder, verified.lineage)
        if round_ is None:
            raise SystemExit("round 2 has no record")
        archive = Archive(federation.home.folder)
        fragments = sampled(
            federation.layout.fragments, 8, manifest=verified.manifest_digest, head="0" * 64
        )
        taken: dict[str, list[float]] = {
            name: [] for name in ("hash", "files", "record", "aggregate", "replay", "sample")
        }
        for _run in range(args.runs):
            for name, work_of in {
                "hash": lambda: hashed(folder),
                "files": lambda: verify_checkpoint(folder),
                "record": lambda: verify_round(folder, verified.lineage),
                "aggregate": lambda: federation.aggregate(closed, Path(work) / "again"),
                "replay": lambda: replay(verified, round_, archive),
                "sample": lambda: replay(verified, round_, archive, sample=fragments),
            }.items():
                taken[name].append(timed(work_of, 1))
        seconds = {name: median(values) for name, values in taken.items()}
    result = {
        "parameters": int(args.parameters),
        "members": args.members,
        "codec": args.codec,
        "seconds": seconds,
        "all_seconds": taken,
        "files_of_sha256": seconds["hash"] / seconds["files"],
        "replay_of_aggregation": seconds["replay"] / seconds["aggregate"],
    }
    for name, value in seconds.items():
        print(f"{name:<10}{value:>9.3f} s   {min(taken[name]):.3f}..{max(taken[name]):.3f}")
    print(f"files: {result['files_of_sha256']:.2f} of SHA-256's speed (0.80 asked)")
    print(f"replay: {result['replay_of_aggregation']:.2f} times the aggregation (2 asked)")
    save("proof", result)


if __name__ == "__main__":
    main()
