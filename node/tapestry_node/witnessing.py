"""The node as a witness of the federation's ledger: it remembers, compares, and cosigns.

It keeps a copy of the ledger and the last head that it accepted. A new head counts only if the
entries between the two lead from one to the other; then the node signs that, once. A coordinator
that shows fewer entries than before, or others, is refused, and where two histories are proved the
proof is written down for everybody.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import Receipt
from tapestry.errors import RejectedError, UnavailableError, UntrustedError
from tapestry.identity.envelopes import from_json, to_json
from tapestry.identity.keys import key_id
from tapestry.identity.membership import Membership
from tapestry.ledger.entries import CHECKPOINT, CONTRIBUTION, MEMBER, PLAN, Entry, read_entry
from tapestry.ledger.folder import GENESIS_FILE
from tapestry.ledger.heads import SignedHead, cosign_head, open_head, origin_of
from tapestry.ledger.merkle import Tree
from tapestry.ledger.tiles import TILE_WIDTH
from tapestry.ledger.witness import (
    ForkedError,
    Growth,
    ShrunkError,
    UnprovedError,
    follow,
    forked,
    grow,
    require_longer,
)
from tapestry.storage.atomic import write_atomic
from tapestry.wire.ledger import ShowsLedger
from tapestry_node.home import NodeHome
from tapestry_node.keeping import CONTRIBUTION_SUFFIX
from tapestry_node.lineage import LineageFile

_log = logging.getLogger(__name__)


class Witness:
    """One node's view of its federation's ledger."""

    def __init__(
        self,
        home: NodeHome,
        membership: Membership,
        key: Ed25519PrivateKey,
        *,
        shown: Callable[[], ShowsLedger],
        clock: Callable[[], float],
    ) -> None:
        """Begin where the last process stood.

        Args:
            home: Of the node.
            membership: What it has pinned.
            key: With which it cosigns.
            shown: Returns the ledger over the connection that there is.
            clock: Unix seconds.
        """
        self._home = home
        self._member_id = membership.member_id
        self._coordinator_key = bytes.fromhex(membership.coordinator_key)
        self._origin = origin_of(membership.federation, membership.genesis)
        self._key = key
        self._shown = shown
        self._clock = clock
        self._known: SignedHead | None = None
        self._tree = Tree()
        self._tail: list[bytes] = []
        """Entries since the last full tile."""
        self._checkpoints: set[str] = set()
        self._plans: set[str] = set()
        self._keys: dict[str, str] = {}
        """Of each member, the id of the key with which it joined last."""
        self._owed: dict[int, Receipt] = {}
        """Receipts whose entries no accepted head covers, by number of the entry."""
        self._cosigned = -1
        self._is_loaded = False

    def take(self, note: str) -> None:
        """Accept the head that the coordinator shows, and cosign it; once it is known, nothing.

        Raises:
            UntrustedError: It does not follow from the one that this node has accepted.
            UnavailableError: The line broke; call again.
        """
        self._load()
        if not note:
            raise UntrustedError(
                "the coordinator shows no ledger: it is of an older version, or something stands "
                "in between; nothing is trained for it. Ask its operator"
            )
        new, known = self._opened(note), self._known
        if known is not None and new.head.size < known.head.size:
            # It may have been told before the one that this node has asked for since.
            new = self._opened(self._shown().head()[0])
        if known is None or new.head.text != known.head.text:
            self._extend(new)
            _log.debug("the ledger has %d entries", new.head.size)
        if self._cosigned != new.head.size:
            self._cosign(new)

    def require(self, manifest_digest: str, round_number: int) -> None:
        """Refuse a checkpoint that the accepted ledger does not have.

        Raises:
            UntrustedError: With what is missing.
        """
        if manifest_digest not in self._checkpoints:
            raise UntrustedError(
                f"checkpoint {round_number}, as the coordinator shows it, is not in its ledger of "
                f"{self._tree.size:,} entries: not taken; ask its operator"
            )
        for index, receipt in self._owed.items():
            if max(receipt.round, receipt.used_round) <= round_number:
                raise UntrustedError(
                    f"the coordinator has signed that this node's contribution to round "
                    f"{receipt.round} is entry {index:,} of its ledger, which has checkpoint "
                    f"{round_number} already and not that entry; ask its operator"
                )

    def require_plan(self, digest: str, round_number: int) -> None:
        """Refuse a plan that the accepted ledger does not have.

        Raises:
            UntrustedError: It has not.
        """
        if digest not in self._plans:
            raise UntrustedError(
                f"the plan of round {round_number}, as the coordinator shows it, is not in its "
                f"ledger of {self._tree.size:,} entries: not followed; ask its operator"
            )

    def require_witnesses(self, count: int) -> None:
        """Wait until enough members, this one among them, have cosigned what is built upon.

        Raises:
            UnavailableError: Not yet.
        """
        others: list[str] = []
        if count > 1:
            note, keys = self._shown().head()
            self.take(note)
            known = {
                member_id: key
                for member_id, key in keys.items()
                if member_id != self._member_id and self._is_of(member_id, key)
            }
            others = list(self._opened(note).cosigned_by(known, what="head of the ledger"))
        if count > 1 + len(others):
            raise UnavailableError(
                f"{1 + len(others)} of {count} members have cosigned the ledger up to here "
                f"({', '.join([self._member_id, *others])}): nothing is trained before the others "
                "have ([ledger] witnesses of the federation's policy)"
            )

    def expect(self, receipt: Receipt) -> None:
        """Remember that the ledger is to have a contribution's entry; look, if it should by now.

        Raises:
            UntrustedError: There is something else.
        """
        self._load()
        if receipt.ledger_index is None:
            return
        self._owed[receipt.ledger_index] = receipt
        if receipt.ledger_index < self._tree.size:
            self._settle(receipt.ledger_index, self._leaf(receipt.ledger_index))

    # The head

    def _opened(self, note: str) -> SignedHead:
        return open_head(
            note,
            origin=self._origin,
            public_key=self._coordinator_key,
            what="head of the ledger",
        )

    def _extend(self, new: SignedHead) -> None:
        """Follow the ledger up to a head, or refuse it."""
        begin = self._tree.size
        try:
            leaves = self._grown(new)
            self._require_known(new)
            entries = [read_entry(one, what=f"entry {i}") for i, one in enumerate(leaves, begin)]
            self._tail += leaves
            self._keep(new)
        except ForkedError as error:
            self._tree.truncate(begin)
            raise self._put_down(error) from error
        except BaseException:
            self._tree.truncate(begin)
            del self._tail[begin - begin // TILE_WIDTH * TILE_WIDTH :]
            raise
        self._known = new
        self._note(entries, leaves, begin)

    def _grown(self, new: SignedHead) -> list[bytes]:
        """Add the new entries to the tree; return them."""
        try:
            require_longer(self._known, new)
        except ShrunkError:
            self._require_prefix(new)
            raise
        leaves = list(self._shown().entries(self._tree.size, new.head.size))
        try:
            grow(self._tree, self._known, new, leaves)
        except UnprovedError:
            if self._known is not None:
                growth = self._shown().growth(self._known.head.size, new.head.size)
                follow(self._known, new, growth)
            raise
        return leaves

    def _require_prefix(self, new: SignedHead) -> None:
        """Tell a ledger that lost its end from one that is another: of that there is proof."""
        known, size = self._known, new.head.size
        if known is not None and size <= self._tree.size and self._tree.root(size) != new.head.root:
            mine = Growth(self._tree.root(size), self._tree.consistency(size, known.head.size))
            raise forked(new, known, mine)

    def _require_known(self, new: SignedHead) -> None:
        """After the copy was lost: refuse entries that are not those of the accepted head."""
        known = self._known
        if known is None or self._tree.root(known.head.size) == known.head.root:
            return
        size = known.head.size
        raise forked(known, new, Growth(self._tree.root(size), self._tree.consistency(size)))

    def _put_down(self, error: ForkedError) -> UntrustedError:
        """Write the evidence of two histories; return what is said about it."""
        path = self._home.folder / f"ledger-evidence-{int(self._clock())}.json"
        write_atomic(path, error.evidence)
        message = (
            f"{error}. Nothing is trained any more. The proof is in {path}: give it to the other "
            "members; `tapestry ledger evidence` verifies it anywhere"
        )
        _log.error("%s", message)
        return UntrustedError(message)

    def _cosign(self, head: SignedHead) -> None:
        signature = cosign_head(
            head.head, member_id=self._member_id, key=self._key, now=self._clock()
        )
        try:
            self._shown().cosign(head.head.size, signature.line)
        except RejectedError as error:
            _log.warning("the cosignature of the ledger's head was not taken: %s", error)
        self._cosigned = head.head.size
        if all(one.name != signature.name for one in head.note.signatures):
            self._home.ledger.write_head(head.with_cosignatures([signature]))

    def _is_of(self, member_id: str, key: bytes) -> bool:
        """Whether the ledger says that a member joined with that key."""
        return len(key) == 32 and self._keys.get(member_id) == key_id(key)

    # What the entries say

    def _note(self, entries: Sequence[Entry], leaves: Sequence[bytes], begin: int) -> None:
        for index, entry in enumerate(entries, begin):
            if entry.kind == CHECKPOINT:
                self._checkpoints.add(entry.payload_digest)
            elif entry.kind == PLAN:
                self._plans.add(entry.payload_digest)
            elif entry.kind == MEMBER:
                self._keys[entry.member_id] = entry.payload_digest
            if index in self._owed:
                self._settle(index, leaves[index - begin])

    def _settle(self, index: int, leaf: bytes) -> None:
        """Compare an entry with the receipt that promises it."""
        receipt = self._owed.pop(index)
        entry = read_entry(leaf, what=f"entry {index}")
        if (entry.kind, entry.payload_digest) != (CONTRIBUTION, receipt.contribution):
            raise UntrustedError(
                f"the coordinator has signed that this node's contribution to round "
                f"{receipt.round} is entry {index:,} of its ledger, and that is a {entry.kind} "
                f"there: keep {self._home.receipts} and {self._home.ledger.path}, and ask its "
                "operator"
            )

    # The copy on the disk

    def _keep(self, head: SignedHead) -> None:
        """Write the copy up to a head, durably; forget entries that are in full tiles."""
        self._home.ledger.write(self._tree, self._leaves, head)
        full = self._tree.size // TILE_WIDTH * TILE_WIDTH
        self._tail = self._leaves(full, self._tree.size)
        genesis = self._home.ledger.path / GENESIS_FILE
        if not genesis.is_file() and self._home.lineage.is_file():
            write_atomic(genesis, to_json(LineageFile(self._home.lineage).first()))

    def _leaves(self, begin: int, end: int) -> list[bytes]:
        """Return entries that are in memory, or in the copy's full tiles."""
        first = self._tree.size - len(self._tail)
        if begin >= first:
            return self._tail[begin - first : end - first]
        return self._home.ledger.bundle(begin // TILE_WIDTH)[begin % TILE_WIDTH :][: end - begin]

    def _leaf(self, index: int) -> bytes:
        (leaf,) = self._leaves(index, index + 1)
        return leaf

    def _load(self) -> None:
        """Take up the copy, once; if its entries are damaged, only the head, and fetch them."""
        if self._is_loaded:
            return
        self._owed = {
            receipt.ledger_index: receipt
            for receipt in self._receipts()
            if receipt.ledger_index is not None
        }
        folder = self._home.ledger
        if folder.head_file.exists():
            known = folder.read_head(origin=self._origin, public_key=self._coordinator_key)
            try:
                stored = folder.read(origin=self._origin, public_key=self._coordinator_key)
            except UntrustedError as error:
                _log.warning("%s; fetching the ledger again", error)
                folder.forget_tiles()
            else:
                self._tree = stored.tree
                self._tail = stored.entries[len(stored.entries) // TILE_WIDTH * TILE_WIDTH :]
                entries = [read_entry(one, what="entry") for one in stored.entries]
                self._note(entries, stored.entries, 0)
            self._known = known
        self._is_loaded = True

    def _receipts(self) -> list[Receipt]:
        return [
            _receipt(path)
            for path in sorted(self._home.receipts.glob("*.json"))
            if not path.stem.endswith(CONTRIBUTION_SUFFIX)
        ]


def _receipt(path: Path) -> Receipt:
    return Receipt.parsed(from_json(path.read_bytes(), what=str(path)).payload, what=str(path))
