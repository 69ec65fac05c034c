"""A sample of a model's text."""

from pathlib import Path
from typing import Any

import torch

from tapestry.errors import ConfigError
from tapestry.objectives.loading import load_model, load_text_tokenizer


def sample_text(folder: Path, *, prompt: str, tokens: int, temperature: float, seed: int) -> str:
    """Return `prompt` continued by the model in `folder`.

    Raises:
        ConfigError: There is no model there that transformers loads.
    """
    if tokens < 1:
        raise ConfigError(f"{tokens} tokens: expected 1 or more")
    model: Any = load_model(folder)
    tokenizer = load_text_tokenizer(folder)
    start = prompt or tokenizer.eos_token
    if not start:
        raise ConfigError(
            f"{folder}: its tokenizer has no end of text to begin with; give a prompt"
        )
    torch.manual_seed(seed)
    torch.set_num_threads(1)
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
