"""Private keys on disk: who may open them, and what is refused."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from tapestry.errors import ConfigError
from tapestry.identity.keys import (
    generate_signing_key,
    key_id,
    load_signing_key,
    load_tls_key,
    public_bytes,
    save_private_key,
)

# RFC 8032, section 7.1, test 1.
RFC8032_SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC8032_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def test_a_saved_signing_key_comes_back_and_only_its_owner_may_open_it(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    key = generate_signing_key()
    save_private_key(path, key)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_bytes(load_signing_key(path)) == public_bytes(key)
    assert [entry.name for entry in tmp_path.iterdir()] == ["signing.key"]


def test_a_saved_tls_key_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "tls.key"
    key = ec.generate_private_key(ec.SECP256R1())
    save_private_key(path, key)
    assert load_tls_key(path).private_numbers() == key.private_numbers()


def test_public_bytes_and_key_id_follow_rfc_8032_and_sha_256() -> None:
    key = Ed25519PrivateKey.from_private_bytes(RFC8032_SECRET)
    assert public_bytes(key) == RFC8032_PUBLIC
    assert key_id(RFC8032_PUBLIC) == hashlib.sha256(RFC8032_PUBLIC).hexdigest()


def test_a_key_id_of_something_else_than_a_public_key_is_a_bug() -> None:
    with pytest.raises(ValueError, match="32 bytes, this one has 31"):
        key_id(b"k" * 31)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_reads_the_key_file_as_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    save_private_key(path, Ed25519PrivateKey.from_private_bytes(RFC8032_SECRET))
    command = ["openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER"]
    assert subprocess.run(command, check=True, capture_output=True).stdout[-32:] == RFC8032_PUBLIC


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    save_private_key(path, generate_signing_key())
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="already there, and a key is never overwritten"):
        save_private_key(path, generate_signing_key())
    assert path.read_bytes() == before


def test_a_dangling_link_counts_as_an_existing_key(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.symlink_to(tmp_path / "elsewhere.key")
    with pytest.raises(ConfigError, match="already there"):
        save_private_key(path, generate_signing_key())


def test_saving_into_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        save_private_key(tmp_path / "nowhere" / "signing.key", generate_signing_key())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_that_others_may_open_is_refused_with_the_command_that_mends_it(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "signing.key"
    save_private_key(path, generate_signing_key())
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o} .* run `chmod 600 {path}`"):
        load_signing_key(path)


@pytest.mark.parametrize("load", [load_signing_key, load_tls_key])
def test_a_missing_key_names_the_path(load: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.key: .*No such file"):
        load(tmp_path / "absent.key")


@pytest.mark.parametrize("content", [b"", b"not a key\n", b"\xff" * 100, b"A" * 100_000])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a private key in PEM form"):
        load_signing_key(path)


def test_the_two_kinds_of_key_are_not_taken_for_each_other(tmp_path: Path) -> None:
    save_private_key(tmp_path / "signing.key", generate_signing_key())
    save_private_key(tmp_path / "tls.key", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(ConfigError, match="expected an Ed25519 signing key"):
        load_signing_key(tmp_path / "tls.key")
    with pytest.raises(ConfigError, match="expected an ECDSA key on the curve P-256"):
        load_tls_key(tmp_path / "signing.key")


def test_a_tls_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    save_private_key(tmp_path / "tls.key", ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(ConfigError, match="on the curve P-256"):
        load_tls_key(tmp_path / "tls.key")


def test_an_encrypted_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    secret = BestAvailableEncryption(b"passphrase")
    path.write_bytes(
        generate_signing_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)
    )
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="encrypted with a passphrase"):
        load_signing_key(path)
