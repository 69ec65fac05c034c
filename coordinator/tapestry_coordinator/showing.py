"""What a member sees of the ledger, and what it may add below a head: its cosignature."""

import logging
from collections.abc import Mapping, Sequence

import grpc

from tapestry.errors import RejectedError
from tapestry.ledger.heads import read_head, witness_name
from tapestry.ledger.notes import Note, cosigned_at, read_note, read_signature
from tapestry.ledger.witness import Growth
from tapestry_coordinator.callers import identify
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.roster import ACTIVE, OPERATOR, Member

_log = logging.getLogger(__name__)

_FUTURE_SECONDS = 24 * 3600


class ShownLedger:
    """The ledger, as one member may see it."""

    def __init__(self, desk: Desk, member: Member) -> None:
        """For `member`, whose certificate opened the connection."""
        self._desk = desk
        self._member = member
        self._ledger = desk.registry.ledger

    def head(self) -> tuple[str, Mapping[str, bytes]]:
        """Return the newest head's note, and the raw keys of present members."""
        head = self._ledger.head()
        witnesses = {
            m.member_id: bytes.fromhex(m.signing_key)
            for m in self._desk.registry.members()
            if m.status == ACTIVE and m.role != OPERATOR
        }
        return "" if head is None else head.note, witnesses

    def entries(self, begin: int, end: int) -> Sequence[bytes]:
        """Return entries from one number up to, not including, another.

        Raises:
            RejectedError: The newest head does not reach so far.
        """
        head = self._ledger.head()
        size = 0 if head is None else head.size
        if end > size or begin > end:
            raise RejectedError(
                f"entries {begin:,} to {end:,}: the newest head of the ledger has {size:,}"
            )
        return self._ledger.entries(begin, end)

    def inclusion(self, entry: int | str, size: int) -> tuple[int, bytes, Sequence[bytes]]:
        """Return number, bytes and path of an entry.

        Raises:
            RejectedError: There is none, or not in a ledger of that size.
        """
        index = self._ledger.index_of(entry) if isinstance(entry, str) else entry
        if index is None:
            raise RejectedError(f"the ledger has no entry about {str(entry)[:16]}")
        path = self._ledger.path(index, size)
        (leaf,) = self._ledger.entries(index, index + 1)
        return index, leaf, path

    def growth(self, old_size: int, new_size: int) -> Growth:
        """Return the proof that the ledger only grew.

        Raises:
            RejectedError: No head has so many entries.
        """
        return self._ledger.growth(old_size, new_size)

    def cosign(self, size: int, line: str) -> None:
        """Keep the member's cosignature of a head; a second one changes nothing.

        Raises:
            RejectedError: It is of another head, of somebody else, or does not verify.
        """
        head = self._ledger.head(min(size, 2**53))
        if head is None:
            raise RejectedError(f"no head of the ledger has {size:,} entries")
        signature = read_signature(line, what="cosignature")
        text = read_note(head.note, what="head").text
        name = witness_name(read_head(text, what="head").origin, self._member.member_id)
        at = cosigned_at(
            Note(text, (signature,)),
            name=name,
            public_key=bytes.fromhex(self._member.signing_key),
            what="cosignature",
        )
        if at is None or at > self._desk.calendar() + _FUTURE_SECONDS:
            raise RejectedError(
                f"that is not a cosignature of {name} with the key that it enrolled with: compare "
                "the clocks, and whether this is the node that joined"
            )
        if self._ledger.cosign(size, self._member.member_id, line):
            self._desk.note_cosignature(size)
            _log.debug("%s has cosigned the ledger's %d entries", self._member.member_id, size)


def ledger_for(context: grpc.ServicerContext, desk: Desk) -> ShownLedger:
    """Return the ledger as the caller may see it.

    Raises:
        UntrustedError: The caller is no member.
    """
    return ShownLedger(desk, identify(context, desk))
