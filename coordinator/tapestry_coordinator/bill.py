"""The bill of materials of a checkpoint: CycloneDX 1.6 in JSON, `bom.cdx.json`.

It says what the federation knows and nothing else: a licence, a category or a data set that nobody
has declared is called undeclared. The same checkpoint with the same measurements has the same bill,
to the byte: its serial number comes from the manifest's digest and its date from the manifest, and
its version counts the measurements, for which it is renewed.
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from tapestry.checkpoints.folder import MANIFEST_FILE
from tapestry.checkpoints.manifest import FileEntry, Manifest
from tapestry.checkpoints.policy import DeclaredText
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry_coordinator.described import Description, one_line, spdx_identifier

BILL_FILE = "bom.cdx.json"

_SPECIFICATION = "1.6"
_SCHEMA = f"http://cyclonedx.org/schema/bom-{_SPECIFICATION}.schema.json"
_SOURCE = "source"
"""Of a manifest's software: no package, but the digest of our own code."""
_LIMITATION = (
    "A base model, not an assistant: it continues text, may repeat what its training text says, "
    "and was not tuned for safety."
)


def bill_of_materials(about: Description) -> bytes:
    """Return the bill of the checkpoint that `about` describes."""
    manifest = about.manifest
    model = _model(about)
    files = [_file(entry) for entry in manifest.files]
    before = _before(about)
    bill: dict[str, Any] = {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": _SPECIFICATION,
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, about.digest).urn,
        "version": 1 + len(about.measured),
        "metadata": {
            "timestamp": datetime.fromtimestamp(int(manifest.created_at), UTC).isoformat(),
            "tools": {
                "components": [
                    {"type": "application", "name": name, "version": version}
                    for name, version in sorted(manifest.software.items())
                    if name != _SOURCE
                ]
            },
            "supplier": {"name": about.federation},
            "component": model,
            "properties": _properties(
                {
                    "federation": about.genesis.genesis_digest,
                    "manifest": about.digest,
                    "round": str(manifest.round),
                    "vector-root": manifest.vector_root,
                    "coordinator-key": about.genesis.origin.coordinator_key,
                    "source": manifest.software.get(_SOURCE, ""),
                }
            ),
        },
        "components": [*files, *before],
        "dependencies": [
            {
                "ref": model["bom-ref"],
                "dependsOn": sorted(part["bom-ref"] for part in (*files, *before)),
            },
            *({"ref": part["bom-ref"]} for part in (*files, *before)),
        ],
    }
    return (json.dumps(bill, indent=1, ensure_ascii=False) + "\n").encode()


def _model(about: Description) -> dict[str, Any]:
    """Return the checkpoint as a component with its model card."""
    manifest = about.manifest
    (weights,) = [entry for entry in manifest.files if entry.name == MODEL_FILE]
    beside = about.genesis.origin.beside
    whole = manifest.elements + (0 if beside is None else beside.elements)
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"checkpoint:{about.digest}",
        "supplier": {"name": about.federation},
        "group": about.federation,
        "name": about.name,
        "version": str(manifest.round),
        "description": (
            f"Consensus checkpoint of round {manifest.round}: {whole:,} parameters, "
            "trained by the federation's members on text that never left them"
        ),
        "hashes": _hashes(weights.digest),
    }
    licences = _licences(about.publication.licence, about.publication.licence_url)
    if licences:
        model["licenses"] = licences
    return {
        **model,
        "externalReferences": _references(about),
        "modelCard": _card(about),
        "properties": _properties(
            {
                "parameters": str(whole),
                "trained-parameters": str(manifest.elements),
                **_training(manifest),
            }
        ),
    }


def _references(about: Description) -> list[dict[str, Any]]:
    references = [
        {"type": "model-card", "url": "README.md"},
        {"type": "attestation", "url": MANIFEST_FILE, "comment": "signed by the coordinator"},
        {"type": "digital-signature", "url": "model.sig", "comment": "OpenSSF model signing"},
    ]
    if about.publication.licence_url:
        references.append({"type": "license", "url": about.publication.licence_url})
    return references


def _card(about: Description) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if about.is_language_model:
        parameters |= {"approach": {"type": "self-supervised"}, "task": "text-generation"}
    family, classes = about.config.get("model_type"), about.config.get("architectures")
    if isinstance(family, str):
        parameters["architectureFamily"] = family
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        parameters["modelArchitecture"] = classes[0]
    texts = _texts(about)
    if texts:
        parameters["datasets"] = texts
    card: dict[str, Any] = {"modelParameters": parameters}
    if about.measured:
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {
                    "type": "bits-per-byte",
                    "value": f"{e.bits_per_byte:.6f}",
                    "slice": one_line(f"held-out text of {e.member_id} {e.language}"),
                }
                for e in about.measured
            ]
        }
    if about.is_language_model:
        card["considerations"] = {"technicalLimitations": [_LIMITATION]}
    return card


def _texts(about: Description) -> list[dict[str, Any]]:
    """Return what was declared, then every member that has trained and declared nothing."""
    declared = about.publication.texts
    silent = sorted(set(about.tokens) - {text.member_id for text in declared})
    return [
        *(_declared(text, about) for text in declared),
        *(_undeclared(member_id, about.tokens[member_id]) for member_id in silent),
    ]


def _declared(text: DeclaredText, about: Description) -> dict[str, Any]:
    said = {"licence": text.licence, "language": text.language}
    if text.member_id in about.tokens:
        said["tokens-of-member"] = str(about.tokens[text.member_id])
    contents: dict[str, Any] = {"properties": _properties(said)} if any(said.values()) else {}
    if text.url:
        contents["url"] = text.url
    table: dict[str, Any] = {"type": "dataset", "name": text.name}
    if contents:
        table["contents"] = contents
    if text.category is not None:
        table["classification"] = text.category.value
    table["description"] = "As declared to the federation, which has not seen the text"
    if text.member_id:
        table["governance"] = _custodian(text.member_id)
    return table


def _undeclared(member_id: str, tokens: int) -> dict[str, Any]:
    return {
        "type": "dataset",
        "name": f"text of {member_id}",
        "contents": {"properties": _properties({"tokens-of-member": str(tokens)})},
        "description": "Stays with the member; licence and category: undeclared",
        "governance": _custodian(member_id),
    }


def _custodian(member_id: str) -> dict[str, Any]:
    return {"custodians": [{"organization": {"name": member_id}}]}


def _before(about: Description) -> list[dict[str, Any]]:
    """Return the models that this one was made from: its parent, or what genesis took over."""
    origin, manifest = about.genesis.origin, about.manifest
    found: list[tuple[str, str, str]] = []
    if manifest.parent is not None:
        name = f"{about.federation}-round-{manifest.round - 1:06d}"
        found.append((f"checkpoint:{manifest.parent}", name, str(manifest.round - 1)))
    elif origin.continues is not None:
        was = origin.continues
        name = f"{was.federation}-round-{was.round:06d}"
        found.append((f"checkpoint:{was.manifest}", name, str(was.round)))
    if about.publication.base_model:
        found.append((f"model:{about.publication.base_model}", about.publication.base_model, ""))
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": reference,
            "name": name,
            **({"version": version} if version else {}),
        }
        for reference, name, version in found
    ]


def _file(entry: FileEntry) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{entry.name}",
        "name": entry.name,
        "hashes": _hashes(entry.digest),
        "properties": _properties({"size-bytes": str(entry.size_bytes)}),
    }


def _training(manifest: Manifest) -> dict[str, str]:
    """Return how the last round trained, for the model's properties."""
    if manifest.made is None:
        return {}
    made = manifest.made
    return {
        "inner-steps": str(made.inner.steps),
        "codec": made.codec,
        "rule": made.rule.name,
        "outer-optimizer": made.outer.optimizer,
        "members": str(sum(1 for part in made.participation if part.weight > 0)),
        "policy": made.policy,
    }


def _licences(licence: str, url: str) -> Sequence[dict[str, Any]]:
    if not licence:
        return []
    known = spdx_identifier(licence)
    named: dict[str, Any] = {"name": licence} if known is None else {"id": known}
    return [{"license": {**named, **({"url": url} if url else {})}}]


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _properties(values: dict[str, str]) -> list[dict[str, str]]:
    named: Iterable[tuple[str, str]] = ((k, v) for k, v in values.items() if v)
    return [{"name": f"tapestry:{name}", "value": value} for name, value in named]
