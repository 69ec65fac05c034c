"""Certificates, judged by two other programs: cryptography's path verifier and openssl."""

import base64
import contextlib
import ipaddress
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError, VerifiedClient

from tapestry.errors import ConfigError, RejectedError, UntrustedError
from tapestry.identity.certificates import (
    MAX_REQUEST_BYTES,
    SERVER_NAME,
    Authority,
    certificate_request,
    create_authority,
    create_tls_key,
    fingerprint,
    format_fingerprint,
    issue_member_certificate,
    issue_server_certificate,
    key_pem,
    load_authority,
    read_member_certificate,
    save_authority,
)
from tapestry.identity.names import check_federation, check_member_id

FEDERATION = "european-libraries"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority(FEDERATION, now=NOW)


def member_certificate(authority: Authority, member_id: str = "fr-bnf") -> bytes:
    request = certificate_request(create_tls_key(), member_id=member_id)
    return issue_member_certificate(
        authority, request, federation=FEDERATION, member_id=member_id, now=NOW
    )


def server_certificate(authority: Authority, *hosts: str) -> bytes:
    public_key = create_tls_key().public_key()
    return issue_server_certificate(
        authority, public_key, federation=FEDERATION, hosts=hosts, now=NOW
    )


def verify_client(root_pem: bytes, pem: bytes, *, at: datetime) -> VerifiedClient:
    store = Store([x509.load_pem_x509_certificate(root_pem)])
    verifier = PolicyBuilder().store(store).time(at).build_client_verifier()
    return verifier.verify(x509.load_pem_x509_certificate(pem), [])


def verify_server(
    root_pem: bytes, pem: bytes, name: x509.DNSName | x509.IPAddress, *, at: datetime = NOW
) -> None:
    store = Store([x509.load_pem_x509_certificate(root_pem)])
    verifier = PolicyBuilder().store(store).time(at).build_server_verifier(name)
    verifier.verify(x509.load_pem_x509_certificate(pem), [])


def names_in(pem: bytes) -> list[x509.GeneralName]:
    extensions = x509.load_pem_x509_certificate(pem).extensions
    return list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


# The authority


def test_a_saved_authority_comes_back_and_its_key_is_private(
    authority: Authority, tmp_path: Path
) -> None:
    folder = tmp_path / "home" / "ca"
    save_authority(folder, authority)
    loaded = load_authority(folder)
    assert loaded.certificate_pem == authority.certificate_pem
    assert loaded.key.private_numbers() == authority.key.private_numbers()
    assert (folder / "root.key").stat().st_mode & 0o777 == 0o600


def test_an_authority_is_never_overwritten(authority: Authority, tmp_path: Path) -> None:
    save_authority(tmp_path, authority)
    with pytest.raises(ConfigError, match="a root of trust is never overwritten"):
        save_authority(tmp_path, create_authority(FEDERATION, now=NOW))
    (tmp_path / "root.key").unlink()  # kept offline: its certificate must survive as well
    with pytest.raises(ConfigError, match="never overwritten"):
        save_authority(tmp_path, create_authority(FEDERATION, now=NOW))
    assert (tmp_path / "root.crt").read_bytes() == authority.certificate_pem


def test_a_certificate_beside_another_authoritys_key_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    save_authority(tmp_path, authority)
    (tmp_path / "root.crt").write_bytes(create_authority(FEDERATION, now=NOW).certificate_pem)
    with pytest.raises(ConfigError, match=r"root\.crt: does not belong to root\.key"):
        load_authority(tmp_path)


def test_an_authority_without_a_readable_certificate_names_the_file(
    authority: Authority, tmp_path: Path
) -> None:
    save_authority(tmp_path, authority)
    (tmp_path / "root.crt").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"root\.crt: not a certificate in PEM form"):
        load_authority(tmp_path)
    (tmp_path / "root.crt").unlink()
    with pytest.raises(ConfigError, match=r"root\.crt: cannot be read"):
        load_authority(tmp_path)


def test_an_authority_does_not_show_its_key(authority: Authority) -> None:
    assert "key" not in repr(authority).lower().replace("certificate_pem", "")


def test_a_key_in_pem_form_is_the_same_key() -> None:
    key = create_tls_key()
    loaded = load_pem_private_key(key_pem(key), password=None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert loaded.private_numbers() == key.private_numbers()


# Members


def test_a_members_certificate_verifies_as_a_client_and_names_the_member(
    authority: Authority,
) -> None:
    verified = verify_client(authority.certificate_pem, member_certificate(authority), at=NOW)
    assert verified.subjects == [
        x509.UniformResourceIdentifier("spiffe://european-libraries/node/fr-bnf")
    ]


def test_reading_a_members_certificate_tells_who_and_how_long(authority: Authority) -> None:
    pem = member_certificate(authority)
    member = read_member_certificate(pem, federation=FEDERATION)
    assert (member.member_id, member.federation) == ("fr-bnf", FEDERATION)
    assert member.serial == x509.load_pem_x509_certificate(pem).serial_number
    assert member.not_before == NOW - timedelta(minutes=5)  # for clocks that are slow
    assert member.not_after == NOW + timedelta(days=7)


def test_an_expired_certificate_is_still_readable_and_no_longer_verifies(
    authority: Authority,
) -> None:
    pem = member_certificate(authority)
    later = NOW + timedelta(days=8)
    assert read_member_certificate(pem, federation=FEDERATION).not_after < later
    with pytest.raises(VerificationError):
        verify_client(authority.certificate_pem, pem, at=later)


def test_another_root_does_not_vouch_for_the_member(authority: Authority) -> None:
    other = create_authority(FEDERATION, now=NOW)
    with pytest.raises(VerificationError):
        verify_client(other.certificate_pem, member_certificate(authority), at=NOW)


def test_a_member_cannot_issue_certificates(authority: Authority) -> None:
    key = create_tls_key()
    request = certificate_request(key, member_id="fr-bnf")
    pem = issue_member_certificate(
        authority, request, federation=FEDERATION, member_id="fr-bnf", now=NOW
    )
    forged = member_certificate(Authority(certificate_pem=pem, key=key), "de-dnb")
    store = Store([x509.load_pem_x509_certificate(authority.certificate_pem)])
    verifier = PolicyBuilder().store(store).time(NOW).build_client_verifier()
    with pytest.raises(VerificationError):
        verifier.verify(
            x509.load_pem_x509_certificate(forged), [x509.load_pem_x509_certificate(pem)]
        )


def test_the_two_roles_are_not_taken_for_each_other(authority: Authority) -> None:
    with pytest.raises(VerificationError):
        verify_client(authority.certificate_pem, server_certificate(authority), at=NOW)
    with pytest.raises(VerificationError):
        verify_server(
            authority.certificate_pem, member_certificate(authority), x509.DNSName(SERVER_NAME)
        )
    with pytest.raises(UntrustedError, match="names 'no URI'"):
        read_member_certificate(server_certificate(authority), federation=FEDERATION)


def test_every_certificate_has_a_serial_number_of_its_own(authority: Authority) -> None:
    serials = {
        read_member_certificate(member_certificate(authority), federation=FEDERATION).serial
        for _ in range(20)
    }
    assert len(serials) == 20


def test_no_certificate_outlives_the_root() -> None:
    authority = create_authority(FEDERATION, now=NOW, lifetime_days=3)
    member = read_member_certificate(member_certificate(authority), federation=FEDERATION)
    assert member.not_after == NOW + timedelta(days=3)


@pytest.mark.parametrize("days", [-1, 3651])
def test_a_root_that_is_not_valid_now_issues_nothing(authority: Authority, days: int) -> None:
    request = certificate_request(create_tls_key(), member_id="fr-bnf")
    now = NOW + timedelta(days=days)
    with pytest.raises(ConfigError, match="root certificate: valid from 2026-03-01 to 2036-02-27"):
        issue_member_certificate(
            authority, request, federation=FEDERATION, member_id="fr-bnf", now=now
        )


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://other-federation/node/fr-bnf"],
        ["spiffe://european-libraries.evil/node/fr-bnf"],
        ["spiffe://european-libraries/node/"],
        ["spiffe://european-libraries/node/fr-bnf/admin"],
        ["spiffe://european-libraries/node/FR"],
        ["spiffe://european-libraries/admin/fr-bnf"],
        ["https://european-libraries/node/fr-bnf"],
        ["spiffe://european-libraries/node/fr-bnf", "spiffe://european-libraries/node/de-dnb"],
        ["spiffe://european-libraries/node/fr-bnf", "https://example.org"],
    ],
)
def test_a_certificate_that_names_anything_but_one_member_is_not_trusted(uris: list[str]) -> None:
    with pytest.raises(UntrustedError, match="expected one spiffe://european-libraries/node/"):
        read_member_certificate(handmade_certificate(uris), federation=FEDERATION)


def handmade_certificate(uris: list[str]) -> bytes:
    key = create_tls_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fr-bnf")])
    alternatives = x509.SubjectAlternativeName(
        [x509.DNSName("fr-bnf"), *map(x509.UniformResourceIdentifier, uris)]
    )
    builder = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(alternatives, critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_foreign_federations_certificate_is_refused_by_name() -> None:
    authority = create_authority("other-federation", now=NOW)
    request = certificate_request(create_tls_key(), member_id="fr-bnf")
    pem = issue_member_certificate(
        authority, request, federation="other-federation", member_id="fr-bnf", now=NOW
    )
    with pytest.raises(UntrustedError, match="names 'spiffe://other-federation/node/fr-bnf'"):
        read_member_certificate(pem, federation=FEDERATION)


def test_a_root_certificate_is_no_members_certificate(authority: Authority) -> None:
    with pytest.raises(UntrustedError, match="names no member"):
        read_member_certificate(authority.certificate_pem, federation=FEDERATION)


def test_bytes_that_are_no_certificate_are_not_trusted() -> None:
    with pytest.raises(UntrustedError, match="names no member"):
        read_member_certificate(b"-----BEGIN CERTIFICATE-----\nAAAA\n", federation=FEDERATION)


# Requests


def test_only_the_key_of_a_request_is_used(authority: Authority) -> None:
    key = create_tls_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "de-dnb")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier(f"spiffe://{FEDERATION}/node/de-dnb"),
                    x509.DNSName(SERVER_NAME),
                ]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    pem = issue_member_certificate(
        authority, greedy, federation=FEDERATION, member_id="fr-bnf", now=NOW
    )
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.public_key() == key.public_key()
    assert names_in(pem) == [
        x509.UniformResourceIdentifier("spiffe://european-libraries/node/fr-bnf")
    ]
    assert "de-dnb" not in certificate.subject.rfc4514_string()
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.critical) == (False, True)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_a_request_for_another_kind_of_key_is_refused(
    authority: Authority,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fr-bnf")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    with pytest.raises(RejectedError, match="expected an ECDSA key on the curve P-256"):
        issue_for(authority, request.public_bytes(Encoding.PEM))


def test_a_request_for_somebody_elses_key_is_refused(authority: Authority) -> None:
    mine, theirs = create_tls_key(), create_tls_key()
    request = x509.load_pem_x509_csr(certificate_request(mine, member_id="fr-bnf"))
    point, their_point = (
        key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        for key in (mine, theirs)
    )
    der = request.public_bytes(Encoding.DER).replace(point, their_point)
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n%b-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(RejectedError, match="not signed by the key it names"):
        issue_for(authority, pem % base64.encodebytes(der))


def test_a_request_with_any_bit_changed_gives_no_other_key_a_certificate(
    authority: Authority,
) -> None:
    key = create_tls_key()
    request = x509.load_pem_x509_csr(certificate_request(key, member_id="fr-bnf"))
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n%b-----END CERTIFICATE REQUEST-----\n"
    for changed in flipped(request.public_bytes(Encoding.DER)):
        with contextlib.suppress(RejectedError):  # the signature's padding count is not signed
            issued = issue_for(authority, pem % base64.encodebytes(changed))
            assert x509.load_pem_x509_certificate(issued).public_key() == key.public_key()


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_certificate_with_any_bit_changed_is_read_or_refused_and_nothing_else(
    authority: Authority,
) -> None:
    certificate = x509.load_pem_x509_certificate(member_certificate(authority))
    pem = b"-----BEGIN CERTIFICATE-----\n%b-----END CERTIFICATE-----\n"
    for changed in flipped(certificate.public_bytes(Encoding.DER)):
        with contextlib.suppress(UntrustedError):
            read_member_certificate(pem % base64.encodebytes(changed), federation=FEDERATION)


def flipped(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 500, b"-----BEGIN CERTIFICATE REQUEST"])
def test_bytes_that_are_no_request_are_refused(authority: Authority, data: bytes) -> None:
    with pytest.raises(RejectedError, match="certificate request: cannot be read"):
        issue_for(authority, data)


def test_a_request_that_is_too_long_is_refused_unread(authority: Authority) -> None:
    request = certificate_request(create_tls_key(), member_id="fr-bnf")
    with pytest.raises(RejectedError, match="8,193 bytes came, at most 8,192"):
        issue_for(authority, request.ljust(MAX_REQUEST_BYTES + 1, b"\n"))


def issue_for(authority: Authority, request: bytes) -> bytes:
    return issue_member_certificate(
        authority, request, federation=FEDERATION, member_id="fr-bnf", now=NOW
    )


# The coordinator


def test_the_coordinators_certificate_verifies_under_every_name_it_was_given(
    authority: Authority,
) -> None:
    pem = server_certificate(authority, "tapestry.example.org", "203.0.113.7", "2001:db8::1")
    for name in (SERVER_NAME, "localhost", "tapestry.example.org"):
        verify_server(authority.certificate_pem, pem, x509.DNSName(name))
    for address in ("127.0.0.1", "203.0.113.7", "2001:db8::1"):
        verify_server(authority.certificate_pem, pem, x509.IPAddress(ipaddress.ip_address(address)))
    with pytest.raises(VerificationError):
        verify_server(authority.certificate_pem, pem, x509.DNSName("elsewhere.example.org"))
    with pytest.raises(VerificationError):
        verify_server(
            authority.certificate_pem,
            pem,
            x509.DNSName(SERVER_NAME),
            at=NOW + timedelta(days=91),
        )


def test_a_host_named_twice_is_in_the_certificate_once(authority: Authority) -> None:
    pem = server_certificate(authority, "localhost", "127.0.0.1", "LOCALHOST", SERVER_NAME)
    assert names_in(pem) == [
        x509.DNSName(SERVER_NAME),
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]


@pytest.mark.parametrize(
    "host", ["", "example.org:8443", "https://example.org", "*.example.org", "[::1]", "bücher.de"]
)
def test_a_host_that_is_neither_name_nor_address_is_refused(
    authority: Authority, host: str
) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        server_certificate(authority, host)


# openssl agrees


@needs_openssl
@pytest.mark.parametrize("role", ["sslclient", "sslserver"])
def test_openssl_verifies_the_chain_strictly(
    authority: Authority, tmp_path: Path, role: str
) -> None:
    pem = member_certificate(authority) if role == "sslclient" else server_certificate(authority)
    (tmp_path / "root.crt").write_bytes(authority.certificate_pem)
    (tmp_path / "leaf.crt").write_bytes(pem)
    command = ["openssl", "verify", "-x509_strict", "-attime", str(int(NOW.timestamp()))]
    command += ["-purpose", role, "-CAfile", "root.crt", "leaf.crt"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == "leaf.crt: OK\n", result.stderr


@needs_openssl
def test_openssl_computes_the_same_fingerprint(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "root.crt").write_bytes(authority.certificate_pem)
    command = ["openssl", "x509", "-in", "root.crt", "-noout", "-fingerprint", "-sha256"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    digest = fingerprint(authority.certificate_pem)
    assert result.stdout.strip().endswith("=" + digest.hex(":").upper())
    assert "=" + format_fingerprint(digest) + ":" in result.stdout


# Fingerprints and names


def test_a_fingerprint_is_shown_short_enough_to_read_aloud() -> None:
    shown = format_fingerprint(bytes(range(0xA0, 0xC0)))
    assert shown == "A0:A1:A2:A3:A4:A5:A6:A7:A8:A9:AA:AB:AC:AD:AE:AF"


def test_a_fingerprint_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected -----BEGIN CERTIFICATE-----"):
        fingerprint(b"\x30\x82")


@pytest.mark.parametrize("text", ["a", "7", "fr-bnf", "a" * 64, "x--y"])
def test_a_slug_can_name_a_member_and_a_federation(text: str) -> None:
    assert check_member_id(text) == text
    assert check_federation(text) == text


@pytest.mark.parametrize(
    "text", ["", "FR-BNF", "-a", "a-", "a" * 65, "fr bnf", "fr/bnf", "fr-bnf\n", "été", "../x"]
)
def test_other_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="such as fr-bnf"):
        check_member_id(text)
    with pytest.raises(ConfigError, match="such as european-libraries"):
        check_federation(text)
    with pytest.raises(ConfigError):
        certificate_request(create_tls_key(), member_id=text)
