"""Signed envelopes, against the DSSE specification and against openssl."""

import base64
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import (
    MAX_ENVELOPE_BYTES,
    Envelope,
    canonical_json,
    from_json,
    open_envelope,
    open_json,
    pre_authentication_encoding,
    sign,
    signed_json,
    to_json,
)
from tapestry.identity.keys import key_id, public_bytes

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = public_bytes(KEY)
MANIFEST = "application/vnd.tapestry.manifest+json"
RECEIPT = "application/vnd.tapestry.receipt+json"
WHAT = "manifest of round 3"

# Printed in the specification (protocol.md, "Test vectors"); the signature is ECDSA, by its key.
SPECIFIED_PAE = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
SPECIFIED_SIGNATURE = (
    "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
)
SPECIFIED_ENVELOPE = {
    "payload": "aGVsbG8gd29ybGQ=",
    "payloadType": "http://example.com/HelloWorld",
    "signatures": [{"keyid": "66301bbf", "sig": SPECIFIED_SIGNATURE}],
}


def test_what_is_signed_is_the_encoding_of_the_specification() -> None:
    kind, body = "http://example.com/HelloWorld", b"hello world"
    assert pre_authentication_encoding(kind, body) == SPECIFIED_PAE
    KEY.public_key().verify(sign(kind, body, KEY).signature, SPECIFIED_PAE)


def test_lengths_count_bytes_not_characters() -> None:
    assert pre_authentication_encoding("é", "ø".encode()) == b"DSSEv1 2 \xc3\xa9 2 \xc3\xb8"


def test_the_envelope_of_the_specification_is_read_and_written_back() -> None:
    envelope = from_json(json.dumps(SPECIFIED_ENVELOPE).encode(), what=WHAT)
    assert envelope.payload == b"hello world"
    assert envelope.key_id == "66301bbf"
    assert json.loads(to_json(envelope)) == SPECIFIED_ENVELOPE


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_verifies_the_signature(tmp_path: Path) -> None:
    envelope = sign("text/plain", b"warp and weft", KEY)
    public_pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public_pem)
    (tmp_path / "signed").write_bytes(b"DSSEv1 10 text/plain 13 warp and weft")
    (tmp_path / "signature").write_bytes(envelope.signature)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin"]
    command += ["-in", "signed", "-sigfile", "signature"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_a_signed_payload_comes_out_as_it_went_in() -> None:
    envelope = from_json(to_json(sign(MANIFEST, b"\x00payload\xff", KEY)), what=WHAT)
    opened = open_envelope(envelope, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)
    assert opened == b"\x00payload\xff"
    assert envelope.key_id == key_id(PUBLIC)


def test_a_flipped_bit_anywhere_in_payload_or_signature_is_found() -> None:
    envelope = sign(MANIFEST, b"weights", KEY)
    for name in ("payload", "signature"):
        data: bytes = getattr(envelope, name)
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            forged = (
                replace(envelope, payload=bytes(flipped))
                if name == "payload"
                else replace(envelope, signature=bytes(flipped))
            )
            with pytest.raises(UntrustedError, match=f"^{WHAT}: altered"):
                open_envelope(forged, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)


@pytest.mark.parametrize("signature", [b"", b"short", b"\x00" * 64, b"\xff" * 65])
def test_bytes_that_are_no_signature_do_not_verify(signature: bytes) -> None:
    forged = replace(sign(MANIFEST, b"weights", KEY), signature=signature)
    with pytest.raises(UntrustedError, match="altered since key"):
        open_envelope(forged, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)


def test_a_receipt_does_not_pass_for_a_manifest_not_even_relabelled() -> None:
    receipt = sign(RECEIPT, b"{}", KEY)
    with pytest.raises(UntrustedError, match=r"signed as '.*receipt\+json', expected '.*manifest"):
        open_envelope(receipt, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)
    relabelled = replace(receipt, payload_type=MANIFEST)
    with pytest.raises(UntrustedError, match="altered since key"):
        open_envelope(relabelled, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)


def test_another_signer_does_not_pass_not_even_under_the_expected_key_id() -> None:
    other = sign(MANIFEST, b"{}", Ed25519PrivateKey.from_private_bytes(b"x" * 32))
    with pytest.raises(UntrustedError, match=f"^{WHAT}: signed by key"):
        open_envelope(other, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)
    with pytest.raises(UntrustedError, match="or never signed by it"):
        open_envelope(
            replace(other, key_id=key_id(PUBLIC)),
            payload_type=MANIFEST,
            public_key=PUBLIC,
            what=WHAT,
        )


# Canonical JSON


def test_canonical_json_is_sorted_compact_and_in_utf_8() -> None:
    value = {"b": [1, 0.5, None, True], "a": "Հայերեն", "é": {}}
    text = '{"a":"Հայերեն","b":[1,0.5,null,true],"é":{}}'
    assert canonical_json(value) == text.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")], "\ud800"])
def test_values_that_json_cannot_say_are_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the standard library's
        canonical_json(value)


def test_a_signed_object_comes_out_as_it_went_in() -> None:
    value = {"round": 3, "weights": [0.25, 0.75], "member": "fr-bnf"}
    envelope = signed_json(MANIFEST, value, KEY)
    assert envelope.payload == canonical_json(value)
    opened = open_json(envelope, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)
    assert opened == value


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"3",
        b"{",
        b"\xff",
        b'{"x":NaN}',
        b'{"x":1e999}',
        b'{"x":"\\ud800"}',
        b"[" * 100_000,
        b'{"x":' + b"9" * 5_000 + b"}",
    ],
    ids=lambda payload: payload[:12].decode("latin-1"),
)
def test_a_signed_payload_that_is_no_json_object_is_not_used(payload: bytes) -> None:
    envelope = sign(MANIFEST, payload, KEY)
    with pytest.raises(UntrustedError, match=f"^{WHAT}: "):
        open_json(envelope, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)


def test_nothing_is_parsed_before_the_signature_is_verified() -> None:
    envelope = replace(sign(MANIFEST, b"{}", KEY), payload=b"not JSON")
    with pytest.raises(UntrustedError, match="altered since key"):
        open_json(envelope, payload_type=MANIFEST, public_key=PUBLIC, what=WHAT)


# The JSON form


def altered(**changes: Any) -> bytes:
    return json.dumps({**SPECIFIED_ENVELOPE, **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        altered(payload=None),
        altered(payload=7),
        altered(payload="aGVsbG8gd29ybGQ"),  # padding is missing
        altered(payload="aGVsbG8gd29ybGR="),  # stray bits: a second spelling of the same bytes
        altered(payload="aGVs bG8gd29ybGQ="),
        altered(payload="é"),
        altered(payloadType=["x"]),
        altered(signatures=[]),
        altered(signatures={"keyid": "", "sig": ""}),
        altered(signatures=["x"]),
        altered(signatures=[{"keyid": "x"}]),
        altered(signatures=[{"keyid": "x", "sig": "?"}]),
        altered(signatures=[{"keyid": "x", "sig": "AA=="}, {"keyid": "y", "sig": "AA=="}]),
    ],
)
def test_a_malformed_envelope_is_not_used(data: bytes) -> None:
    with pytest.raises(UntrustedError, match=f"^{WHAT}: "):
        from_json(data, what=WHAT)


def test_an_envelope_cut_anywhere_is_not_used() -> None:
    whole = to_json(sign(MANIFEST, b"weights", KEY))
    for length in range(len(whole)):
        with pytest.raises(UntrustedError):
            from_json(whole[:length], what=WHAT)


def test_an_envelope_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(UntrustedError, match=r"more than 8,388,608 bytes came"):
        from_json(b" " * (MAX_ENVELOPE_BYTES + 1), what=WHAT)


def test_both_alphabets_of_base64_are_read_and_unknown_keys_ignored() -> None:
    payload = b"\xfb\xef\xff"
    text = base64.urlsafe_b64encode(payload).decode()
    assert text == "--__"
    assert from_json(altered(payload=text, extra=1), what=WHAT).payload == payload


def test_an_envelope_cannot_be_changed() -> None:
    envelope = Envelope("text/plain", b"", "", b"")
    with pytest.raises(AttributeError):
        envelope.payload = b"other"  # type: ignore[misc]
