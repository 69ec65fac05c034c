"""A chat model of 130,000 parameters that has learnt a little: in seconds, on one core.

It knows two invented little worlds, one in English and one in Dutch, and answers in the language in
which it is asked.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import atexit
import dataclasses
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tapestry.checkpoints.manifest import FileEntry
from tapestry.data.tokenizer import tokenizer_files, train_tokenizer
from tapestry.identity.keys import generate_signing_key
from tapestry_finetune.adapting import quiet
from tapestry_finetune.base import Base, open_base
from tapestry_finetune.bundle import Bundle, write_bundle
from tapestry_finetune.deltas import DELTAS_FILE, NOTHING
from tapestry_finetune.dialogue import encode
from tapestry_finetune.lineage import BaseRecord, Localization
from tapestry_finetune.voices import Voice

THINGS = ("cat", "house", "river", "weaver", "thread", "loom", "garden", "bread")
DINGEN = ("kat", "huis", "rivier", "wever", "draad", "weefgetouw", "tuin", "brood")
COLOURS = ("red", "blue", "green", "white")
KLEUREN = ("rood", "blauw", "groen", "wit")

_CONTEXT = 256


def english(number: int) -> str:
    draw = np.random.default_rng(number)
    return " ".join(
        f"The {draw.choice(THINGS)} near the {draw.choice(THINGS)} is {draw.choice(COLOURS)}."
        for _ in range(6)
    )


def dutch(number: int) -> str:
    draw = np.random.default_rng(10_000 + number)
    return " ".join(
        f"De {draw.choice(DINGEN)} bij de {draw.choice(DINGEN)} is {draw.choice(KLEUREN)}."
        for _ in range(6)
    )


def dialogues() -> list[list[dict[str, str]]]:
    """What it is taught to answer: each thing has its colour."""
    asked = []
    for at, (thing, ding) in enumerate(zip(THINGS, DINGEN, strict=True)):
        asked += [
            (f"What colour is the {thing}?", f"The {thing} is {COLOURS[at % 4]}."),
            (f"Welke kleur heeft de {ding}?", f"De {ding} is {KLEUREN[at % 4]}."),
        ]
    return [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in asked]


def make_tiny_base(folder: Path, *, steps: int = 120) -> Base:
    """Write the model, trained for so many steps, and open it unverified."""
    torch.manual_seed(0)
    shutil.copytree(_taught(steps), folder)
    return open_base(folder, unverified=True)


@cache
def _taught(steps: int) -> Path:
    """Train the model once for all tests of this process; write it as transformers does."""
    parent = Path(tempfile.mkdtemp(prefix="tapestry-tests-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = parent / "base"
    torch.manual_seed(0)
    texts = [english(number) for number in range(200)] + [dutch(number) for number in range(200)]
    talk = [" ".join(turn["content"] for turn in one) for one in dialogues()]
    tokenizer = train_tokenizer([*texts, *talk], vocabulary_size=600)
    folder.mkdir(parents=True)
    for name, data in tokenizer_files(tokenizer, model_max_length=_CONTEXT).items():
        (folder / name).write_bytes(data)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    ready = open_base(folder, unverified=True).tokenizer()
    rows = [ready.encode(text, add_special_tokens=False)[:64] for text in texts]
    spoken = [encode(ready, one) for one in dialogues()]
    _train(model, rows, spoken, steps, ready.pad_token_id)
    model.eval().save_pretrained(folder)
    return folder


def _train(
    model: Any, rows: list[list[int]], spoken: list[list[int]], steps: int, pad: int
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = np.random.default_rng(0)
    for _step in range(steps):
        batch = [rows[n] for n in draw.choice(len(rows), 4)] + [
            spoken[n] for n in draw.choice(len(spoken), 8)
        ]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in batch])
        seen = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        loss = model(input_ids=ids, attention_mask=seen, labels=ids.masked_fill(seen == 0, -100))
        loss.loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def voice_of(base: Base) -> Voice:
    return Voice(module=base.load("cpu"), tokenizer=base.tokenizer())


def make_bundle(
    folder: Path, base: Base, *, name: str, damage: float = 0.0, charter: Path | None = None
) -> Bundle:
    """Write a bundle that changes nothing, or is damaged by random weights of a given size."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    with quiet():
        adapted: PeftModel = get_peft_model(base.load("cpu"), config)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_().mul_(damage)

    def fill(target: Path) -> None:
        adapted.save_pretrained(str(target))
        (target / "README.md").unlink(missing_ok=True)
        (target / DELTAS_FILE).write_bytes(NOTHING.to_bytes())
        if charter is not None:
            (target / "charter.toml").write_bytes(charter.read_bytes())

    return write_bundle(folder, fill, lambda **given: _lineage(base, name, **given), _KEY)


_KEY = generate_signing_key()


def _lineage(base: Base, name: str, *, files: tuple[FileEntry, ...], key: str) -> Localization:
    identity = dataclasses.asdict(base.identity)
    return Localization(
        name=name,
        languages=("nld",),
        made_at=1_760_000_000.0,
        key=key,
        base=BaseRecord(**identity),
        stages=(),
        sources=(),
        recipe="0" * 64,
        versions={},
        seed=0,
        licence="CC0-1.0",
        files=files,
    )


def write_task(folder: Path, texts: list[str]) -> Path:
    """Write a task of lm-evaluation-harness: bits per byte of some texts."""
    folder.mkdir()
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "bits.yaml").write_text(
        f"""
task: bits
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""
    )
    return folder
