"""Signed envelopes: bytes, what kind of statement they are, and one Ed25519 signature over both.

The form is DSSE (Dead Simple Signing Envelope, github.com/secure-systems-lab/dsse), so that other
tools can verify what a federation says. The signature covers the payload type, and a reader names
the type that it expects: no other statement of the same signer can pass for it.

Nothing of a payload is parsed before its signature is verified.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, NoReturn

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib import dsse

from tapestry.errors import UntrustedError
from tapestry.identity.keys import key_id, public_bytes

MAX_ENVELOPE_BYTES = 8 * 2**20
"""Longest envelope, in its JSON form, that is read."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with its signature, not yet verified: `open_envelope` gives the payload out."""

    payload_type: str
    payload: bytes
    key_id: str
    """SHA-256 of the signer's raw public key, in hex."""
    signature: bytes


def canonical_json(value: object) -> bytes:
    """Return `value` as the one JSON text we sign: that of RFC 8785.

    Raises:
        ValueError: It holds a NaN, an infinity, an integer of more than 53 bits, or text that is
            not Unicode.
    """
    return rfc8785.dumps(value)  # type: ignore[arg-type]  # it looks at the types itself


def sign(payload_type: str, payload: bytes, key: Ed25519PrivateKey) -> Envelope:
    """Return `payload` in an envelope signed by `key` as a statement of type `payload_type`."""
    return Envelope(
        payload_type=payload_type,
        payload=payload,
        key_id=key_id(public_bytes(key)),
        signature=key.sign(pre_authentication_encoding(payload_type, payload)),
    )


def open_envelope(envelope: Envelope, *, payload_type: str, public_key: bytes, what: str) -> bytes:
    """Return the payload, once its type, signer and signature are verified.

    Args:
        envelope: What came.
        payload_type: The only type that is accepted.
        public_key: Raw Ed25519 public key of the only signer that is accepted.
        what: How messages name the thing, such as "manifest of round 3".

    Raises:
        UntrustedError: Another type, another signer, or a signature that does not verify.
    """
    if envelope.payload_type != payload_type:
        raise UntrustedError(
            f"{what}: signed as {envelope.payload_type[:80]!r}, expected {payload_type!r}; "
            "discard it"
        )
    expected_id = key_id(public_key)
    if envelope.key_id != expected_id:
        raise UntrustedError(
            f"{what}: signed by key {envelope.key_id[:12]!r}, expected {expected_id[:12]!r}; "
            "discard it, or ask the signer whether its key has changed"
        )
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            envelope.signature, pre_authentication_encoding(payload_type, envelope.payload)
        )
    except InvalidSignature as error:
        raise UntrustedError(
            f"{what}: altered since key {expected_id[:12]} signed it, or never signed by it; "
            "discard it and fetch it again"
        ) from error
    return envelope.payload


def signed_json(payload_type: str, value: dict[str, Any], key: Ed25519PrivateKey) -> Envelope:
    """Return `value`, as canonical JSON, in an envelope signed by `key`."""
    return sign(payload_type, canonical_json(value), key)


def open_json(
    envelope: Envelope, *, payload_type: str, public_key: bytes, what: str
) -> dict[str, Any]:
    """Return the JSON object in `envelope`, parsed only after its signature is verified.

    Raises:
        UntrustedError: As for `open_envelope`, or the payload is not a JSON object.
    """
    payload = open_envelope(envelope, payload_type=payload_type, public_key=public_key, what=what)
    return _json_object(payload, what=what)


def to_json(envelope: Envelope) -> bytes:
    """Return `envelope` in the JSON form of DSSE."""
    signature = {"keyid": envelope.key_id, "sig": base64.b64encode(envelope.signature).decode()}
    return canonical_json(
        {
            "payload": base64.b64encode(envelope.payload).decode(),
            "payloadType": envelope.payload_type,
            "signatures": [signature],
        }
    )


def from_json(data: bytes, *, what: str) -> Envelope:
    """Read an envelope in the JSON form of DSSE; keys that are not in the form are ignored.

    Raises:
        UntrustedError: It is too long, malformed, or has not exactly one signature.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise UntrustedError(
            f"{what}: more than {MAX_ENVELOPE_BYTES:,} bytes came, the most that an envelope has; "
            "discard it"
        )
    match _json_object(data, what=what):
        case {
            "payload": str(payload),
            "payloadType": str(payload_type),
            "signatures": [{"keyid": str(signer), "sig": str(signature)}],
        }:
            return Envelope(
                payload_type=payload_type,
                payload=_from_base64(payload, what=f"{what}: payload"),
                key_id=signer,
                signature=_from_base64(signature, what=f"{what}: signature"),
            )
    raise UntrustedError(
        f"{what}: not a signed envelope, expected payload, payloadType and exactly one signature; "
        "discard it and fetch it again"
    )


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSEv1, then type and payload, each after its length."""
    return dsse.Envelope(payload, payload_type, {}).pae()


def _json_object(data: bytes, *, what: str) -> dict[str, Any]:
    """Return the JSON object in `data`, if it can be written as canonical JSON again."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
        canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise UntrustedError(
            f"{what}: not JSON ({error}); discard it and fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise UntrustedError(
            f"{what}: a JSON {type(value).__name__} came, expected an object; discard it"
        )
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _from_base64(text: str, *, what: str) -> bytes:
    """Decode padded base64 in either alphabet, as DSSE asks, in its one canonical spelling."""
    standard = text.replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(standard, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UntrustedError(f"{what}: not base64 ({error}); discard it") from error
    if base64.b64encode(data).decode() != standard:
        raise UntrustedError(f"{what}: base64 with stray bits at its end; discard it")
    return data
