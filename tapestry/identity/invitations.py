"""Invitations: one line of text that an institution pastes to become a member.

It says where the coordinator is and which root certificate to trust, and carries a token that
works once. The coordinator keeps the token's digest only. An invitation is a secret until used:
send it by a channel that you would trust with a password, and compare the root's fingerprint by
another.

The line is `tapestry-invite-1.`, base64url of canonical JSON, `.`, and the first 8 hex digits of
the SHA-256 of that JSON, by which a truncated copy is recognised; the check is no protection
against forgery.
"""

import base64
import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field

from cryptography import x509

from tapestry.errors import ConfigError
from tapestry.identity.certificates import UNREADABLE
from tapestry.identity.envelopes import canonical_json
from tapestry.identity.names import check_federation, check_member_id

TOKEN_BYTES = 32

_VERSION = 1
_PREFIX = f"tapestry-invite-{_VERSION}."
_START = re.compile(r"tapestry-invite-([0-9]{1,4})\.")
_CHECK_DIGITS = 8
_MAX_CHARACTERS = 16_384
_ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Invitation:
    """What a new member needs to know; neither token nor certificate shows in its repr.

    Raises:
        ConfigError: A name or the address is not one; ValueError for token and certificate.
    """

    federation: str
    member_id: str
    address: str
    """host:port of the coordinator; an IPv6 address stands in brackets."""
    root_certificate: bytes = field(repr=False)
    """The federation's root of trust, in DER form."""
    token: bytes = field(repr=False)
    expires_at: int
    """Unix seconds; whoever uses the invitation compares it with the time."""

    def __post_init__(self) -> None:
        check_federation(self.federation)
        check_member_id(self.member_id)
        check_address(self.address)
        try:
            x509.load_der_x509_certificate(self.root_certificate)
        except UNREADABLE as error:
            raise ValueError(f"the root certificate is not one in DER form: {error}") from error
        if len(self.token) != TOKEN_BYTES:
            raise ValueError(f"a token has {TOKEN_BYTES} bytes, this one has {len(self.token)}")

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate's DER form, to be compared by another channel."""
        return hashlib.sha256(self.root_certificate).digest()


def new_token() -> bytes:
    """Return 32 random bytes that nobody can guess."""
    return secrets.token_bytes(TOKEN_BYTES)


def token_digest(token: bytes) -> bytes:
    """Return the SHA-256 of `token`: all that the coordinator keeps of it."""
    return hashlib.sha256(token).digest()


def encode(invitation: Invitation) -> str:
    """Return `invitation` as one line of text."""
    text = canonical_json(
        {
            "address": invitation.address,
            "expires_at": invitation.expires_at,
            "federation": invitation.federation,
            "member_id": invitation.member_id,
            "root_certificate": _to_base64(invitation.root_certificate),
            "token": _to_base64(invitation.token),
        }
    )
    return f"{_PREFIX}{_to_base64(text)}.{_check(text)}"


def decode(text: str) -> Invitation:
    """Read an invitation, whatever spaces and line breaks a mail program put into it.

    Raises:
        ConfigError: It is no invitation, was truncated or altered, or needs a newer version.
    """
    line = "".join(text[: 2 * _MAX_CHARACTERS].split())
    start = _START.match(line)
    if start is None or len(line) > _MAX_CHARACTERS:
        raise ConfigError(
            f"invitation: not one, expected a line that starts with {_PREFIX!r}: "
            "paste the whole line, and nothing else"
        )
    version = int(start[1])
    if version != _VERSION:
        raise ConfigError(
            f"invitation: made by another version (form {version}, this program reads form "
            f"{_VERSION}): install the version of Tapestry that the coordinator runs"
        )
    return _read_fields(_undamaged(line[start.end() :]))


def _undamaged(text: str) -> bytes:
    body, _, check = text.partition(".")
    try:
        data = _from_base64(body)
    except ValueError:
        data = b""
    if not data or _check(data) != check:
        raise ConfigError(
            "invitation: truncated or altered on its way: paste the whole line again, "
            "or ask the coordinator's operator for a new one"
        )
    return data


def _read_fields(data: bytes) -> Invitation:
    try:
        match json.loads(data):
            case {
                "address": str(address),
                "expires_at": int(expires_at),
                "federation": str(federation),
                "member_id": str(member_id),
                "root_certificate": str(root_certificate),
                "token": str(token),
            }:
                return Invitation(
                    federation=federation,
                    member_id=member_id,
                    address=address,
                    root_certificate=_from_base64(root_certificate),
                    token=_from_base64(token),
                    expires_at=expires_at,
                )
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"invitation: not made by Tapestry ({error}): "
            "ask the coordinator's operator for a new one"
        ) from error
    raise ConfigError(
        "invitation: not made by Tapestry (a field is missing): "
        "ask the coordinator's operator for a new one"
    )


def check_address(text: str) -> None:
    """Refuse what is not host:port.

    Raises:
        ConfigError: It is not.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= 65_535:
        raise ConfigError(
            f"address {text[:80]!r}: expected host:port without a scheme, "
            "such as tapestry.example.org:8443 or [2001:db8::1]:8443"
        )


def _check(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_CHECK_DIGITS]


def _to_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_base64(text: str) -> bytes:
    padded = text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)
    return base64.b64decode(padded, validate=True)
