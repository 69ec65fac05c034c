"""What a witness does: it remembers the last head that it accepted, and follows only from there.

No I/O: whoever holds the connection brings heads, entries and proofs. A refusal is an
`UntrustedError` of one of three kinds, and with a `ForkedError` comes a file that proves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tapestry.errors import UntrustedError
from tapestry.ledger.evidence import write_evidence
from tapestry.ledger.heads import Head, SignedHead
from tapestry.ledger.merkle import Tree, verify_consistency


class ShrunkError(UntrustedError):
    """The head has fewer entries than one that was accepted: entries are gone."""


class UnprovedError(UntrustedError):
    """The head does not follow from the one that was accepted, as far as was shown."""


class ForkedError(UntrustedError):
    """The head cannot follow from the one that was accepted: there are two histories."""

    def __init__(self, message: str, *, evidence: bytes) -> None:
        """Say what was found, with the file that proves it."""
        super().__init__(message)
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class Growth:
    """What a coordinator shows for a new head: that it follows from an older one."""

    old_root: bytes
    """Of its ledger when it had as many entries as the older head."""
    path: Sequence[bytes]


def require_longer(known: SignedHead | None, new: SignedHead) -> None:
    """Refuse a head that has fewer entries than the known one, or as many and another root.

    Raises:
        ShrunkError: Fewer.
        ForkedError: As many, and others.
    """
    if known is None:
        return
    old, head = known.head, new.head
    if head.size < old.size:
        raise ShrunkError(
            f"the coordinator shows a ledger of {head.size:,} entries, this node has accepted one "
            f"of {old.size:,}: entries are gone, as after an old backup was restored; ask its "
            "operator, who can take the ledger up again from a member's copy"
        )
    if head.size == old.size and head.root != old.root:
        raise forked(known, new, Growth(head.root, ()))


def follow(known: SignedHead | None, new: SignedHead, growth: Growth) -> None:
    """Refuse a head that is not proved to follow from the known one.

    Args:
        known: Accepted last; None: nothing yet.
        new: Its signature is verified.
        growth: What the coordinator says proves it.

    Raises:
        ShrunkError: It has fewer entries.
        ForkedError: It is of another history, and that is proved.
        UnprovedError: Neither is proved.
    """
    require_longer(known, new)
    old = Head(new.head.origin, 0, Tree().root()) if known is None else known.head
    if verify_consistency(old.size, old.root, new.head.size, new.head.root, growth.path):
        return
    if known is not None and verify_consistency(
        old.size, growth.old_root, new.head.size, new.head.root, growth.path
    ):
        raise forked(known, new, growth)
    raise UnprovedError(
        f"the coordinator does not show how its ledger of {new.head.size:,} entries follows from "
        f"that of {old.size:,} which this node has accepted; ask its operator"
    )


def grow(tree: Tree, known: SignedHead | None, new: SignedHead, entries: Sequence[bytes]) -> None:
    """Add the entries between two heads to a witness's tree, if they lead from one to the other.

    That proves at once that the ledger only grew, and what it grew by.

    Args:
        tree: Of the entries up to the known head; unchanged after a refusal.
        known: Accepted last; None: nothing yet.
        new: Its signature is verified.
        entries: Leaves of the new ones, oldest first.

    Raises:
        ShrunkError: The head has fewer entries.
        ForkedError: It has as many, and others.
        UnprovedError: The entries do not lead to it: ask for a `Growth`, and call `follow`.
    """
    require_longer(known, new)
    size = tree.size
    for entry in entries:
        tree.append(entry)
    if tree.size != new.head.size or tree.root() != new.head.root:
        tree.truncate(size)
        raise UnprovedError(
            f"the entries that the coordinator shows do not lead from the {size:,} that this node "
            f"has accepted to its head of {new.head.size:,}; ask its operator"
        )


def forked(known: SignedHead, new: SignedHead, growth: Growth) -> ForkedError:
    """Return the refusal of a head, with the file that proves it.

    Args:
        known: Of the two heads the one with fewer entries, or as many.
        new: The other.
        growth: From another root than that of `known`, at its size, to `new`.

    Raises:
        ValueError: That proves nothing.
    """
    evidence = write_evidence(known, new, root=growth.old_root, path=growth.path)
    return ForkedError(
        f"the coordinator shows two histories: its first {known.head.size:,} entries have the root "
        f"{known.head.root.hex()[:16]} by one head of its own, and {growth.old_root.hex()[:16]} by "
        "another",
        evidence=evidence,
    )
