"""README.md: the model card that people read."""

import html
from collections.abc import Sequence

from tapestry.checkpoints.folder import STATEMENTS
from tapestry.checkpoints.manifest import GenesisRecord, Manifest
from tapestry.checkpoints.policy import PublicationPolicy
from tapestry_coordinator.bill import BILL_FILE
from tapestry_coordinator.described import Description, one_line
from tapestry_coordinator.front_matter import front_matter
from tapestry_coordinator.model_signature import PUBLIC_KEY_FILE, SIGNATURE_FILE
from tapestry_coordinator.no_harm import Dissent
from tapestry_coordinator.testimony import StoredEvaluation

README_FILE = "README.md"
PLOT_FILE = f"{STATEMENTS}/results.png"


def readme(about: Description, *, notes: str, has_plot: bool) -> str:
    """Return the card's text: what the checkpoint is, how to load and to verify it, and results.

    Args:
        about: The checkpoint.
        notes: What the operator adds, in Markdown.
        has_plot: Whether `PLOT_FILE` is beside it.
    """
    origin, manifest = about.genesis.origin, about.manifest
    lines = [
        front_matter(about),
        f"# {about.federation}, consensus checkpoint of round {manifest.round}",
        "",
        (
            f"{_model(origin, manifest)} by the members of the federation "
            f"*{about.federation}* on text that never left them. Only parameter vectors were sent."
        ),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "model = AutoModelForCausalLM.from_pretrained(PATH)",
        "tokenizer = AutoTokenizer.from_pretrained(PATH)",
        "```",
        "",
        *_verifying(about.genesis.genesis_digest),
    ]
    lines += _measured(about.measured, has_plot=has_plot)
    lines += _worse(manifest, about.dissent)
    if notes:
        lines += [notes.strip(), ""]
    lines += _participants(manifest)
    lines += _declared(about.publication)
    lines += [
        "## Identity",
        "",
        f"- federation (digest of the genesis manifest): `{about.genesis.genesis_digest}`",
        f"- coordinator's signing key: `{origin.coordinator_key}`",
        *_before(origin),
        f"- root of the parameter vector: `{manifest.vector_root}`",
        f"- bill of materials (CycloneDX): `{BILL_FILE}`",
        "",
        (
            "A base model, not an assistant: it continues text, may repeat what its training text "
            "says, and was not tuned for safety."
        ),
        "",
    ]
    return "\n".join(lines)


def _verifying(genesis_digest: str) -> list[str]:
    return [
        "Verify that nothing was changed since the coordinator signed it:",
        "",
        "```console",
        f"$ tapestry checkpoint verify PATH --federation {genesis_digest[:16]}",
        "```",
        "",
        (
            "The same without Tapestry, for everything outside `tapestry/` (the key must be one "
            "that `tapestry checkpoint verify` passed, or that you have from the federation):"
        ),
        "",
        "```console",
        f"$ model_signing verify key PATH --signature PATH/{SIGNATURE_FILE} \\",
        f"    --public_key PATH/{PUBLIC_KEY_FILE}",
        "```",
        "",
    ]


def _declared(publication: PublicationPolicy) -> list[str]:
    """Return what the federation says about licence and text, where it does."""
    lines = []
    if publication.licence:
        licence = _cell(publication.licence)
        link = f" ({publication.licence_url})" if publication.licence_url else ""
        lines += ["## Licence", "", f"{licence}{link}", ""]
    if publication.texts:
        lines += [
            "## Text",
            "",
            "As its holders have declared it:",
            "",
            "| text | member | language | licence | category |",
            "|---|---|---|---|---|",
            *(
                f"| {_cell(text.name)} | {_cell(text.member_id)} | {text.language} "
                f"| {_cell(text.licence)} | {text.category.value if text.category else ''} |"
                for text in publication.texts
            ),
            "",
        ]
    return lines


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
    return html.escape(one_line(text), quote=False).replace("\\", "\\\\").replace("|", "\\|")


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
