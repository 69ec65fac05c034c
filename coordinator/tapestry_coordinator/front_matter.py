"""The metadata at the head of README.md: YAML as the Hugging Face Hub reads it.

Only what the federation knows. The results are in the Hub's `model-index`; `verification`, which
the Hub passes over, names what a sceptic needs.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tapestry_coordinator.described import Description, hub_licence, one_line
from tapestry_coordinator.testimony import StoredEvaluation

_TAG = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_WITHOUT_LANGUAGE = frozenset({"mul", "und", "zxx"})
_METRIC = "bits_per_byte"


def front_matter(about: Description) -> str:
    """Return the block, with its lines of dashes."""
    return "\n".join(["---", *_lines(_metadata(about)), "---", ""])


def _metadata(about: Description) -> dict[str, Any]:
    front: dict[str, Any] = {}
    if about.is_language_model:
        front |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    tags = [tag for tag in about.languages if _TAG.fullmatch(tag)]
    codes = sorted({tag.split("-")[0] for tag in tags} - _WITHOUT_LANGUAGE)
    if codes:
        front["language"] = codes
    if any("-" in tag for tag in tags):
        front["language_bcp47"] = [tag for tag in tags if "-" in tag]
    front |= _licence(about)
    if about.publication.base_model:
        front["base_model"] = about.publication.base_model
    front["tags"] = ["tapestry", "federated-learning"]
    if about.measured:
        front["metrics"] = [_METRIC]
        results = [_result(about, evaluation) for evaluation in about.measured]
        front["model-index"] = [{"name": about.name, "results": results}]
    front["verification"] = {
        "federation": about.genesis.genesis_digest,
        "name": about.federation,
        "round": about.manifest.round,
        "manifest": about.digest,
        "coordinator_key": about.genesis.origin.coordinator_key,
    }
    return front


def _licence(about: Description) -> dict[str, str]:
    """Return the licence by the Hub's name, or in the Hub's way of telling another one."""
    licence, url = about.publication.licence, about.publication.licence_url
    if not licence:
        return {}
    known = hub_licence(licence)
    if known is not None:
        return {"license": known}
    name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-") or "other"
    return {"license": "other", "license_name": name, **({"license_link": url} if url else {})}


def _result(about: Description, evaluation: StoredEvaluation) -> dict[str, Any]:
    task = "text-generation" if about.is_language_model else "other"
    dataset: dict[str, Any] = {
        "type": "held-out-text",
        "name": f"held-out text of {evaluation.member_id}",
    }
    language = one_line(evaluation.language)
    if language:
        dataset["config"] = language
    dataset["args"] = {"bytes": evaluation.held_out_bytes}
    return {
        "task": {"type": task},
        "dataset": dataset,
        "metrics": [{"type": _METRIC, "value": evaluation.bits_per_byte, "name": "bits per byte"}],
    }


def _lines(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return a table as YAML in block style; every text in quotes, so that no `no` is false."""
    lines: list[str] = []
    for key, one in value.items():
        if isinstance(one, Mapping):
            lines += [f"{indent}{key}:", *_lines(one, indent + "  ")]
        elif isinstance(one, Sequence) and not isinstance(one, str):
            lines.append(f"{indent}{key}:")
            for item in one:
                lines += _item(item, indent)
        else:
            lines.append(f"{indent}{key}: {_scalar(one)}")
    return lines


def _item(item: object, indent: str) -> list[str]:
    if not isinstance(item, Mapping):
        return [f"{indent}- {_scalar(item)}"]
    first, *others = _lines(item, indent + "  ")
    return [f"{indent}- {first.lstrip()}", *others]


def _scalar(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and "." not in text:  # YAML takes 1e-05 for a word
        text = text.replace("e", ".0e")
    return text
