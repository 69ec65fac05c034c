"""Whether an export is whole and enough to found a federation; needs nothing but the folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tapestry.checkpoints.exports import (
    LEDGER_NAME,
    OPTIMIZER_NAME,
    OpenedExport,
    open_export,
)
from tapestry.errors import UntrustedError
from tapestry.objectives.loading import load_text_tokenizer
from tapestry.objectives.objective import objective_named
from tapestry.params.modules import layout_of
from tapestry.wire.egress import read_ledger


def verify_export(
    folder: Path, *, on_bytes: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Verify everything in an export; return what was found, and tell `on_bytes` how far it is.

    Raises:
        ConfigError: It is no export, of another format, or its model cannot be built here.
        UntrustedError: Something is missing, changed or does not belong; the message names it.
    """
    opened = open_export(folder, on_bytes=on_bytes)
    export, origin = opened.export, opened.lineage.origin
    _require_loads(opened)
    requests = sum(1 for _ in read_ledger(folder / LEDGER_NAME, head=export.ledger_head))
    _require_optimizer(folder / OPTIMIZER_NAME, opened)
    return {
        "verified": True,
        "member_id": export.member_id,
        "federation": origin.federation,
        "identity": export.genesis,
        "checkpoint": export.round,
        "manifest": export.manifest,
        "manifests": export.round + 1,
        "files": len(export.files),
        "bytes": sum(entry.size_bytes for entry in export.files),
        "parameters": export.parameters,
        "objective": origin.objective,
        "ledger_requests": requests,
        "ledger_head": export.ledger_head,
        "receipts": export.receipts,
        "card": opened.has_card,
        "optimizer": (folder / OPTIMIZER_NAME).is_file(),
        "pool": opened.pool is not None,
        "keys": opened.has_keys,
        "packed_corpus": any(e.name.startswith("packed-corpus/") for e in export.files),
    }


def _require_loads(opened: OpenedExport) -> None:
    """Build the model that the files describe, without memory for it, and read the tokenizer."""
    objective = objective_named(opened.lineage.origin.objective)
    with torch.device("meta"):
        module = objective.build(opened.checkpoint)
    layout = layout_of(module, exclude=objective.non_averageable(module))
    if layout.digest != opened.lineage.newest.layout:
        raise UntrustedError(
            f"{opened.checkpoint}: its config.json describes a model of {layout.elements:,} "
            f"parameters in another layout than the vector's {opened.lineage.newest.elements:,}"
        )
    if (opened.checkpoint / "tokenizer.json").is_file():
        load_text_tokenizer(opened.checkpoint)


def _require_optimizer(path: Path, opened: OpenedExport) -> None:
    """Refuse an optimizer state whose tensors are not the model's."""
    if not path.is_file():
        return
    with torch.device("meta"):
        module = objective_named(opened.lineage.origin.objective).build(opened.checkpoint)
    names = {name for name, _parameter in module.named_parameters()}
    try:
        with safe_open(path, framework="pt") as file:
            int(file.metadata()["steps_done"])
            others = {key.rsplit("|", 1)[0] for key in file.keys()} - names  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UntrustedError(f"{path}: not an optimizer's state: {error}") from error
    if others:
        raise UntrustedError(f"{path}: of another model: it has {min(others)}")


def said(table: dict[str, Any], folder: Path) -> str:
    """Return what was found, for a person."""
    card = "with its model card" if table["card"] else "without its model card (no coordinator)"
    rows = [
        f"{folder}: whole, and enough to found a federation",
        f"  of                {table['member_id']} in {table['federation']}",
        f"  checkpoint        {table['checkpoint']}, {table['parameters']:,} parameters, {card}",
        f"  lineage           {table['manifests']} manifests from genesis {table['identity'][:16]}",
        f"  egress ledger     {table['ledger_requests']:,} requests, head {table['ledger_head']}",
        f"  receipts          {table['receipts']}",
        f"  optimizer, pool   {json.dumps(table['optimizer'])}, {json.dumps(table['pool'])}",
        f"  keys, text        {json.dumps(table['keys'])}, {json.dumps(table['packed_corpus'])}",
        f"next: tapestry coordinator init fed --name NAME --from {folder}",
    ]
    return "\n".join(rows)
