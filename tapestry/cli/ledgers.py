"""Copies of a ledger as the commands read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestry.checkpoints.folder import read_envelope, read_lineage
from tapestry.checkpoints.manifest import Lineage
from tapestry.checkpoints.verify import FEWEST_DIGITS
from tapestry.errors import ConfigError, UntrustedError
from tapestry.ledger.entries import read_entry
from tapestry.ledger.evidence import write_evidence
from tapestry.ledger.folder import GENESIS_FILE, LedgerFolder, StoredLedger
from tapestry.ledger.heads import origin_of


@dataclass(frozen=True, slots=True)
class OpenedLedger:
    """A copy whose entries have the root that the coordinator signed."""

    folder: LedgerFolder
    genesis: Lineage
    stored: StoredLedger


def opened_ledger(path: Path, *, federation: str | None = None) -> OpenedLedger:
    """Read a copy of a ledger.

    Args:
        path: It, or a folder with it in `ledger/`.
        federation: Digits of the genesis digest that is expected.

    Raises:
        ConfigError: There is none.
        UntrustedError: It is damaged, or another federation's.
    """
    folder = next(
        (one for one in (LedgerFolder(path), LedgerFolder(path / "ledger")) if _is_here(one)), None
    )
    if folder is None:
        raise ConfigError(
            f"{path}: no ledger there: name a coordinator's or a node's folder, or a mirror with "
            "`checkpoint` and `tile/` in it"
        )
    genesis = read_genesis(folder.path, federation=federation)
    origin = origin_of(genesis.origin.federation, genesis.genesis_digest)
    stored = folder.read(origin=origin, public_key=genesis.coordinator_key)
    return OpenedLedger(folder, genesis, stored)


def _is_here(folder: LedgerFolder) -> bool:
    return folder.head_file.is_file()


def read_genesis(path: Path, *, federation: str | None = None) -> Lineage:
    """Return the genesis manifest that lies at `path`, verified in itself.

    Args:
        path: A copy of the ledger, a checkpoint's folder, or the manifest.
        federation: Digits of its digest that are expected.

    Raises:
        ConfigError: There is none, or too few digits.
        UntrustedError: It is damaged, or another federation's.
    """
    require_digits(federation)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if path.is_file():
        envelope = read_envelope(path, what="genesis manifest")
    elif (path / GENESIS_FILE).is_file():
        envelope = read_envelope(path / GENESIS_FILE, what="genesis manifest")
    else:
        envelope = read_lineage(path)[0]
    genesis = Lineage(envelope)
    if federation is not None and not genesis.genesis_digest.startswith(federation.lower()):
        raise UntrustedError(
            f"{path}: of another federation: its identity is {genesis.genesis_digest[:16]}, "
            f"expected {federation[:16]}"
        )
    return genesis


def require_digits(federation: str | None) -> None:
    """Refuse too few digits of a federation's identity.

    Raises:
        ConfigError: They do not name one.
    """
    if federation is not None and len(federation) < FEWEST_DIGITS:
        raise ConfigError(
            f"--federation {federation}: give at least {FEWEST_DIGITS} digits of the identity"
        )


def head_table(ledger: OpenedLedger) -> dict[str, Any]:
    """Return what the head says, for people and programs.

    Cosignatures are named as they stand there: whose keys they are is not known here.
    """
    head, note = ledger.stored.head.head, ledger.stored.head.note
    prefix = f"{head.origin}/"
    return {
        "origin": head.origin,
        "size": head.size,
        "root": head.root.hex(),
        "cosigned": [
            one.name.removeprefix(prefix) for one in note.signatures if one.name.startswith(prefix)
        ],
    }


def entry_rows(ledger: OpenedLedger, *, last: int) -> list[dict[str, Any]]:
    """Return the newest entries, oldest first."""
    first = max(0, len(ledger.stored.entries) - last)
    found = [
        read_entry(leaf, what=f"entry {index}")
        for index, leaf in enumerate(ledger.stored.entries[first:], first)
    ]
    return [
        {
            "index": index,
            "kind": entry.kind,
            "round": entry.round,
            "member_id": entry.member_id,
            "digest": entry.payload_digest,
        }
        for index, entry in enumerate(found, first)
    ]


def fork_between(first: OpenedLedger, second: OpenedLedger) -> bytes | None:
    """Return the proof that two copies are of two histories; None if they are of one.

    Args:
        first: The shorter, or one of two of equal length.
        second: The other.

    Raises:
        UntrustedError: They are of two federations.
    """
    if first.genesis.genesis_digest != second.genesis.genesis_digest:
        raise UntrustedError("the two are of different federations: there is nothing to compare")
    size, tree = first.stored.head.head.size, second.stored.tree
    root = tree.root(size)
    if root == first.stored.head.head.root:
        return None
    path = tree.consistency(size)
    return write_evidence(first.stored.head, second.stored.head, root=root, path=path)
