"""A sample of a model's text."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tapestry.errors import ConfigError


def sample_text(folder: Path, *, prompt: str, tokens: int, temperature: float, seed: int) -> str:
    """Return `prompt` continued by the model in `folder`.

    Raises:
        ConfigError: There is no model there that transformers loads.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: no model that transformers loads: {str(error).splitlines()[0]}"
        ) from error
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    start = prompt or tokenizer.eos_token
    inputs = tokenizer(start, return_tensors="pt", return_token_type_ids=False)
    output = model.eval().generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_p=0.9 if temperature > 0 else None,
        pad_token_id=tokenizer.pad_token_id,
    )
    text: str = tokenizer.decode(output[0], skip_special_tokens=True)
    return text
