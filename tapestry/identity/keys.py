"""Private keys on disk, and the names of public ones.

A member holds two keys. The Ed25519 signing key signs its messages and stays for years; the P-256
TLS key opens its connections and is replaced at every renewal of its certificate. Both lie in PEM
files (PKCS #8, not encrypted) that nobody but their owner may open.
"""

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey

PUBLIC_KEY_BYTES = 32
"""Length of a raw Ed25519 public key."""

_KEY_FILE_LIMIT_BYTES = 16_384


def generate_signing_key() -> Ed25519PrivateKey:
    """Return a new key for signing messages."""
    return Ed25519PrivateKey.generate()


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 raw bytes of the public half of `key`."""
    return key.public_key().public_bytes_raw()


def key_id(public: bytes) -> str:
    """Return the name of a raw Ed25519 public key: its SHA-256 in hex."""
    if len(public) != PUBLIC_KEY_BYTES:
        raise ValueError(f"a raw Ed25519 public key has 32 bytes, this one has {len(public)}")
    return hashlib.sha256(public).hexdigest()


def private_pem(key: PrivateKey) -> bytes:
    """Return `key` as unencrypted PKCS #8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def save_private_key(path: Path, key: PrivateKey) -> None:
    """Write `key` to the new file `path`, whole or not at all, with mode 0600.

    Raises:
        ConfigError: Something has that name already, or the file cannot be written.
    """
    if os.path.lexists(path):
        raise ConfigError(
            f"{path}: already there, and a key is never overwritten: move it away first, "
            "or choose another folder"
        )
    try:
        write_atomic(path, private_pem(key), mode=0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read the Ed25519 key in the PEM file `path`.

    Raises:
        ConfigError: The file is missing, open to others, or holds something else.
    """
    key = _load_private_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{path}: holds a {type(key).__name__}, expected an Ed25519 signing key: "
            "point to the signing key, not to the TLS key"
        )
    return key


def load_tls_key(path: Path) -> EllipticCurvePrivateKey:
    """Read the ECDSA P-256 key in the PEM file `path`.

    Raises:
        ConfigError: The file is missing, open to others, or holds something else.
    """
    key = _load_private_key(path)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise ConfigError(
            f"{path}: holds a {type(key).__name__}, expected an ECDSA key on the curve P-256: "
            "point to the TLS key, not to the signing key"
        )
    return key


def _load_private_key(path: Path) -> object:
    try:
        return load_pem_private_key(_read_private(path), password=None)
    except TypeError as error:
        raise ConfigError(
            f"{path}: encrypted with a passphrase, expected plain PEM: decrypt it with "
            "`openssl pkey`, and protect it by its permissions"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path}: not a private key in PEM form: restore it from a backup, "
            "or enrol again with a new key"
        ) from error


def _read_private(path: Path) -> bytes:
    """Return the content of `path` if only its owner may open it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise ConfigError(
                    f"{path}: mode {mode:04o} lets others open a private key, expected 0600: "
                    f"run `chmod 600 {path}`"
                )
            return file.read(_KEY_FILE_LIMIT_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{path}: private key cannot be read: {error.strerror}: check the path and its owner"
        ) from error
