"""`tapestry/ledger.json` in a checkpoint's folder: proof that its manifest is in the ledger.

```
{"entry": {...}, "head": "the note", "index": 41, "path": ["5f08…", ...], "version": 1}
```

The file speaks for itself: the head is signed, and everything else leads up to it. It is renewed
when members have cosigned the head, and is then as good as before and worth more.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tapestry.errors import UntrustedError
from tapestry.ledger.entries import CHECKPOINT, canonical, read_entry
from tapestry.ledger.heads import SignedHead, open_head
from tapestry.ledger.merkle import Tree, verify_inclusion
from tapestry.ledger.notes import MAX_NOTE_BYTES

PROOF_FILE = "tapestry/ledger.json"
"""Name in a checkpoint's folder."""

_VERSION = 1
MAX_PROOF_BYTES = 2 * MAX_NOTE_BYTES + 64 * 1024
_MOST_STEPS = 64
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Where a checkpoint stands in the ledger."""

    index: int
    """Of its entry, from 0."""
    head: SignedHead
    """A head above it, with whatever cosignatures it has."""
    cosigned: Mapping[str, int]
    """Members that count and have cosigned, and when (Unix seconds)."""


def write_proof(tree: Tree, *, leaf: bytes, index: int, head: SignedHead) -> bytes:
    """Return the file that proves an entry.

    Args:
        tree: With at least as many leaves as the head.
        leaf: The entry's bytes.
        index: Its place, from 0.
        head: Above it.
    """
    value = {
        "entry": json.loads(leaf),
        "head": head.body,
        "index": index,
        "path": [one.hex() for one in tree.inclusion(index, head.head.size)],
        "version": _VERSION,
    }
    return canonical(value) + b"\n"


def verify_ledger_proof(
    data: bytes,
    *,
    manifest_digest: str,
    round_number: int,
    coordinator_key: bytes,
    origin: str,
    witnesses: Mapping[str, bytes],
    quorum: int,
    what: str = PROOF_FILE,
) -> Recorded:
    """Return where a checkpoint stands in its federation's ledger.

    Args:
        data: The file `tapestry/ledger.json`.
        manifest_digest: Hex SHA-256 of the manifest's payload (`statements.payload_digest`).
        round_number: Of the checkpoint.
        coordinator_key: Raw Ed25519 key that genesis names.
        origin: `heads.origin_of(federation, genesis_digest)`.
        witnesses: Raw Ed25519 signing keys by member id: whose cosignatures count.
        quorum: How many of them must have cosigned; 0: the coordinator's word is enough, and
            `Recorded.cosigned` tells who else there is.
        what: Begins the message of a refusal.

    Raises:
        UntrustedError: Damaged, of another checkpoint or federation, not in the ledger, or
            cosigned by too few.
    """
    index, leaf, path, body = _parsed(data, what=what)
    entry = read_entry(leaf, what=f"{what}: entry")
    if entry.kind != CHECKPOINT or entry.payload_digest != manifest_digest:
        raise UntrustedError(
            f"{what}: proves {entry.kind} {entry.payload_digest[:16]}, not this checkpoint's "
            f"manifest {manifest_digest[:16]}"
        )
    if entry.round != round_number:
        raise UntrustedError(
            f"{what}: the ledger has this manifest under round {entry.round}, it is of round "
            f"{round_number}"
        )
    head = open_head(body, origin=origin, public_key=coordinator_key, what=f"{what}: head")
    if not verify_inclusion(leaf, index, head.head.size, path, head.head.root):
        raise UntrustedError(
            f"{what}: the path does not lead from entry {index} to the head's root: the manifest "
            "is not proved to be in the ledger"
        )
    cosigned = head.cosigned_by(witnesses, what=f"{what}: head")
    if len(cosigned) < quorum:
        names = f" ({', '.join(cosigned)})" if cosigned else ""
        raise UntrustedError(
            f"{what}: {len(cosigned)} of the members have cosigned the head{names}, {quorum} are "
            "asked for: fetch it again later, or ask the coordinator's operator"
        )
    return Recorded(index=index, head=head, cosigned=cosigned)


def _parsed(data: bytes, *, what: str) -> tuple[int, bytes, list[bytes], str]:
    if len(data) > MAX_PROOF_BYTES:
        raise UntrustedError(
            f"{what}: {len(data):,} bytes, a proof has at most {MAX_PROOF_BYTES:,}"
        )
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{what}: not JSON; fetch the checkpoint again") from error
    match value:
        case {
            "entry": dict(entry),
            "head": str(head),
            "index": int(index),
            "path": list(path),
            "version": int(version),
        } if version == _VERSION and len(path) <= _MOST_STEPS:
            if all(isinstance(one, str) and _HEX.fullmatch(one) for one in path):
                steps = [bytes.fromhex(one) for one in path]
                return index, _leaf(entry, what=what), steps, head
    raise UntrustedError(f"{what}: not a proof (version {_VERSION}); fetch the checkpoint again")


def _leaf(entry: Mapping[str, object], *, what: str) -> bytes:
    try:
        return canonical(entry)
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{what}: entry: {error}") from error
