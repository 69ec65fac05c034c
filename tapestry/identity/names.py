"""How members and federations are named."""

import re

from tapestry.errors import ConfigError

_MEMBER_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_FEDERATION = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?")


def is_member_id(text: str) -> bool:
    """Whether `text` can name a member."""
    return _MEMBER_ID.fullmatch(text) is not None


def check_member_id(text: str) -> str:
    """Return `text` if it can name a member, else say what a member id looks like."""
    if not is_member_id(text):
        raise ConfigError(
            f"member id {text[:80]!r}: expected 1 to 64 lower-case letters, digits and inner "
            "hyphens: choose a slug such as fr-bnf"
        )
    return text


def check_federation(text: str) -> str:
    """Return `text` if it can name a federation (a SPIFFE trust domain), else say how one looks."""
    if _FEDERATION.fullmatch(text) is None:
        raise ConfigError(
            f"federation {text[:80]!r}: expected 1 to 64 lower-case letters, digits, inner dots "
            "and hyphens: choose a name such as european-libraries"
        )
    return text
