"""How long a proof in a ledger takes, beside the hashing that a ledger of that length needs.

`python benchmarks/ledger_proof.py [ENTRIES]`
"""

import hashlib
import statistics
import sys
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.ledger.entries import CHECKPOINT, Entry
from tapestry.ledger.heads import Head, cosign_head, origin_of, sign_head
from tapestry.ledger.merkle import Tree, verify_consistency
from tapestry.ledger.proof import verify_ledger_proof, write_proof

_TURNS = 20
_WITNESSES = 20


def milliseconds(do: Callable[[], object], turns: int = _TURNS) -> float:
    """Return the median time of several turns."""
    times = []
    for _turn in range(turns):
        began = time.perf_counter()
        do()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main(size: int) -> None:
    """Measure and print."""
    digests = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(size)]
    leaves = [
        Entry(kind=CHECKPOINT, round=number, payload_digest=digest).leaf()
        for number, digest in enumerate(digests)
    ]
    tree = Tree()

    def build() -> None:
        tree.truncate(0)
        for leaf in leaves:
            tree.append(leaf)

    def hashing() -> None:
        for leaf in leaves:
            hashlib.sha256(leaf).digest()
            hashlib.sha256(leaf[:65]).digest()

    origin, key = origin_of("europe", digests[0]), Ed25519PrivateKey.generate()
    members = {f"m{number}": Ed25519PrivateKey.generate() for number in range(_WITNESSES)}
    witnesses = {name: one.public_key().public_bytes_raw() for name, one in members.items()}
    building, hashed = milliseconds(build, 5), milliseconds(hashing, 5)
    head = sign_head(Head(origin, size, tree.root()), key)
    head = head.with_cosignatures(
        [cosign_head(head.head, member_id=m, key=one, now=1e9) for m, one in members.items()]
    )
    index = size // 3
    proof = write_proof(tree, leaf=leaves[index], index=index, head=head)

    def verify(quorum: int) -> None:
        verify_ledger_proof(
            proof,
            manifest_digest=digests[index],
            round_number=index,
            coordinator_key=key.public_key().public_bytes_raw(),
            origin=origin,
            witnesses=dict(list(witnesses.items())[:quorum]),
            quorum=quorum,
        )

    old = size // 2
    path = tree.consistency(old)
    rows = {
        f"make the tree of {size:,} entries": building,
        "the same number of SHA-256, no tree": hashed,
        "make a proof": milliseconds(
            lambda: write_proof(tree, leaf=leaves[index], index=index, head=head)
        ),
        "verify it, coordinator's signature alone": milliseconds(lambda: verify(0)),
        f"verify it with {_WITNESSES} cosignatures": milliseconds(lambda: verify(_WITNESSES)),
        "make and verify a consistency proof": milliseconds(
            lambda: verify_consistency(
                old, tree.root(old), size, tree.root(), tree.consistency(old)
            )
        ),
    }
    for words, taken in rows.items():
        print(f"{words:<46} {taken:9.3f} ms")
    print(f"{'tree / hashing':<46} {building / hashed:9.2f}")
    print(
        f"proof: {len(proof):,} bytes, {len(tree.inclusion(index))} steps; consistency {len(path)}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
