"""Invitations: what survives a mail program, and what is refused."""

import base64
import contextlib
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tapestry.errors import ConfigError
from tapestry.identity.certificates import create_authority, fingerprint
from tapestry.identity.invitations import Invitation, decode, encode, new_token, token_digest

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROOT_PEM = create_authority("european-libraries", now=NOW).certificate_pem
ROOT_DER = x509.load_pem_x509_certificate(ROOT_PEM).public_bytes(Encoding.DER)
TOKEN = bytes(range(32))


def invitation(**changes: Any) -> Invitation:
    fields: dict[str, Any] = {
        "federation": "european-libraries",
        "member_id": "fr-bnf",
        "address": "tapestry.example.org:8443",
        "root_certificate": ROOT_DER,
        "token": TOKEN,
        "expires_at": 1_772_452_800,
    }
    return Invitation(**fields | changes)


def handmade(version: int = 1, **changes: Any) -> str:
    """Write an invitation as its format is described, apart from the code that is tested."""
    fields = {
        "address": "tapestry.example.org:8443",
        "expires_at": 1_772_452_800,
        "federation": "european-libraries",
        "member_id": "fr-bnf",
        "root_certificate": base64.urlsafe_b64encode(ROOT_DER).decode().rstrip("="),
        "token": base64.urlsafe_b64encode(TOKEN).decode().rstrip("="),
    }
    kept = {name: value for name, value in (fields | changes).items() if value is not None}
    return enclose(json.dumps(kept, separators=(",", ":")).encode(), version)


def enclose(data: bytes, version: int = 1) -> str:
    body = base64.urlsafe_b64encode(data).decode().rstrip("=")
    return f"tapestry-invite-{version}.{body}.{hashlib.sha256(data).hexdigest()[:8]}"


def test_an_invitation_is_one_line_in_the_described_form() -> None:
    line = encode(invitation())
    assert line == handmade()
    assert decode(line) == invitation()
    assert len(line) < 1_500


def test_line_breaks_and_spaces_of_a_mail_program_do_no_harm() -> None:
    line = encode(invitation())
    wrapped = "\r\n  ".join(line[start : start + 70] for start in range(0, len(line), 70))
    assert decode(f"\n\t {wrapped} \n\n") == invitation()


def test_an_invitation_cut_anywhere_is_refused() -> None:
    line = encode(invitation())
    for length in range(len(line)):
        with pytest.raises(ConfigError, match=r"truncated or altered|not one"):
            decode(line[:length])
    with pytest.raises(ConfigError, match="truncated or altered"):
        decode(line[:-9])  # the whole check is gone


def test_an_invitation_with_any_character_changed_is_refused() -> None:
    line = encode(invitation())
    for place, character in enumerate(line):
        other = "B" if character != "B" else "C"
        with pytest.raises(ConfigError, match=r"^invitation: "):
            decode(line[:place] + other + line[place + 1 :])


@pytest.mark.parametrize(
    "text", ["", "hello", "https://example.org/invite", "tapestry-invite-", "x" * 100_000]
)
def test_other_text_is_no_invitation(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"expected a line that starts with 'tapestry-invite-1\.'"
    ):
        decode(text)


@pytest.mark.parametrize("line", [handmade(version=2), "tapestry-invite-12.{other form}!"])
def test_an_invitation_of_a_newer_version_says_what_to_install(line: str) -> None:
    with pytest.raises(ConfigError, match="install the version of Tapestry that the coordinator"):
        decode(line)


@pytest.mark.parametrize(
    "changes",
    [
        {"token": None},
        {"token": 7},
        {"token": "AAAA"},
        {"token": "?"},
        {"root_certificate": "AAAA"},
        {"root_certificate": ""},
        {"expires_at": "tomorrow"},
        {"expires_at": 1.5},
        {"federation": ["x"]},
    ],
)
def test_a_whole_invitation_with_a_wrong_field_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not made by Tapestry"):
        decode(handmade(**changes))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_root_certificate_with_any_bit_changed_is_read_or_refused_and_nothing_else() -> None:
    for bit in range(8 * len(ROOT_DER)):
        changed = bytearray(ROOT_DER)
        changed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ConfigError):
            decode(handmade(root_certificate=base64.urlsafe_b64encode(changed).decode()))


@pytest.mark.parametrize("data", [b"null", b"[]", b"\xff", b"{", b"[" * 5_000])
def test_a_whole_line_around_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="not made by Tapestry"):
        decode(enclose(data))


def test_a_wrong_name_in_an_invitation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"member id '\.\./root'"):
        decode(handmade(member_id="../root"))
    with pytest.raises(ConfigError, match="federation 'A/B'"):
        decode(handmade(federation="A/B"))


@pytest.mark.parametrize(
    "address", ["localhost:1", "tapestry.example.org:65535", "10.0.0.1:8443", "[2001:db8::1]:8443"]
)
def test_addresses_that_can_be_dialled_are_taken(address: str) -> None:
    assert decode(encode(invitation(address=address))).address == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "example.org",
        ":8443",
        "example.org:0",
        "example.org:65536",
        "example.org:port",
        "https://example.org:8443",
        "unix:/tmp/socket",
        "2001:db8::1:8443",
        "example.org:8443\n",
        "example.org:८४४३",
    ],
)
def test_an_address_that_cannot_be_dialled_says_how_one_looks(address: str) -> None:
    with pytest.raises(ConfigError, match=r"expected host:port .* such as tapestry\.example\.org"):
        invitation(address=address)


def test_a_token_of_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError, match="32 bytes, this one has 31"):
        invitation(token=TOKEN[:-1])


def test_the_fingerprint_is_that_of_the_root_certificate() -> None:
    assert invitation().root_fingerprint == fingerprint(ROOT_PEM)


def test_another_root_shows_in_the_fingerprint() -> None:
    other_pem = create_authority("european-libraries", now=NOW).certificate_pem
    other_der = x509.load_pem_x509_certificate(other_pem).public_bytes(Encoding.DER)
    swapped = decode(encode(invitation(root_certificate=other_der)))
    assert swapped.root_fingerprint == fingerprint(other_pem) != fingerprint(ROOT_PEM)


def test_an_invitation_shows_who_is_invited_and_not_the_token() -> None:
    shown = repr(invitation())
    assert "fr-bnf" in shown
    assert "token" not in shown
    assert repr(TOKEN)[2:10] not in shown


def test_tokens_are_random_and_their_digest_is_sha_256() -> None:
    assert len(new_token()) == 32
    assert new_token() != new_token()
    assert token_digest(TOKEN) == hashlib.sha256(TOKEN).digest()
