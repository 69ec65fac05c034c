"""`model.sig`: the checkpoint's signature in the form of OpenSSF model signing.

A Sigstore bundle around a DSSE envelope whose in-toto statement lists files with their SHA-256, so
that `model_signing verify key` passes without Tapestry. It is made from digests that are known: no
file is read again. Everything outside `tapestry/` is listed; what lies in there speaks for itself,
is renewed on its own, and is named as left out.

That form knows no Ed25519, so the key is one of P-256, derived from the coordinator's signing key:
whoever has the one has the other, and a coordinator that stands in signs with the same. Its public
half is a file of the signed card, which is how it is bound to the federation's identity.
"""

import base64
import hashlib
import json
from collections.abc import Iterable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tapestry.checkpoints.folder import STATEMENTS
from tapestry.checkpoints.manifest import FileEntry
from tapestry.identity.envelopes import canonical_json, pre_authentication_encoding

SIGNATURE_FILE = "model.sig"
PUBLIC_KEY_FILE = f"{STATEMENTS}/model-signing.pub"
LEFT_OUT = (SIGNATURE_FILE, STATEMENTS)
"""Paths that the signature says nothing about."""

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_DERIVATION = b"tapestry model signing key v1"
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_DERIVED_BYTES = 48
"""Half as many again as the order has: the remainder is as good as uniform."""


def model_signing_key(key: Ed25519PrivateKey) -> EllipticCurvePrivateKey:
    """Return the P-256 key that belongs to a coordinator's signing key."""
    derived = HKDF(algorithm=SHA256(), length=_DERIVED_BYTES, salt=None, info=_DERIVATION).derive(
        key.private_bytes_raw()
    )
    return derive_private_key(int.from_bytes(derived, "big") % (_P256_ORDER - 1) + 1, SECP256R1())


def public_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return the public half of `key` as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed_files(entries: Iterable[FileEntry]) -> list[FileEntry]:
    """Return those of `entries` that the signature is about, in its order."""
    covered = [e for e in entries if e.name.split("/")[0] not in LEFT_OUT]
    return sorted(covered, key=lambda entry: entry.name.split("/"))


def model_signature(
    entries: Iterable[FileEntry], *, name: str, key: EllipticCurvePrivateKey
) -> bytes:
    """Return the bundle.

    Args:
        entries: Every file of the checkpoint; those in `LEFT_OUT` are not signed here.
        name: What the signature calls the model.
        key: Of P-256.
    """
    payload = _statement(signed_files(entries), name)
    signature = _signature(key, pre_authentication_encoding(_PAYLOAD_TYPE, payload))
    hint = hashlib.sha256(public_pem(key)).hexdigest()
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _PAYLOAD_TYPE,
        "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    }
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": envelope,
    }
    return (json.dumps(bundle, indent=1) + "\n").encode()


def _statement(entries: list[FileEntry], name: str) -> bytes:
    """Return the in-toto statement; its subject's digest is that of all digests together."""
    together = hashlib.sha256(b"".join(bytes.fromhex(entry.digest) for entry in entries))
    resources = [{"name": e.name, "algorithm": "sha256", "digest": e.digest} for e in entries]
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": list(LEFT_OUT),
    }
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": together.hexdigest()}}],
        "predicateType": _PREDICATE,
        "predicate": {"serialization": serialization, "resources": resources},
    }
    return canonical_json(statement)


def _signature(key: EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Sign as RFC 6979 has it, so that the same card is the same to the bit, where that is known.

    An OpenSSL before 3.2 does not; then the signature is another each time, and as good.
    """
    try:
        return key.sign(message, ECDSA(SHA256(), deterministic_signing=True))
    except UnsupportedAlgorithm:
        return key.sign(message, ECDSA(SHA256()))
