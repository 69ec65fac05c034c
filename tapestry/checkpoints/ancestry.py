"""Where a federation comes from that goes on with the model of another.

Its genesis is a checkpoint of the older federation, with the same vector, and names it by the
digest of its manifest. `tapestry/ancestry.jsonl`, one of the signed files of every checkpoint,
holds the manifests that lead there, from the oldest federation's genesis on; each federation's
begin with its own genesis.
"""

from collections.abc import Sequence
from pathlib import Path

from tapestry.checkpoints.folder import STATEMENTS, read_envelopes
from tapestry.checkpoints.manifest import ContinuedRecord, Lineage, Manifest
from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import Envelope, to_json

ANCESTRY_FILE = f"{STATEMENTS}/ancestry.jsonl"

_MAX_BYTES = 2**30


def ancestry_lines(envelopes: Sequence[Envelope]) -> bytes:
    """Return the content of `tapestry/ancestry.jsonl`."""
    return b"".join(to_json(envelope) + b"\n" for envelope in envelopes)


def read_ancestry(folder: Path) -> list[Envelope]:
    """Return the manifests of the older federations, oldest first; none where there is no file.

    Raises:
        UntrustedError: The file cannot be read, or a line is not an envelope.
    """
    path = folder / ANCESTRY_FILE
    return read_envelopes(path, what="ancestry") if path.exists() else []


def verify_ancestry(envelopes: Sequence[Envelope]) -> list[Lineage]:
    """Return the lineages of the older federations, each of which goes on from the one before.

    Raises:
        UntrustedError: A signature or a link is wrong; the message names the line.
    """
    lineages: list[Lineage] = []
    for number, envelope in enumerate(envelopes, 1):
        claimed = Manifest.parsed(envelope.payload, what=f"ancestry, line {number}")
        if claimed.origin is None and lineages:
            lineages[-1].extend(envelope)
            continue
        lineage = Lineage(envelope)
        _require_link(lineage, lineages[-1] if lineages else None)
        lineages.append(lineage)
    return lineages


def require_ancestry(folder: Path, lineage: Lineage) -> list[Lineage]:
    """Verify where the federation of the checkpoint in `folder` comes from.

    Args:
        folder: Whose files are those of its manifest.
        lineage: Of that checkpoint, verified.

    Returns:
        The lineages of the older federations, oldest first; none if it began with itself.

    Raises:
        UntrustedError: Its genesis is not what it says it goes on from.
    """
    if lineage.origin.continues is None:
        return []
    if all(entry.name != ANCESTRY_FILE for entry in lineage.newest.files):
        raise UntrustedError(
            f"{folder}: its federation goes on from another, but {ANCESTRY_FILE} is not among the "
            "signed files"
        )
    older = verify_ancestry(read_ancestry(folder))
    _require_link(lineage, older[-1] if older else None)
    return older


def continued(lineage: Lineage) -> ContinuedRecord:
    """Return what the genesis of a federation says that goes on from the newest of `lineage`."""
    return ContinuedRecord(
        federation=lineage.origin.federation,
        genesis=lineage.genesis_digest,
        manifest=lineage.newest_digest,
        round=lineage.newest.round,
    )


def _require_link(lineage: Lineage, older: Lineage | None) -> None:
    """Refuse a federation that does not go on from the newest checkpoint of `older`."""
    says = lineage.origin.continues
    name = lineage.origin.federation
    if says != (None if older is None else continued(older)):
        raise UntrustedError(
            f"ancestry: {name} does not go on from the checkpoint that its genesis names"
        )
    if older is not None and (
        lineage.genesis.vector_root != older.newest.vector_root
        or lineage.genesis.layout != older.newest.layout
    ):
        raise UntrustedError(
            f"ancestry: the genesis of {name} has another vector than the checkpoint that it names"
        )
