"""The model card of a checkpoint: README.md, results.json and a plot, under one signature."""

import hashlib
import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import (
    CARD_FILE,
    POLICY_JSON,
    STATEMENTS,
    file_entry,
    read_envelope,
)
from tapestry.checkpoints.manifest import (
    Card,
    CardEntry,
    DissentEntry,
    FileEntry,
    GenesisRecord,
    Lineage,
    Manifest,
)
from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import payload_digest
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.storage.atomic import TEMPORARY_SUFFIX, sync_path, write_atomic
from tapestry_coordinator.no_harm import Dissent, dissents
from tapestry_coordinator.registry import StoredEvaluation

README_FILE = "README.md"
RESULTS_FILE = f"{STATEMENTS}/results.json"
PLOT_FILE = f"{STATEMENTS}/results.png"

NOTES_FILE = "notes.md"
IMAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\.png")

_LANGUAGE_TAG = re.compile(r"[a-z]{2,3}")


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
    genesis = Lineage(lineage[0])
    manifest = Manifest.parsed(lineage[-1].payload, what="manifest")
    known = [e for e in evaluations if e.round <= manifest.round]
    own = [e for e in known if e.round == manifest.round]
    dissent = _dissent(folder, manifest, known)
    contents = {RESULTS_FILE: _results_json(known).encode()}
    if own:
        contents[PLOT_FILE] = plot_history(known)
    for image in sorted(notes.glob("*.png")):
        contents[f"{STATEMENTS}/{image.name}"] = image.read_bytes()
    added = notes / NOTES_FILE
    text = added.read_text(encoding="utf-8") if added.is_file() else ""
    readme = _readme(genesis, manifest, own, dissent, notes=text, has_plot=bool(own))
    contents[README_FILE] = readme.encode()
    card = Card(
        manifest=payload_digest(lineage[-1]),
        files=tuple(_entry(name, contents[name]) for name in sorted(contents)),
        replaced=_standing(folder, genesis, contents),
        evaluations=tuple(
            CardEntry(
                member_id=e.member_id,
                language=e.language,
                bits_per_byte=e.bits_per_byte,
                held_out_bytes=e.held_out_bytes,
            )
            for e in own
        ),
        dissent=tuple(
            DissentEntry(member_id=d.member_id, before=d.before, after=d.after) for d in dissent
        ),
    )
    _place(folder, {CARD_FILE: to_json(card.signed(key)), **contents})
    if card.replaced:
        for entry in card.replaced:
            if entry.name not in contents:
                (folder / entry.name).unlink(missing_ok=True)
        settled = card.model_copy(update={"replaced": ()})
        _place(folder, {CARD_FILE: to_json(settled.signed(key))})


def _dissent(
    folder: Path, manifest: Manifest, evaluations: Sequence[StoredEvaluation]
) -> list[Dissent]:
    """Return who found the checkpoint worse than its parent, by the policy that made it."""
    path = folder / POLICY_JSON
    if not path.is_file():
        return []
    policy = FederationPolicy.model_validate_json(path.read_bytes())
    limit = policy.no_harm.max_worse
    return dissents(evaluations, round_number=manifest.round, max_worse=limit)


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


def _readme(
    genesis: Lineage,
    manifest: Manifest,
    own: Sequence[StoredEvaluation],
    dissent: Sequence[Dissent],
    *,
    notes: str,
    has_plot: bool,
) -> str:
    origin = genesis.origin
    languages = sorted({e.language for e in own if _LANGUAGE_TAG.fullmatch(e.language)})
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tapestry", "federated-learning"],
    }
    if languages:
        front["language"] = languages
    lines = ["---", *_yaml(front), "---", ""]
    lines += [
        f"# {origin.federation}, consensus checkpoint of round {manifest.round}",
        "",
        (
            f"{_model(origin, manifest)} by the members of the federation "
            f"*{origin.federation}* on text that never left them. Only parameter vectors were sent."
        ),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "model = AutoModelForCausalLM.from_pretrained(PATH)",
        "tokenizer = AutoTokenizer.from_pretrained(PATH)",
        "```",
        "",
        "Verify that nothing was changed since the coordinator signed it:",
        "",
        "```console",
        f"$ tapestry checkpoint verify PATH --federation {genesis.genesis_digest[:16]}",
        "```",
        "",
    ]
    lines += _measured(own, has_plot=has_plot)
    lines += _worse(manifest, dissent)
    if notes:
        lines += [notes.strip(), ""]
    lines += _participants(manifest)
    lines += [
        "## Identity",
        "",
        f"- federation (digest of the genesis manifest): `{genesis.genesis_digest}`",
        f"- coordinator's signing key: `{origin.coordinator_key}`",
        *_before(origin),
        f"- root of the parameter vector: `{manifest.vector_root}`",
        "",
        (
            "A base model, not an assistant: it continues text, may repeat what its training text "
            "says, and was not tuned for safety."
        ),
        "",
    ]
    return "\n".join(lines)


def _model(origin: GenesisRecord, manifest: Manifest) -> str:
    """Return how large the model is, and which part of it is trained."""
    patterns = origin.settings.get("trainable")
    if patterns is None or origin.beside is None:
        return f"{manifest.elements:,} parameters, trained"
    whole = manifest.elements + origin.beside.elements
    return (
        f"{whole:,} parameters; {manifest.elements:,} of them (`{patterns}`) were trained, the "
        "others are those of genesis. Trained"
    )


def _before(origin: GenesisRecord) -> list[str]:
    """Return the line about the federation that this one goes on from, if there is one."""
    was = origin.continues
    if was is None:
        return []
    return [
        (
            f"- goes on from checkpoint {was.round} of *{was.federation}*, "
            f"manifest `{was.manifest}`, identity `{was.genesis}`"
        )
    ]


def _cell(text: str) -> str:
    """Return a member's words as the text of a table's cell."""
    return html.escape(text, quote=False).replace("|", "\\|")


def _yaml(table: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for key, value in table.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {json.dumps(item)}" for item in value)]
        else:
            lines.append(f"{key}: {value}")
    return lines


def _measured(own: Sequence[StoredEvaluation], *, has_plot: bool) -> list[str]:
    lines = ["## Held-out results", ""]
    if own:
        lines += [
            "Each member measured the checkpoint on its own held-out text, which it keeps:",
            "",
            "| member | language | bits per byte | bytes of text |",
            "|---|---|---:|---:|",
            *(
                f"| {e.member_id} | {_cell(e.language)} | {e.bits_per_byte:.4f} "
                f"| {e.held_out_bytes:,} |"
                for e in own
            ),
            "",
        ]
    else:
        lines += ["Not measured yet.", ""]
    if has_plot:
        lines += [f"![Held-out bits per byte by round]({PLOT_FILE})", ""]
    return lines


def _worse(manifest: Manifest, dissent: Sequence[Dissent]) -> list[str]:
    lines = []
    if manifest.made is not None and manifest.made.reverted is not None:
        words = _cell(manifest.made.reverted.reason)
        lines += ["## Reverted", "", f"The consensus is as it was before this round: {words}.", ""]
    if dissent:
        lines += ["## Dissent", "", "Worse than the checkpoint before, beyond the policy's limit:"]
        lines += ["", *(f"- {d.member_id}: {_cell(d.words)}" for d in dissent), ""]
    return lines


def _participants(manifest: Manifest) -> list[str]:
    if manifest.made is None:
        return ["## Participation", "", "Genesis: no training yet.", ""]
    made = manifest.made
    return [
        "## Participation",
        "",
        (
            f"{made.inner.steps} inner steps a member, codec `{made.codec}`, "
            f"{made.rule.described}, outer optimizer "
            f"`{made.outer.optimizer}` (learning rate {made.outer.learning_rate:g}, momentum "
            f"{made.outer.momentum:g}), influence cap {made.influence_cap:.4g}."
        ),
        "",
        "| member | weight | tokens | clip factor | rounds late |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {p.member_id} | {p.weight:.4f} | {p.tokens:,} | {p.clip_factor:.4f} | "
            f"{p.staleness or ''} |"
            for p in made.participation
        ),
        *(f"| {a.member_id} | absent: {_cell(a.reason)} | | | |" for a in made.absent),
        "",
        *(f"`{p.member_id}` has no weight: {p.reason}.\n" for p in made.participation if p.reason),
    ]
