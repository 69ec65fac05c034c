"""Evidence that a coordinator has shown two histories: a file that speaks for itself.

It holds two heads, both under the coordinator's signature, and a proof that the ledger of the one
does not begin with the ledger of the other. Whoever knows the coordinator's key, which genesis
names, can verify it: no member, no coordinator and no network is needed.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tapestry.errors import UntrustedError
from tapestry.ledger.entries import canonical
from tapestry.ledger.heads import Head, SignedHead, open_head
from tapestry.ledger.merkle import verify_consistency
from tapestry.ledger.notes import MAX_NOTE_BYTES

KIND = "tapestry-ledger-evidence"

_VERSION = 1
_MAX_BYTES = 2 * MAX_NOTE_BYTES + 64 * 1024
_MOST_STEPS = 64
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """Two heads of one coordinator that cannot both be true."""

    first: Head
    """With fewer entries, or as many."""
    second: Head
    root: bytes
    """Of the second ledger when it had as many entries as the first."""

    @property
    def words(self) -> str:
        """What is proved, in a sentence."""
        return (
            f"the coordinator of {self.first.origin} has signed that its first "
            f"{self.first.size:,} entries have the root {self.first.root.hex()[:16]}, and also "
            f"({self.second.size:,} entries) that they have the root {self.root.hex()[:16]}: it "
            "has shown two histories"
        )


def write_evidence(
    first: SignedHead, second: SignedHead, *, root: bytes, path: Sequence[bytes]
) -> bytes:
    """Return the file that proves a fork.

    Args:
        first: The head with fewer entries, or as many.
        second: The other.
        root: Of the second's ledger when it had as many entries as the first.
        path: Proves that `second` follows from that.

    Raises:
        ValueError: The two heads are no fork, or the path proves nothing.
    """
    if not _is_fork(first.head, second.head, root, path):
        raise ValueError("these heads are not proved to be of two histories")
    value = {
        "first": first.body,
        "kind": KIND,
        "path": [one.hex() for one in path],
        "root": root.hex(),
        "second": second.body,
        "version": _VERSION,
    }
    return canonical(value) + b"\n"


def verify_evidence(data: bytes, *, origin: str, public_key: bytes, what: str) -> Fork:
    """Return what a file of evidence proves.

    Args:
        data: The file.
        origin: Name of the federation's ledger (`heads.origin_of`).
        public_key: Raw Ed25519 key of its coordinator, as its genesis names it.
        what: Begins the message of a refusal, such as the file's name.

    Raises:
        UntrustedError: It proves nothing against this coordinator.
    """
    first_body, second_body, root, path = _parsed(data, what=what)
    first, second = (
        open_head(body, origin=origin, public_key=public_key, what=f"{what}: {name}").head
        for name, body in (("first head", first_body), ("second head", second_body))
    )
    if not _is_fork(first, second, root, path):
        raise UntrustedError(
            f"{what}: both heads are the coordinator's, and nothing here proves that they are of "
            "two histories"
        )
    return Fork(first=first, second=second, root=root)


def _is_fork(first: Head, second: Head, root: bytes, path: Sequence[bytes]) -> bool:
    return (
        first.origin == second.origin
        and root != first.root
        and verify_consistency(first.size, root, second.size, second.root, path)
    )


def _parsed(data: bytes, *, what: str) -> tuple[str, str, bytes, list[bytes]]:
    if len(data) > _MAX_BYTES:
        raise UntrustedError(f"{what}: {len(data):,} bytes, evidence has at most {_MAX_BYTES:,}")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{what}: not JSON; expected a file of evidence") from error
    match value:
        case {
            "kind": str(kind),
            "version": int(version),
            "first": str(first),
            "second": str(second),
            "root": str(root),
            "path": list(path),
        } if kind == KIND and version == _VERSION and len(path) <= _MOST_STEPS:
            if all(isinstance(one, str) and _HEX.fullmatch(one) for one in (root, *path)):
                return first, second, bytes.fromhex(root), [bytes.fromhex(one) for one in path]
    raise UntrustedError(f"{what}: not a file of evidence (version {_VERSION})")
