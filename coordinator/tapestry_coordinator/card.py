"""The model card of a checkpoint, under one signature.

README.md, results and plot, the bill of materials, and `model.sig`, which signs the checkpoint once
more in the form of OpenSSF model signing.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import CARD_FILE, STATEMENTS, file_entry, read_envelope
from tapestry.checkpoints.manifest import Card, CardEntry, DissentEntry, FileEntry, Lineage
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.storage.atomic import TEMPORARY_SUFFIX, sync_path, write_atomic
from tapestry_coordinator.bill import BILL_FILE, bill_of_materials
from tapestry_coordinator.described import Description, describe
from tapestry_coordinator.model_signature import (
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    model_signature,
    model_signing_key,
    public_pem,
)
from tapestry_coordinator.readme import PLOT_FILE, README_FILE, readme
from tapestry_coordinator.testimony import StoredEvaluation

RESULTS_FILE = f"{STATEMENTS}/results.json"

NOTES_FILE = "notes.md"
IMAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\.png")


def write_card(
    folder: Path,
    lineage: Sequence[Envelope],
    evaluations: Sequence[StoredEvaluation],
    key: Ed25519PrivateKey,
    *,
    notes: Path,
) -> None:
    """Write or renew the card of the checkpoint in `folder`.

    Args:
        folder: The checkpoint, published or being built.
        lineage: Manifests from genesis to this checkpoint's.
        evaluations: All that the federation has; those of later rounds are left out.
        key: The coordinator's signing key.
        notes: Folder of what the operator adds: `notes.md` and PNG images; need not exist.
    """
    about = describe(folder, lineage, evaluations)
    contents = _contents(about, notes)
    entries = [_entry(name, content) for name, content in contents.items()]
    signer = model_signing_key(key)
    contents[PUBLIC_KEY_FILE] = public_pem(signer)
    contents[SIGNATURE_FILE] = model_signature(
        [*about.manifest.files, *entries], name=about.name, key=signer
    )
    card = Card(
        manifest=about.digest,
        files=tuple(_entry(name, contents[name]) for name in sorted(contents)),
        replaced=_standing(folder, about.genesis, contents),
        evaluations=tuple(
            CardEntry(
                member_id=e.member_id,
                language=e.language,
                bits_per_byte=e.bits_per_byte,
                held_out_bytes=e.held_out_bytes,
            )
            for e in about.measured
        ),
        dissent=tuple(
            DissentEntry(member_id=d.member_id, before=d.before, after=d.after)
            for d in about.dissent
        ),
    )
    _place(folder, {CARD_FILE: to_json(card.signed(key)), **contents})
    if card.replaced:
        for entry in card.replaced:
            if entry.name not in contents:
                (folder / entry.name).unlink(missing_ok=True)
        settled = card.model_copy(update={"replaced": ()})
        _place(folder, {CARD_FILE: to_json(settled.signed(key))})


def _contents(about: Description, notes: Path) -> dict[str, bytes]:
    """Return the card's files but those that sign the others."""
    contents = {RESULTS_FILE: _results_json(about.history).encode()}
    if about.measured:
        contents[PLOT_FILE] = plot_history(about.history)
    for image in sorted(notes.glob("*.png")):
        contents[f"{STATEMENTS}/{image.name}"] = image.read_bytes()
    added = notes / NOTES_FILE
    text = added.read_text(encoding="utf-8") if added.is_file() else ""
    contents[BILL_FILE] = bill_of_materials(about)
    contents[README_FILE] = readme(about, notes=text, has_plot=bool(about.measured)).encode()
    return contents


def _entry(name: str, content: bytes) -> FileEntry:
    digest = hashlib.sha256(content).hexdigest()
    return FileEntry(name=name, size_bytes=len(content), digest=digest)


def _standing(
    folder: Path, genesis: Lineage, contents: Mapping[str, bytes]
) -> tuple[FileEntry, ...]:
    """Return what stands in the places of a card's new files: signed once, and still there."""
    if not (folder / CARD_FILE).is_file():
        return ()
    envelope = read_envelope(folder / CARD_FILE, what="card")
    card = Card.opened(envelope, public_key=genesis.coordinator_key, what="card")
    known = [*card.files, *card.replaced]
    standing = []
    for name in sorted({*contents, *(entry.name for entry in known)}):
        is_there = (folder / name).is_file()
        found = file_entry(folder, name) if is_there else _entry(name, b"")
        is_new = name in contents and found == _entry(name, contents[name])
        if not is_new and (found in known or not is_there):
            standing.append(found)
    return tuple(standing)


def _place(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files in the order of `contents`: made durable beside the folder, then moved in."""
    (folder / STATEMENTS).mkdir(exist_ok=True)
    prepared = folder.with_name(f".{folder.name}.card{TEMPORARY_SUFFIX}")
    shutil.rmtree(prepared, ignore_errors=True)
    (prepared / STATEMENTS).mkdir(parents=True)
    try:
        for name, content in contents.items():
            write_atomic(prepared / name, content)
        for name in contents:
            (prepared / name).replace(folder / name)
    finally:
        shutil.rmtree(prepared, ignore_errors=True)
    for touched in (folder / STATEMENTS, folder):
        sync_path(touched)


def _results_json(evaluations: Sequence[StoredEvaluation]) -> str:
    rows = [
        {
            "round": e.round,
            "member_id": e.member_id,
            "language": e.language,
            "bits_per_byte": e.bits_per_byte,
            "held_out_bytes": e.held_out_bytes,
        }
        for e in evaluations
    ]
    return json.dumps(rows, indent=1) + "\n"


def plot_history(evaluations: Sequence[StoredEvaluation]) -> bytes:
    """Return a PNG: held-out bits per byte by round, one line a member."""
    import io  # noqa: PLC0415 - matplotlib takes a second to import, and few calls plot

    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    with mpl.rc_context({"font.size": 10}):
        for member_id in sorted({e.member_id for e in evaluations}):
            rows = [e for e in evaluations if e.member_id == member_id]
            label = f"{member_id}: {rows[-1].language}" if rows[-1].language else member_id
            axes.plot(
                [e.round for e in rows], [e.bits_per_byte for e in rows], marker=".", label=label
            )
        axes.set_xlabel("round")
        axes.set_ylabel("held-out bits per byte (lower is better)")
        axes.set_title("Consensus, measured by each member on its own held-out text")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(parse_math=False)  # a member's words are no formula
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
