"""Signed notes (C2SP signed-note): a text, and one line for each signature over it.

```
the text, which ends in a newline

— name base64(key id || signature)
```

Two kinds of signature: the plain one of whoever speaks, and the cosignature of a witness (C2SP
tlog-cosignature, Ed25519), which covers the second at which it was made. Who reads a note names the
keys that count; what others signed is carried along and says nothing.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tapestry.errors import UntrustedError

MAX_NOTE_BYTES = 256 * 1024
MAX_SIGNATURES = 1024

_DASH = "\u2014 "
_ED25519 = 0x01
_COSIGNATURE = 0x04
_KEY_ID_BYTES = 4
_TIME_BYTES = 8
_SIGNATURE_BYTES = 64
_MOST_SIGNED_BYTES = 8192
"""Of one line: signatures of other kinds may be longer than ours."""


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One line below a note, not yet verified."""

    name: str
    key_id: bytes
    signature: bytes

    @property
    def line(self) -> str:
        """The line without its newline."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}"


@dataclass(frozen=True, slots=True)
class Note:
    """A text with signatures; `require_signature` and `cosigned_at` verify them."""

    text: str
    """With its final newline."""
    signatures: tuple[NoteSignature, ...]

    @property
    def body(self) -> str:
        """The whole note as it travels."""
        return "".join([self.text, "\n", *(f"{one.line}\n" for one in self.signatures)])

    def signed_by(self, name: str, key_id: bytes) -> NoteSignature | None:
        """Return the signature of one key, if there is one."""
        for one in self.signatures:
            if (one.name, one.key_id) == (name, key_id):
                return one
        return None

    def with_signatures(self, more: Iterable[NoteSignature]) -> "Note":
        """Return the note with further lines; of a key that has signed already none is added."""
        lines = {(one.name, one.key_id): one for one in self.signatures}
        for one in more:
            lines.setdefault((one.name, one.key_id), one)
        return Note(self.text, tuple(lines.values()))


def read_note(data: bytes | str, *, what: str) -> Note:
    """Read a note; no signature is verified yet.

    Args:
        data: As it came.
        what: Begins the message of a refusal.

    Raises:
        UntrustedError: It is not a signed note in its one spelling.
    """
    raw = data.encode() if isinstance(data, str) else data
    if len(raw) > MAX_NOTE_BYTES:
        raise UntrustedError(f"{what}: {len(raw):,} bytes came, at most {MAX_NOTE_BYTES:,} do")
    try:
        whole = raw.decode()
    except UnicodeDecodeError as error:
        raise UntrustedError(f"{what}: not UTF-8 ({error.reason}); discard it") from error
    if any(ord(c) < 0x20 and c != "\n" for c in whole):
        raise UntrustedError(f"{what}: has control characters; discard it")
    text, blank, below = whole.rpartition("\n\n")
    if not blank or not text or not below.endswith("\n"):
        raise UntrustedError(
            f"{what}: not a signed note: expected a text, an empty line, and lines of signatures, "
            "each with its newline; discard it"
        )
    lines = below[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise UntrustedError(f"{what}: {len(lines):,} signatures, at most {MAX_SIGNATURES:,} do")
    signatures = tuple(read_signature(line, what=what) for line in lines)
    if len({(one.name, one.key_id) for one in signatures}) < len(signatures):
        raise UntrustedError(f"{what}: one key has signed it twice; discard it")
    return Note(f"{text}\n", signatures)


def read_signature(line: str, *, what: str) -> NoteSignature:
    """Read one line of a signature, without its newline.

    Raises:
        UntrustedError: It is none in its one spelling.
    """
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    data = _from_base64(encoded)
    if (
        not line.startswith(_DASH)
        or not space
        or not is_name(name)
        or data is None
        or not _KEY_ID_BYTES < len(data) <= _MOST_SIGNED_BYTES
    ):
        raise UntrustedError(
            f"{what}: {line[:60]!r} is not the line of a signature: expected a dash (U+2014), a "
            "name, and base64; discard it"
        )
    return NoteSignature(name, data[:_KEY_ID_BYTES], data[_KEY_ID_BYTES:])


def is_name(name: str) -> bool:
    """Whether a key may be called so."""
    return bool(name) and not any(c.isspace() or c == "+" or not c.isprintable() for c in name)


def key_id(name: str, public_key: bytes) -> bytes:
    """Return the id of an Ed25519 key that signs notes under `name`."""
    return _key_id(name, _ED25519, public_key)


def witness_key_id(name: str, public_key: bytes) -> bytes:
    """Return the id of an Ed25519 key that cosigns heads under `name`."""
    return _key_id(name, _COSIGNATURE, public_key)


def _key_id(name: str, kind: int, public_key: bytes) -> bytes:
    hashed = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key)
    return hashed.digest()[:_KEY_ID_BYTES]


def sign_note(text: str, *, name: str, key: Ed25519PrivateKey) -> NoteSignature:
    """Return a signature over a text that ends in a newline."""
    _require_text(text, name)
    public = key.public_key().public_bytes_raw()
    return NoteSignature(name, key_id(name, public), key.sign(text.encode()))


def cosign_note(text: str, *, name: str, key: Ed25519PrivateKey, now: float) -> NoteSignature:
    """Return a witness's signature over a head's text, made at `now` (Unix seconds)."""
    _require_text(text, name)
    public, seconds = key.public_key().public_bytes_raw(), int(now)
    signed = key.sign(_cosigned(text, seconds))
    stamped = seconds.to_bytes(_TIME_BYTES, "big") + signed
    return NoteSignature(name, witness_key_id(name, public), stamped)


def require_signature(note: Note, *, name: str, public_key: bytes, what: str) -> None:
    """Refuse a note that the owner of a key has not signed.

    Raises:
        UntrustedError: There is no such line, or it does not verify.
    """
    found = note.signed_by(name, key_id(name, public_key))
    if found is None:
        raise UntrustedError(
            f"{what}: not signed by {name} with the key that is known; discard it, or ask the "
            "signer whether its key has changed"
        )
    if not _verifies(public_key, found.signature, note.text.encode()):
        raise UntrustedError(
            f"{what}: altered since {name} signed it, or never signed by it; discard it"
        )


def cosigned_at(note: Note, *, name: str, public_key: bytes, what: str) -> int | None:
    """Return when a witness has cosigned a head (Unix seconds), None if it has not.

    Raises:
        UntrustedError: There is a line of that key, and it does not verify.
    """
    found = note.signed_by(name, witness_key_id(name, public_key))
    if found is None:
        return None
    seconds = int.from_bytes(found.signature[:_TIME_BYTES], "big")
    signed = _cosigned(note.text, seconds)
    if seconds >= 2**63 or not _verifies(public_key, found.signature[_TIME_BYTES:], signed):
        raise UntrustedError(
            f"{what}: the cosignature of {name} is not over this head, or not by its key; discard "
            "it"
        )
    return seconds


def _cosigned(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _verifies(public_key: bytes, signature: bytes, signed: bytes) -> bool:
    if len(signature) != _SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _require_text(text: str, name: str) -> None:
    if not text.endswith("\n") or not is_name(name):
        raise ValueError(f"a note's text ends in a newline, and {name!r} is to be a name")


def _from_base64(text: str) -> bytes | None:
    """Decode padded base64 in its one spelling; None if it is another."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None
