"""Models of both architectures that GGUF is written for; what they say is noise."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tapestry.checkpoints.manifest import FileEntry
from tapestry.data.tokenizer import byte_tokenizer, tokenizer_files, train_tokenizer
from tapestry.identity.keys import generate_signing_key
from tapestry_finetune.base import Base, open_base
from tapestry_finetune.bundle import Bundle, write_bundle
from tapestry_finetune.deltas import DELTAS_FILE, NOTHING, Deltas, RowDelta
from tapestry_finetune.export.reading_back import PROMPTS
from tapestry_finetune.lineage import BaseRecord, Localization

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def small_tokenizer(*, is_bytes: bool = False) -> Tokenizer:
    """One of ours: with a few merges, or none."""
    return byte_tokenizer() if is_bytes else train_tokenizer(PROMPTS, vocabulary_size=400)


def make_model(
    folder: Path, kind: str, *, is_bytes: bool = False, is_tied: bool = True, **more: Any
) -> Base:
    """Write a model with weights large enough that every token has a favourite successor."""
    tokenizer = small_tokenizer(is_bytes=is_bytes)
    folder.mkdir(parents=True)
    for name, data in tokenizer_files(tokenizer, model_max_length=256).items():
        (folder / name).write_bytes(data)
    settings: dict[str, Any] = SHAPE | {
        "vocab_size": tokenizer.get_vocab_size(),
        "tie_word_embeddings": is_tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "initializer_range": 0.3,
    }
    settings |= more
    torch.manual_seed(1)
    module = (
        Qwen3ForCausalLM(Qwen3Config(**{"head_dim": 24} | settings))
        if kind == "qwen3"
        else LlamaForCausalLM(LlamaConfig(**settings))
    )
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    module.save_pretrained(folder)
    return open_base(folder, unverified=True)


def make_localized(
    folder: Path,
    base: Base,
    *,
    name: str = "ours",
    size: float = 0.2,
    rows: bool = False,
    new_tokens: tuple[str, ...] = (),
    charter: Path | None = None,
    redistribute: bool = True,
) -> Bundle:
    """Write a bundle whose adapter, and perhaps embedding rows, change what the base predicts."""
    torch.manual_seed(2)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets)
    adapted: Any = get_peft_model(base.load("cpu"), config)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=size)
    width = adapted.config.hidden_size
    changed = RowDelta(
        rows=torch.tensor([40, 41, 90]),
        delta=torch.randn(3, width) / 10,
        new=torch.randn(len(new_tokens), width) / 3,
    )
    deltas = Deltas(rows={"model.embed_tokens.weight": changed}, dense={}) if rows else NOTHING

    def fill(target: Path) -> None:
        adapted.save_pretrained(str(target))
        (target / "README.md").write_text("# Ours\n", encoding="utf-8")
        (target / DELTAS_FILE).write_bytes(deltas.to_bytes())
        if charter is not None:
            (target / "charter.toml").write_bytes(charter.read_bytes())
        if new_tokens:
            tokenizer = base.tokenizer()
            tokenizer.add_tokens(list(new_tokens))
            tokenizer.save_pretrained(target)

    def complete(*, files: tuple[FileEntry, ...], key: str) -> Localization:
        return Localization(
            name=name,
            languages=("nld",),
            made_at=1_760_000_000.0,
            key=key,
            base=BaseRecord(**dataclasses.asdict(base.identity)),
            stages=(),
            sources=(),
            recipe="0" * 64,
            versions={},
            seed=0,
            licence="CC-BY-NC-4.0",
            redistribute=redistribute,
            files=files,
        )

    return write_bundle(folder, fill, complete, _KEY)


_KEY = generate_signing_key()
