"""Whether a checkpoint is what its federation published; needs neither torch nor network.

In order: signatures and lineage, every file's size and SHA-256, the parameter vector's own root,
the card. The first wrong thing is named.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tapestry.checkpoints.ancestry import require_ancestry
from tapestry.checkpoints.folder import (
    CARD_FILE,
    OWN_FILES,
    file_entry,
    read_envelope,
    read_lineage,
)
from tapestry.checkpoints.manifest import Card, FileEntry, Lineage, Manifest, verify_lineage
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.errors import UntrustedError

FEWEST_DIGITS = 16
"""Of a federation's identity: 64 bits, which nobody can aim at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint that passed."""

    folder: Path
    manifest: Manifest
    manifest_digest: str
    genesis_digest: str
    lineage: Lineage
    card: Card


def verify_checkpoint(folder: Path, *, federation: str | None = None) -> VerifiedCheckpoint:
    """Verify the published checkpoint in `folder`.

    Args:
        folder: A published folder, or a copy of one.
        federation: Hex genesis digest that the caller expects, or at least 16 digits of it.
            Without it the answer is "unchanged since that coordinator signed it", and the caller
            compares the federation's identity by other means.

    Raises:
        UntrustedError: Something is missing, changed, added, or signed by somebody else.
    """
    lineage = verify_content(folder, federation=federation)
    card = _verify_card(folder, lineage)
    return VerifiedCheckpoint(
        folder=folder,
        manifest=lineage.newest,
        manifest_digest=lineage.newest_digest,
        genesis_digest=lineage.genesis_digest,
        lineage=lineage,
        card=card,
    )


def verify_content(folder: Path, *, federation: str | None = None) -> Lineage:
    """Verify what the manifest of a checkpoint says, without the card; return its lineage.

    Arguments and refusals are those of `verify_checkpoint`.
    """
    if federation is not None and len(federation) < FEWEST_DIGITS:
        raise ValueError(f"{len(federation)} digits do not name a federation: {FEWEST_DIGITS} do")
    lineage = verify_lineage(read_lineage(folder))
    if federation is not None and not lineage.genesis_digest.startswith(federation.lower()):
        raise UntrustedError(
            f"{folder}: checkpoint of another federation: its identity is "
            f"{lineage.genesis_digest[:16]}, expected {federation[:16]}"
        )
    manifest = lineage.newest
    with ThreadPoolExecutor(1, thread_name_prefix="hash-vector") as beside:
        # The model is hashed twice, as a file and by fragments: on two cores in the time of once.
        vector = beside.submit(_verify_vector, folder, manifest)
        for entry in manifest.files:
            _verify_file(folder, entry)
        if manifest.step is not None and (folder / manifest.step.name).exists():
            _verify_file(folder, manifest.step)
        vector.result()
    require_ancestry(folder, lineage)
    return lineage


def _verify_vector(folder: Path, manifest: Manifest) -> None:
    model = open_vector_file(folder / MODEL_FILE)
    if model.layout.digest != manifest.layout or model.layout.elements != manifest.elements:
        raise UntrustedError(f"{folder / MODEL_FILE}: its tensors are not those of the manifest")
    if model.root().hex() != manifest.vector_root:
        raise UntrustedError(f"{folder / MODEL_FILE}: the vector's root is not the manifest's")


def _verify_file(folder: Path, entry: FileEntry, earlier: Sequence[FileEntry] = ()) -> None:
    """Refuse a file that is neither `entry` nor one of the `earlier` ones in its place."""
    path = folder / entry.name
    if path.is_symlink() or not path.is_file():
        if any(e.size_bytes == 0 for e in earlier):
            return
        raise UntrustedError(f"{path}: missing, or not a plain file; fetch the checkpoint again")
    found = file_entry(folder, entry.name)
    if found == entry or found in earlier:
        return
    if found.size_bytes != entry.size_bytes:
        raise UntrustedError(
            f"{path}: {found.size_bytes:,} bytes, the manifest says {entry.size_bytes:,}; "
            "fetch the checkpoint again"
        )
    raise UntrustedError(
        f"{path}: changed: SHA-256 {found.digest[:16]}, the manifest says "
        f"{entry.digest[:16]}; fetch the checkpoint again"
    )


def _verify_card(folder: Path, lineage: Lineage) -> Card:
    """Verify the card and that no file is in the folder which nobody signed.

    A coordinator may renew the card while it is read: if it did, the new one counts.
    """
    while True:
        envelope = read_envelope(folder / CARD_FILE, what="card")
        card = Card.opened(envelope, public_key=lineage.coordinator_key, what="card")
        if card.manifest != lineage.newest_digest:
            raise UntrustedError(f"{folder / CARD_FILE}: the card of another checkpoint")
        try:
            require_card_files(folder, card)
            _refuse_unlisted(folder, lineage.newest, card)
        except UntrustedError:
            if read_envelope(folder / CARD_FILE, what="card") == envelope:
                raise
        else:
            return card


def require_card_files(folder: Path, card: Card) -> None:
    """Refuse files in `folder` that are neither the card's nor those that it replaces.

    Raises:
        UntrustedError: With the first such file.
    """
    for entry in card.files:
        _verify_file(folder, entry, [e for e in card.replaced if e.name == entry.name])


def _refuse_unlisted(folder: Path, manifest: Manifest, card: Card) -> None:
    step = () if manifest.step is None else (manifest.step,)
    entries = (*manifest.files, *step, *card.files, *card.replaced)
    listed = {entry.name for entry in entries} | OWN_FILES
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_dir() and name not in listed):
            raise UntrustedError(
                f"{path}: not a file of this checkpoint; remove it before anything loads it"
            )
