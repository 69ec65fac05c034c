"""Heads of a ledger (C2SP tlog-checkpoint): whose it is, how long, and the root over all of it.

```
tapestry/europe/5f0c…      origin: the federation and 16 digits of its genesis
42                         entries
CsUYapGG…=                 root, base64

— tapestry/europe/5f0c… …          the coordinator
— tapestry/europe/5f0c…/fr-bnf …   a member that has seen the ledger grow, a witness
```
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.errors import UntrustedError
from tapestry.ledger.merkle import DIGEST_BYTES
from tapestry.ledger.notes import (
    Note,
    NoteSignature,
    cosign_note,
    cosigned_at,
    is_name,
    read_note,
    require_signature,
    sign_note,
)

MAX_ENTRIES = 2**53
_GENESIS_DIGITS = 16
_MAX_EXTENSIONS = 16


def origin_of(federation: str, genesis_digest: str) -> str:
    """Return the name of a federation's ledger, under which its coordinator signs heads."""
    origin = f"tapestry/{federation}/{genesis_digest[:_GENESIS_DIGITS]}"
    if not is_name(origin):
        raise ValueError(f"{federation!r} is not the name of a federation")
    return origin


def witness_name(origin: str, member_id: str) -> str:
    """Return the name under which a member cosigns heads."""
    return f"{origin}/{member_id}"


@dataclass(frozen=True, slots=True)
class Head:
    """What a head says."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    """Lines of no meaning here; signed all the same."""

    @property
    def text(self) -> str:
        """The lines that are signed."""
        root = base64.b64encode(self.root).decode()
        return "".join(f"{line}\n" for line in (self.origin, self.size, root, *self.extensions))


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head whose coordinator's signature was verified, with the note that it came in."""

    head: Head
    note: Note

    @property
    def body(self) -> str:
        """The note as it travels."""
        return self.note.body

    def cosigned_by(self, witnesses: Mapping[str, bytes], *, what: str = "head") -> dict[str, int]:
        """Return which members have cosigned it, and when (Unix seconds).

        One key counts once, under whatever names it signs.

        Args:
            witnesses: Raw Ed25519 keys by member id: whose cosignatures count.
            what: Begins the message of a refusal.

        Raises:
            UntrustedError: A line of one of them does not verify.
        """
        times: dict[str, int] = {}
        seen: set[bytes] = set()
        for member_id, key in sorted(witnesses.items()):
            name = witness_name(self.head.origin, member_id)
            at = cosigned_at(self.note, name=name, public_key=key, what=what)
            if at is not None and key not in seen:
                seen.add(key)
                times[member_id] = at
        return times

    def with_cosignatures(self, lines: list[NoteSignature]) -> "SignedHead":
        """Return the head with further lines below it."""
        return SignedHead(self.head, self.note.with_signatures(lines))


def sign_head(head: Head, key: Ed25519PrivateKey) -> SignedHead:
    """Return a head under the coordinator's signature."""
    return SignedHead(head, Note(head.text, (sign_note(head.text, name=head.origin, key=key),)))


def cosign_head(head: Head, *, member_id: str, key: Ed25519PrivateKey, now: float) -> NoteSignature:
    """Return a member's cosignature: as of `now` it has seen the ledger grow up to this head."""
    return cosign_note(head.text, name=witness_name(head.origin, member_id), key=key, now=now)


def open_head(data: bytes | str, *, origin: str, public_key: bytes, what: str) -> SignedHead:
    """Return the head in a note, once the coordinator's signature is verified.

    Args:
        data: As it came.
        origin: The only ledger that is accepted.
        public_key: Raw Ed25519 key of its coordinator.
        what: Begins the message of a refusal.

    Raises:
        UntrustedError: Another ledger's, signed by somebody else, altered, or not a head.
    """
    note = read_note(data, what=what)
    first = note.text.split("\n", 1)[0]
    if first != origin:
        raise UntrustedError(
            f"{what}: of the ledger {first[:80]!r}, expected {origin!r}; discard it"
        )
    require_signature(note, name=origin, public_key=public_key, what=what)
    return SignedHead(read_head(note.text, what=what), note)


def read_head(text: str, *, what: str) -> Head:
    """Read the lines of a head, whose signature was verified or is verified right after.

    Raises:
        UntrustedError: They are not those of a head in their one spelling.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]) or len(lines) > 4 + _MAX_EXTENSIONS:
        raise UntrustedError(
            f"{what}: not a head: expected the lines origin, size and root, none empty; discard it"
        )
    origin, size, encoded, *extensions = lines[:-1]
    is_decimal = size.isascii() and size.isdecimal() and str(int(size[:20])) == size
    if not is_decimal or int(size) > MAX_ENTRIES:
        raise UntrustedError(f"{what}: {size[:40]!r} is not a number of entries; discard it")
    try:
        root = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        root = b""
    if len(root) != DIGEST_BYTES or base64.b64encode(root).decode() != encoded:
        raise UntrustedError(f"{what}: {encoded[:60]!r} is not a root in base64; discard it")
    return Head(origin, int(size), root, tuple(extensions))
