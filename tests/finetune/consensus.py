"""A federation whose model has learnt something, made in seconds, and made-up languages for it.

Two languages of made-up words stand for real ones: what a model knows of the one helps nothing in
the other, so that learning and forgetting show after few steps.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from tapestry.checkpoints.policy import AggregationPolicy, FederationPolicy
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.data.tokenizer import tokenizer_files, train_tokenizer
from tapestry.objectives.loading import load_model
from tapestry.objectives.objective import objective_named
from tapestry.params.modules import from_model
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tests.coordinator.small import FOUNDED_AT, Small, settings_for

CONTEXT_TOKENS = 256
_KNOWN = (
    *("the", "weaver", "warp", "weft", "loom", "thread", "cloth", "red", "blue", "winds", "pulls"),
    *("in", "morning", "evening", "a", "old"),
)
_OURS = (
    *("ehuleak", "haria", "ehuntzen", "du", "goizean", "arratsean", "gorria", "urdina", "zaharra"),
    *("oihala", "eta", "berria"),
)
_ASKED = ("zer", "nor", "non", "noiz")
_TAMIL = ("நெசவாளர்", "நூல்", "துணி", "காலை", "மாலை", "சிவப்பு", "நீலம்", "பழைய", "புதிய", "தறி")


def sentences(words: Sequence[str], count: int, *, seed: int) -> list[str]:
    """Sentences of these words in an order that a model can learn: each follows from the last."""
    choose = random.Random(seed)  # noqa: S311
    made: list[str] = []
    for _ in range(count):
        at = choose.randrange(len(words))
        said = []
        for _ in range(choose.randint(6, 12)):
            said.append(words[at])
            at = (at * 3 + choose.choice((1, 2))) % len(words)
        made.append(" ".join(said).capitalize() + ".")
    return made


def known(count: int = 200, *, seed: int = 1) -> list[str]:
    """Documents in the language that the consensus knows."""
    return _documents(_KNOWN, count, seed)


def ours(count: int = 200, *, seed: int = 2) -> list[str]:
    """Documents in a community's own language, in a script that the consensus knows."""
    return _documents(_OURS, count, seed)


def tamil(count: int = 120, *, seed: int = 3) -> list[str]:
    """Documents in a script that the consensus does not know."""
    return _documents(_TAMIL, count, seed)


def _documents(words: Sequence[str], count: int, seed: int) -> list[str]:
    said = sentences(words, 3 * count, seed=seed)
    return [" ".join(said[3 * i : 3 * i + 3]) for i in range(count)]


def write_texts(path: Path, documents: Sequence[str]) -> Path:
    """Write documents as JSON lines."""
    lines = [json.dumps({"text": document}, ensure_ascii=False) for document in documents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def teach(
    model: Any,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    *,
    steps: int,
    seed: int,
    rate: float = 3e-3,
) -> None:
    """Train all of a model on documents, as a node would."""
    torch.set_num_threads(1)
    end = tokenizer.token_to_id("<|endoftext|>")
    stream = [token for text in documents for token in [end, *tokenizer.encode(text).ids]]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        starts = torch.randint(0, len(stream) - 65, (8,), generator=generator)
        batch = torch.tensor([stream[start : start + 65] for start in starts])
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def found_consensus(folder: Path, *, steps: int = 150) -> Small:
    """Found a federation on a small model that knows the language of `known`."""
    theirs = folder / "theirs"
    theirs.mkdir(parents=True)
    documents = known()
    tokenizer = train_tokenizer(documents, vocabulary_size=400)
    for name, content in tokenizer_files(tokenizer, model_max_length=CONTEXT_TOKENS).items():
        (theirs / name).write_bytes(content)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            eos_token_id=0,
            bos_token_id=None,
        )
    )
    teach(model, tokenizer, documents, steps=steps, seed=0)
    model.save_pretrained(theirs)
    founding = Founding(
        federation="loom",
        objective=objective_named("causal-lm"),
        create={"model": str(theirs)},
        pool=[write_texts(folder / "pool.jsonl", documents)],
        seed=1,
        policy=FederationPolicy(aggregation=AggregationPolicy(codec="float32")),
    )
    found(folder / "coordinator", founding, settings_for, now=FOUNDED_AT)
    return Small(CoordinatorHome(folder / "coordinator"))


RECIPE = """\
[model]
name = "ours"
base = "{base}"
languages = ["eus"]

[data]
text = ["text.jsonl"]
chats = ["chats.jsonl"]
preferences = ["pairs.jsonl"]

[training]
stages = {stages}
method = "{method}"
device = "cpu"
rank = 8
sequence_tokens = 128
batch = 4

[language]
steps = 60
[instruct]
steps = 20
[values]
steps = 12
learning_rate = 1e-3

[floor]
bits_per_byte_percent = {percent}
"""


def write_recipe(
    folder: Path,
    base: Path,
    *,
    stages: Sequence[str] = ("language",),
    method: str = "lora+embeddings",
    percent: float = 200.0,
    more: str = "",
) -> Path:
    """Write a recipe and the community's own files beside it."""
    write_texts(folder / "text.jsonl", ours(80))
    asked = sentences(_ASKED, 60, seed=5)
    good, bad = sentences(_OURS, 60, seed=6), sentences(_KNOWN, 60, seed=7)
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(asked, good, strict=True)
    ]
    pairs = [
        {"prompt": q, "chosen": a, "rejected": b} for q, a, b in zip(asked, good, bad, strict=True)
    ]
    for name, rows in (("chats", chats), ("pairs", pairs)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    recipe = folder / "recipe.toml"
    text = RECIPE.format(base=base, stages=json.dumps(stages), method=method, percent=percent)
    recipe.write_text(text + more, encoding="utf-8")
    return recipe


def next_round(consensus: Small, change: Callable[[Any, Tokenizer], None]) -> Path:
    """Publish a round in which one member changed the newest model by `change`."""
    newest = max(consensus.home.published.glob("round-*"))
    opened = open_vector_file(newest / MODEL_FILE)
    model: Any = load_model(newest)
    change(model, Tokenizer.from_file(str(newest / "tokenizer.json")))
    delta = opened.vector - from_model(model, opened.layout)
    consensus.publisher.publish(consensus.closed({"fr-bnf": delta}))
    return max(consensus.home.published.glob("round-*"))
