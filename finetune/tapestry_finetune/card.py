"""The card of a bundle: what the Hub reads at its head, and what people read below."""

import json
from collections.abc import Sequence

from tapestry_finetune.evaluation.evaluating import Evaluation, name_of
from tapestry_finetune.evaluation.floor import VerdictRow
from tapestry_finetune.lineage import Localization

_LOADING = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE")
model = PeftModel.from_pretrained(base, "BUNDLE")
```
"""
_WITH_DELTAS = (
    "The above loads the low-rank part. The rows of `deltas.safetensors` belong to it: "
    "`tapestry chat`, `tapestry serve` and `tapestry export --format merged` lay them on."
)


def card(lineage: Localization, evaluation: Evaluation) -> str:
    """Return the README of a bundle.

    Args:
        lineage: What the community signs, without the card itself.
        evaluation: What it is worth.
    """
    base = lineage.base
    named = f"round {base.round}, manifest {base.manifest}" if base.manifest else "not verified"
    files = {entry.name for entry in lineage.files}
    lines = [
        *_front_matter(lineage),
        f"# {lineage.name}",
        "",
        *(
            [f"**Published below its own quality floor.** {lineage.forced}", ""]
            * bool(lineage.forced)
        ),
        f"A localized model for {', '.join(lineage.languages) or 'no declared language'}.",
        "",
        f"- base: {named}, tensors {base.tensors[:16]}, licence {base.licence}",
        f"- this part: licence {lineage.licence}"
        + ("" if lineage.redistribute else ", its weights may not be passed on"),
        *(
            [f"- carried over from bundle {lineage.parent[:16]}: {lineage.carried_by}"]
            if lineage.parent
            else []
        ),
        *[
            f"- {stage.name}: {stage.method}, {stage.steps} steps, {stage.tokens:,} tokens, "
            f"replay {stage.replay:.0%}"
            for stage in lineage.stages
        ],
        "",
        "## What it is worth",
        "",
        *[f"{line}  " for line in evaluation.summary],
        "",
        *_table(evaluation.rows),
        "",
        "More in `evaluation.html`.",
        "",
        "## Learnt from",
        "",
        "| source | licence | rows | bytes |",
        "|---|---|---:|---:|",
        *[
            f"| {_cell(source.name)} | {_cell(source.licence)} | {source.rows:,} "
            f"| {source.size_bytes:,} |"
            for source in lineage.sources
        ],
        "",
        "## Use it",
        "",
        *(_LOADING.splitlines() if "adapter_model.safetensors" in files else []),
        *([_WITH_DELTAS] if "deltas.safetensors" in files else []),
        "",
    ]
    return "\n".join(lines)


def _front_matter(lineage: Localization) -> list[str]:
    rows = {
        "license": lineage.licence if lineage.licence != "undeclared" else "other",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tapestry", "localized"],
    }
    if lineage.languages:
        rows["language"] = list(lineage.languages)
    return [
        "---",
        *[f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in rows.items()],
        "---",
        "",
    ]


def _table(rows: Sequence[VerdictRow]) -> list[str]:
    if not rows:
        return []
    return [
        "| figure | base | localized | verdict |",
        "|---|---:|---:|---|",
        *[
            f"| {_cell(name_of(row.measure, row.slice))} | {row.base:.3f} | {row.candidate:.3f} "
            f"| {row.verdict} |"
            for row in rows
        ],
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
