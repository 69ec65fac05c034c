"""A member's identity folder: its keys, its certificate, and what it trusts.

```
membership.json   federation, member id, addresses, pinned coordinator key and genesis
root.crt          the federation's root certificate, pinned at joining
tls.crt  tls.key  the member certificate and its P-256 key (0600)
signing.key       the Ed25519 key that signs contributions (0600)
```
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tapestry.errors import ConfigError, UntrustedError
from tapestry.identity.certificates import is_of_key, read_member_certificate
from tapestry.identity.invitations import check_address
from tapestry.identity.keys import load_signing_key, load_tls_key, private_pem, save_private_key
from tapestry.storage.atomic import TEMPORARY_SUFFIX, sync_path, write_atomic

MEMBERSHIP_FILE = "membership.json"
_ROOT_FILE = "root.crt"
_CERTIFICATE_FILE = "tls.crt"
_TLS_KEY_FILE = "tls.key"
_NEW_KEY_FILE = ".tls.key.new"
_SIGNING_KEY_FILE = "signing.key"
CONTRIBUTOR = "contributor"
"""The role of members that train."""
_LOOKS = 10
"""For a certificate and a key that belong together; no renewal comes twice in that time."""
_Hex = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """What a member knows about its federation."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    federation: str
    member_id: str
    address: str
    """host:port of the coordinator."""
    coordinator_key: _Hex
    """Raw Ed25519 public key, hex: signs plans, manifests, receipts."""
    genesis: _Hex
    """Hex digest of the genesis manifest: the federation's identity."""
    role: str = CONTRIBUTOR
    """As the invitation said: that, observer, operator or auditor."""


_MEMBERSHIP = TypeAdapter(Membership)


@dataclass(frozen=True, slots=True)
class IdentityFolder:
    """The files of one member's identity."""

    folder: Path

    def create(
        self,
        membership: Membership,
        *,
        root_pem: bytes,
        certificate_pem: bytes,
        tls_key: EllipticCurvePrivateKey,
        signing_key: Ed25519PrivateKey,
    ) -> None:
        """Write everything; the folder appears whole or not at all."""
        temporary = self.folder.with_name(f".{self.folder.name}{TEMPORARY_SUFFIX}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        save_private_key(temporary / _TLS_KEY_FILE, tls_key)
        save_private_key(temporary / _SIGNING_KEY_FILE, signing_key)
        write_atomic(temporary / _ROOT_FILE, root_pem)
        write_atomic(temporary / _CERTIFICATE_FILE, certificate_pem)
        _write(temporary, membership)
        temporary.rename(self.folder)
        sync_path(self.folder.parent)

    def load(self) -> Membership:
        """Read what the member knows.

        Raises:
            ConfigError: There is no identity here, or its file is damaged.
        """
        path = self.folder / MEMBERSHIP_FILE
        try:
            return _MEMBERSHIP.validate_json(path.read_bytes())
        except FileNotFoundError:
            if self.folder.exists():
                raise ConfigError(
                    f"{self.folder}: has no {MEMBERSHIP_FILE}: restore the folder from a backup, "
                    "or move it away and ask for a new invitation"
                ) from None
            raise ConfigError(
                f"{self.folder.parent}: no node here; join a federation first: "
                f"`tapestry node join INVITATION --dir {self.folder.parent}`"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part)[:80] for part in first["loc"])
            raise ConfigError(
                f"{path}: cannot be read: {field} {first['msg'][:200]}: restore it from a backup"
            ) from error

    def change_address(self, address: str) -> None:
        """Dial the coordinator at another address from now on; who it has to be stays the same.

        Raises:
            ConfigError: It is no address.
        """
        check_address(address)
        _write(self.folder, replace(self.load(), address=address))

    def signing_key(self) -> Ed25519PrivateKey:
        """Read the key that signs contributions."""
        return load_signing_key(self.folder / _SIGNING_KEY_FILE)

    def root_pem(self) -> bytes:
        """Read the pinned root certificate."""
        return self._read(_ROOT_FILE)

    def certificate_pem(self) -> bytes:
        """Read the member certificate."""
        return self._read(_CERTIFICATE_FILE)

    def tls_pair(self) -> tuple[bytes, bytes]:
        """Read the member certificate and its private key, while a renewal may replace them.

        Where one was cut short between the two, the new key is read from where it lies.

        Raises:
            ConfigError: One is missing or damaged, or they do not belong together.
        """
        for _look in range(_LOOKS):
            certificate, key = self.certificate_pem(), load_tls_key(self.folder / _TLS_KEY_FILE)
            if is_of_key(certificate, key):
                return certificate, private_pem(key)
            new_key = self._new_key()
            if new_key is not None and is_of_key(certificate, new_key):
                return certificate, private_pem(new_key)
        raise ConfigError(
            f"{self.folder}: {_CERTIFICATE_FILE} and {_TLS_KEY_FILE} do not belong together: "
            "restore both from a backup, or ask the coordinator's operator for a new invitation"
        )

    def _new_key(self) -> EllipticCurvePrivateKey | None:
        """Return the key of a renewal that is not at its end."""
        path = self.folder / _NEW_KEY_FILE
        try:
            return load_tls_key(path)
        except ConfigError:
            if path.is_file():
                raise
            return None

    def validity(self) -> tuple[datetime, datetime]:
        """Return from when to when the member certificate is valid."""
        federation = self.load().federation
        certificate = read_member_certificate(self.certificate_pem(), federation=federation)
        return certificate.not_before, certificate.not_after

    def replace_certificate(self, certificate_pem: bytes, tls_key: EllipticCurvePrivateKey) -> None:
        """Take a renewed certificate with its new key.

        Raises:
            UntrustedError: It names another member.
        """
        membership = self.load()
        named = read_member_certificate(certificate_pem, federation=membership.federation)
        if named.member_id != membership.member_id:
            raise UntrustedError(f"the renewed certificate names {named.member_id}; not taken")
        new_key, waiting = self.folder / _NEW_KEY_FILE, self._new_key()
        if waiting is not None and is_of_key(self.certificate_pem(), waiting):
            new_key.replace(self.folder / _TLS_KEY_FILE)  # of a renewal that was cut short
        new_key.unlink(missing_ok=True)
        save_private_key(new_key, tls_key)
        write_atomic(self.folder / _CERTIFICATE_FILE, certificate_pem)
        os.replace(new_key, self.folder / _TLS_KEY_FILE)  # noqa: PTH105 - the pair, back to back
        sync_path(self.folder)

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _write(folder: Path, membership: Membership) -> None:
    write_atomic(folder / MEMBERSHIP_FILE, json.dumps(asdict(membership), indent=1) + "\n")
