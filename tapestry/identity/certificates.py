"""X.509 certificates: the federation's own authority, and what it issues (all ECDSA P-256).

The root certificate is the only one that nodes and coordinator trust; no public authority counts.
A member's certificate names it in a SPIFFE URI, `spiffe://<federation>/node/<member_id>`, and the
coordinator's names the role, not the machine, so that addresses may change.

Nothing here decides whether a certificate is trusted: TLS verifies the chain, and whoever reads a
certificate compares its dates with the time and its serial number with the revocations.
"""

import contextlib
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tapestry.errors import ConfigError, RejectedError, UntrustedError
from tapestry.identity.keys import load_tls_key, private_pem, save_private_key
from tapestry.identity.names import check_federation, check_member_id, is_member_id
from tapestry.storage.atomic import write_atomic

SERVER_NAME = "coordinator.tapestry.internal"
"""The name that every node checks in the coordinator's certificate, whatever address it dials."""

ROOT_CERTIFICATE_FILE = "root.crt"
ROOT_KEY_FILE = "root.key"
MAX_REQUEST_BYTES = 8_192
"""Longest certificate request that is parsed; one of ours has some 500 bytes."""

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)
"""What the X.509 parser raises over bytes from outside; they have no common class."""

_CLOCK_SKEW = timedelta(minutes=5)
_FINGERPRINT_BYTES_SHOWN = 16
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Authority:
    """The federation's root of trust: its certificate, and the key that issues the others."""

    certificate_pem: bytes
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberCertificate:
    """What a member's certificate says; `serial` is its name in a list of revocations."""

    member_id: str
    federation: str
    serial: int
    """Up to 159 bits: more than a database's integer holds."""
    not_before: datetime
    not_after: datetime


def create_authority(federation: str, *, now: datetime, lifetime_days: int = 3650) -> Authority:
    """Return a new root of trust for `federation`, valid from `now` (UTC, aware)."""
    key = create_tls_key()
    name = _name(organization=check_federation(federation), common="Tapestry federation root")
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=lifetime_days))
        # One level below the root is left free: a root kept offline needs an intermediate.
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate_pem=certificate.public_bytes(Encoding.PEM), key=key)


def save_authority(folder: Path, authority: Authority) -> None:
    """Write `root.crt` and `root.key` (mode 0600) into `folder`, which is made if need be.

    Raises:
        ConfigError: There is an authority already, or the files cannot be written.
    """
    certificate_path = folder / ROOT_CERTIFICATE_FILE
    if certificate_path.exists():
        raise ConfigError(
            f"{certificate_path}: already there, and a root of trust is never overwritten: "
            "choose another folder"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_private_key(folder / ROOT_KEY_FILE, authority.key)
        write_atomic(certificate_path, authority.certificate_pem)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error


def load_authority(folder: Path) -> Authority:
    """Read the authority that `save_authority` wrote.

    Raises:
        ConfigError: A file is missing, is something else, or the two do not belong together.
    """
    path = folder / ROOT_CERTIFICATE_FILE
    key = load_tls_key(folder / ROOT_KEY_FILE)
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        same_key = x509.load_pem_x509_certificate(pem).public_key() == key.public_key()
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not a certificate in PEM form: restore a backup") from error
    if not same_key:
        raise ConfigError(
            f"{path}: does not belong to {ROOT_KEY_FILE} beside it: restore both from one backup"
        )
    return Authority(certificate_pem=pem, key=key)


def create_tls_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key for TLS; a renewed certificate takes a new one."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return `key` in the form that TLS libraries read."""
    return private_pem(key)


def issue_server_certificate(
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    *,
    federation: str,
    hosts: Sequence[str],
    now: datetime,
    lifetime_days: int = 90,
) -> bytes:
    """Return the coordinator's certificate, in PEM.

    Args:
        authority: The federation's root of trust.
        public_key: The public half of the coordinator's TLS key, on P-256.
        federation: The federation's name.
        hosts: Further names and IP addresses, for tools that check the address they dial;
            `SERVER_NAME`, localhost and 127.0.0.1 are always in.
        now: The time, UTC and aware.
        lifetime_days: How long it is valid; never longer than the root.

    Raises:
        ConfigError: A host is neither a name nor an address, or the root is not valid now.
    """
    names = [_general_name(host) for host in (SERVER_NAME, "localhost", "127.0.0.1", *hosts)]
    return _issue(
        authority,
        public_key,
        subject=_name(organization=check_federation(federation), common=SERVER_NAME),
        alternative_names=list(dict.fromkeys(names)),
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        now=now,
        lifetime_days=lifetime_days,
    )


def certificate_request(key: ec.EllipticCurvePrivateKey, *, member_id: str) -> bytes:
    """Return a request, in PEM, that proves possession of `key`; the name in it is a courtesy."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name(common=check_member_id(member_id)))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def issue_member_certificate(
    authority: Authority,
    csr_pem: bytes,
    *,
    federation: str,
    member_id: str,
    now: datetime,
    lifetime_days: int = 7,
) -> bytes:
    """Return a member's certificate, in PEM, for the key in the request `csr_pem`.

    Only the key is taken from the request. Names and extensions in it are ignored: who the member
    is was settled by its invitation, or by the certificate that it renews.

    Raises:
        RejectedError: The request is too long, unreadable, not signed by its key, or not P-256.
        ConfigError: The root is not valid now.
    """
    public_key = _key_of_request(csr_pem)
    uri = member_uri(federation, member_id)
    return _issue(
        authority,
        public_key,
        subject=_name(organization=federation, common=member_id),
        alternative_names=[x509.UniformResourceIdentifier(uri)],
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        now=now,
        lifetime_days=lifetime_days,
    )


def member_uri(federation: str, member_id: str) -> str:
    """Return the SPIFFE URI that names a member in its certificate."""
    return f"spiffe://{check_federation(federation)}/node/{check_member_id(member_id)}"


def read_member_certificate(pem: bytes, *, federation: str) -> MemberCertificate:
    """Return what a member's certificate says, of whom and for how long.

    The chain to the root and the dates are not looked at: TLS verifies the one, the caller
    compares the others with the time.

    Raises:
        UntrustedError: It does not name exactly one member, and of this federation.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    except UNREADABLE as error:
        raise UntrustedError(
            f"member certificate: names no member ({error}), expected one "
            f"spiffe://{federation}/node/... URI: enrol with an invitation of {federation}"
        ) from error
    prefix = f"spiffe://{federation}/node/"
    member_id = uris[0].removeprefix(prefix) if len(uris) == 1 else ""
    if uris != [prefix + member_id] or not is_member_id(member_id):
        came = ", ".join(uri[:160] for uri in uris[:3]) or "no URI"
        raise UntrustedError(
            f"member certificate: names {came!r}, expected one {prefix}... URI: "
            f"enrol with an invitation of {federation}"
        )
    return MemberCertificate(
        member_id=member_id,
        federation=federation,
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def is_of_key(pem: bytes, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether a certificate can be read and is of a private key's public half."""
    try:
        return x509.load_pem_x509_certificate(pem).public_key() == key.public_key()
    except UNREADABLE:
        return False


def certificate_ends(pem: bytes) -> datetime:
    """Return until when one of our own certificates is valid, UTC and aware."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


def fingerprint(certificate_pem: bytes) -> bytes:
    """Return the SHA-256 of a certificate's DER form, as `openssl x509 -fingerprint -sha256`."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except UNREADABLE as error:
        raise ConfigError(
            "certificate: not in PEM form, expected -----BEGIN CERTIFICATE-----: "
            "ask whoever sent it for the PEM file"
        ) from error
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def format_fingerprint(digest: bytes) -> str:
    """Return the first 16 bytes of `digest` as AB:CD:..., to be read aloud and compared.

    128 bits are enough against a forged second certificate, and half as long to read.
    """
    return digest[:_FINGERPRINT_BYTES_SHOWN].hex(":").upper()


def _issue(
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    *,
    subject: x509.Name,
    alternative_names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    now: datetime,
    lifetime_days: int,
) -> bytes:
    root = x509.load_pem_x509_certificate(authority.certificate_pem)
    if not root.not_valid_before_utc <= now < root.not_valid_after_utc:
        raise ConfigError(
            f"root certificate: valid from {root.not_valid_before_utc:%Y-%m-%d} to "
            f"{root.not_valid_after_utc:%Y-%m-%d}, and it is {now:%Y-%m-%d}: "
            "set the clock, or create a new authority"
        )
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=root.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(min(now + timedelta(days=lifetime_days), root.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternative_names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(authority.key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def _key_of_request(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request that its private key has signed."""
    if len(csr_pem) > MAX_REQUEST_BYTES:
        raise RejectedError(
            f"certificate request: {len(csr_pem):,} bytes came, at most {MAX_REQUEST_BYTES:,} "
            "are read: send the request alone"
        )
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        is_signed = request.is_signature_valid
    except UNREADABLE as error:
        raise RejectedError(
            f"certificate request: cannot be read ({error}), expected PKCS #10 in PEM form for an "
            "ECDSA P-256 key: make a new one"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RejectedError(
            f"certificate request: for a {type(key).__name__}, expected an ECDSA key on the curve "
            "P-256: make a new key and request"
        )
    if not is_signed:
        raise RejectedError(
            "certificate request: not signed by the key it names: make a new one, and send it whole"
        )
    return key


def _general_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if _HOST_NAME.fullmatch(host.lower()) is None:
        raise ConfigError(
            f"host {host[:80]!r}: neither a host name nor an IP address: "
            "write it without port, scheme or brackets"
        )
    return x509.DNSName(host.lower())


def _name(*, common: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
