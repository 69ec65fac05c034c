"""The ledger as files: the static ones for mirrors, and the proof in each checkpoint's folder.

All of them follow from the database and can be made again: what is missing is written at the start.
"""

from tapestry.checkpoints.manifest import Lineage
from tapestry.checkpoints.statements import payload_digest
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.ledger.folder import GENESIS_FILE
from tapestry.ledger.heads import SignedHead, open_head
from tapestry.ledger.proof import PROOF_FILE
from tapestry.storage.atomic import remove_unfinished, write_atomic
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.ledgering import StoredHead, ledger_origin
from tapestry_coordinator.registry import Registry


def write_ledger_files(
    home: CoordinatorHome, registry: Registry, genesis: Lineage, number: int
) -> None:
    """Write the static files up to the newest head, and the proof of one checkpoint.

    Raises:
        OSError: The disk is full; every file that was there is as it was.
    """
    newest = registry.ledger.head()
    if newest is not None:
        registry.ledger.write(home.ledger, _opened(newest, genesis))
        _write_proof(home, registry, genesis, number)


def make_up_ledger_files(home: CoordinatorHome, registry: Registry, genesis: Lineage) -> None:
    """Write what is missing: after a crash, a failover, or an update from an older version."""
    newest, first = registry.ledger.head(), registry.manifest(0)
    if newest is None or first is None:
        return
    home.ledger.path.mkdir(exist_ok=True)
    write_atomic(home.ledger.path / GENESIS_FILE, to_json(first))
    registry.ledger.write(home.ledger, _opened(newest, genesis))
    for folder in home.published.glob("round-*"):
        remove_unfinished((folder / PROOF_FILE).parent)
        if not (folder / PROOF_FILE).is_file():
            _write_proof(home, registry, genesis, int(folder.name.removeprefix("round-")))


def _write_proof(home: CoordinatorHome, registry: Registry, genesis: Lineage, number: int) -> None:
    folder, envelope = home.checkpoint(number), registry.manifest(number)
    if envelope is None or not folder.is_dir():
        return
    proof = proof_of(registry, genesis, envelope)
    if proof is not None:
        write_atomic(folder / PROOF_FILE, proof, through=home.published)


def proof_of(registry: Registry, genesis: Lineage, envelope: Envelope) -> bytes | None:
    """Return the proof of a manifest under a head that covers it, None if none does."""
    digest = payload_digest(envelope)
    index = registry.ledger.index_of(digest)
    head = None if index is None else registry.ledger.head_above(index)
    return None if head is None else registry.ledger.proof(digest, _opened(head, genesis))


def _opened(head: StoredHead, genesis: Lineage) -> SignedHead:
    return open_head(
        head.note,
        origin=ledger_origin(genesis),
        public_key=genesis.coordinator_key,
        what="head of the ledger",
    )
