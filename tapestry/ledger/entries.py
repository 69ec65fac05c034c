"""One entry of a federation's ledger: what happened, and the digest of the statement about it.

The statements themselves lie elsewhere; whoever has one finds its digest here. An entry is
canonical JSON with sorted keys and neither white space nor floating point, so that everybody who
knows an event makes the same leaf of it:

`{"kind":"plan","payload_digest":"ab…","round":7,"version":1}`
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from tapestry.errors import UntrustedError

PLAN = "plan"
CONTRIBUTION = "contribution"
EXCLUSION = "exclusion"
CHECKPOINT = "checkpoint"
MEMBER = "member"
KINDS = (PLAN, CONTRIBUTION, EXCLUSION, CHECKPOINT, MEMBER)
"""A later version may add some: readers keep what they do not know, and draw nothing from it."""

MAX_ENTRY_BYTES = 2048
VERSION = 1

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MEMBER_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_KIND = re.compile(r"[a-z][a-z-]{0,31}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What happened."""

    kind: str
    round: int
    """Of the federation; 0 for what belongs to none."""
    payload_digest: str
    """Hex SHA-256 of the payload of the statement that was signed about it: plan, contribution,
    manifest. Of an exclusion, that of `exclusion_digest`; of a member, of its raw signing key."""
    member_id: str = ""
    """Whom it concerns; empty for plans and checkpoints."""

    def leaf(self) -> bytes:
        """Return the bytes that the ledger's leaf holds."""
        value: dict[str, Any] = {
            "kind": self.kind,
            "payload_digest": self.payload_digest,
            "round": self.round,
            "version": VERSION,
        }
        if self.member_id:
            value["member_id"] = self.member_id
        return canonical(value)


def read_entry(data: bytes, *, what: str) -> Entry:
    """Read a leaf's bytes.

    Raises:
        UntrustedError: It is not an entry in its one spelling.
    """
    if len(data) > MAX_ENTRY_BYTES:
        raise UntrustedError(f"{what}: {len(data):,} bytes, an entry has at most {MAX_ENTRY_BYTES}")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{what}: not JSON; discard it") from error
    match value:
        case {
            "kind": str(kind),
            "payload_digest": str(digest),
            "round": int(number),
            "version": int(version),
            **rest,
        }:
            member_id = rest.get("member_id", "")
        case _:
            raise UntrustedError(f"{what}: expected kind, payload_digest, round and version")
    is_sound = (
        _KIND.fullmatch(kind) is not None
        and _DIGEST.fullmatch(digest) is not None
        and not isinstance(number, bool)
        and 0 <= number <= 2**53
        and version == VERSION
        and isinstance(member_id, str)
        and (member_id == "" or _MEMBER_ID.fullmatch(member_id) is not None)
    )
    entry = Entry(kind=kind, round=number, payload_digest=digest, member_id=str(member_id))
    if not is_sound or entry.leaf() != data:
        raise UntrustedError(f"{what}: not an entry in its one spelling; discard it")
    return entry


def exclusion_digest(*, round_number: int, member_id: str, kind: str, reason: str) -> str:
    """Return the digest that stands for an exclusion, which nobody signs on its own."""
    value = {"kind": kind, "member_id": member_id, "reason": reason, "round": round_number}
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object in its one spelling, that of RFC 8785."""
    return rfc8785.dumps(dict(value))
