"""What was written is loaded by another program's reader, and has to predict what it came from.

Most exports that turn out as gibberish elsewhere were never loaded by whoever made them.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

from tapestry.errors import ConfigError
from tapestry.objectives.loading import refusing

PROMPTS = (
    "The capital of France is Paris, and the river that runs through it is the",
    "Once upon a time there was a weaver who had seven daughters and one loom.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "1, 2, 3, 5, 8, 13, 21, 34,",
    "Dear Sir or Madam,\n\nI am writing to you about the school in our village.",
    "Water boils at 100 degrees. At what temperature does it freeze?",
    "El agua hierve a cien grados y se congela a cero.",
    "La bibliothèque ouvre à neuf heures, sauf le dimanche.",
    "Der Zug nach Wien fährt um acht Uhr von Gleis sieben ab.",
    "Selamat pagi, apa kabar? Hari ini cuaca sangat cerah.",
    "Habari ya asubuhi? Leo ni siku nzuri ya kujifunza.",
    "Góðan daginn, hvernig hefur þú það í dag?",
    "Сегодня хорошая погода, и дети играют во дворе.",
    "مرحبا، كيف حالك اليوم؟ الطقس جميل.",
    "שלום, מה שלומך היום? מזג האוויר יפה.",
    "नमस्ते, आज मौसम बहुत अच्छा है।",
    "வணக்கம், இன்று வானிலை நன்றாக உள்ளது.",
    "今天天气很好,我们去公园吧。",
    "おはようございます。今日はいい天気ですね。",
    "<p>A tag, a \t tab, two  blanks, and an emoji: 🧵</p>\r\n",
)
"""Twenty beginnings, of several scripts and kinds of text."""

_MOST_TOKENS = 64
_MOST_DIVERGENCE = {"f32": 1e-6, "f16": 2e-3, "q8_0": 0.05, "q4_0": 1.0}
"""Nats in the mean by which what was read back may differ; beyond it something is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How alike two models predict the tokens of `PROMPTS`."""

    prompts: int
    predictions: int
    same_first: float
    """Share of the places where both find the same token likeliest."""
    divergence: float
    """Kullback-Leibler divergence in nats, mean over the places."""
    largest_difference: float
    """Of a log-probability, among the likelier half of each place."""

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.prompts} prompts, {self.predictions} predictions: likeliest token the same in "
            f"{self.same_first:.1%}, divergence {self.divergence:.2g} nats"
        )


def predictions(module: Any, tokenizer: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """Return a model's log-probabilities at every place of `PROMPTS`, a [T, V] for each."""
    device = next(module.parameters()).device
    found = []
    module.eval()
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer(prompt)["input_ids"][:_MOST_TOKENS]
            logits = module(input_ids=torch.tensor([ids], device=device)).logits[0]
            found.append(logits.float().log_softmax(-1).cpu())
    return found


def compare(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Agreement:
    """Return how alike two models' predictions are."""
    p, q = torch.cat(list(expected)), torch.cat(list(found))
    if p.shape != q.shape:
        raise ConfigError(f"{tuple(q.shape)} predictions were read back, expected {tuple(p.shape)}")
    likelier = p >= p.median(-1, keepdim=True).values
    return Agreement(
        prompts=len(expected),
        predictions=len(p),
        same_first=float((p.argmax(-1) == q.argmax(-1)).double().mean()),
        divergence=float((p.double().exp() * (p.double() - q.double())).sum(-1).mean()),
        largest_difference=float((p - q).abs()[likelier].max()),
    )


def require_agreement(agreement: Agreement, *, type_name: str, where: Path) -> None:
    """Refuse what predicts something else than its type of numbers explains.

    Raises:
        ConfigError: With how far apart they are.
    """
    most = _MOST_DIVERGENCE[type_name]
    if not agreement.divergence <= most:  # a NaN as well
        raise ConfigError(
            f"{where}: not written: loaded back it predicts something else ({agreement}; at most "
            f"{most:g} nats with {type_name}); take a wider --type, or --format merged"
        )


def load_gguf(path: Path) -> Any:  # noqa: ANN401
    """Return the model in a GGUF file, as transformers reads it, in float32.

    Raises:
        ConfigError: transformers cannot read it.
    """
    with refusing(path, "cannot be loaded back"), _reading_once():
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        config.head_dim = _head_elements(path)  # transformers leaves it out for some architectures
        return AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )


def _head_elements(path: Path) -> int:
    fields = gguf.GGUFReader(path).fields
    architecture = fields[gguf.Keys.General.ARCHITECTURE].contents()
    return int(fields[gguf.Keys.Attention.KEY_LENGTH.format(arch=architecture)].contents())


@contextmanager
def _reading_once() -> Iterator[None]:
    """Keep what transformers asks of `gguf` anew for each of a model's parts, seconds each time."""
    kept = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in kept.items():
        setattr(gguf, name, cache(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(gguf, name, function)
