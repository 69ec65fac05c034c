"""Named sizes of a causal language model: Llama-shaped, with QK-norm.

The shape is that of transformers' Qwen3 classes: the Llama block (RMSNorm, rotary positions,
SwiGLU, grouped-query attention) plus a norm on queries and keys, which keeps small models from
spiking (arXiv 2503.09799). llama.cpp and every common server know it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tapestry.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Dimensions of a model, and the inner settings that suit it."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int
    sequence_tokens: int
    sequences: int
    inner_steps: int
    learning_rate: float

    def model_config(self, *, vocabulary: int) -> dict[str, Any]:
        """Return the keyword arguments of `Qwen3Config`."""
        return {
            "vocab_size": vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.width // self.heads,
            "max_position_embeddings": max(2048, self.sequence_tokens),
            "tie_word_embeddings": True,
            "use_cache": True,
        }


SIZES = {
    "tiny": Size(
        width=128, layers=4, heads=4, key_value_heads=2, feed_forward=384, vocabulary=2048,
        sequence_tokens=128, sequences=8, inner_steps=20, learning_rate=3e-3,
    ),
    "small": Size(
        width=512, layers=8, heads=8, key_value_heads=4, feed_forward=1408, vocabulary=16_384,
        sequence_tokens=512, sequences=16, inner_steps=50, learning_rate=1e-3,
    ),
    "base": Size(
        width=768, layers=12, heads=12, key_value_heads=4, feed_forward=2048, vocabulary=32_768,
        sequence_tokens=1024, sequences=32, inner_steps=100, learning_rate=6e-4,
    ),
    "1b": Size(
        width=2048, layers=20, heads=16, key_value_heads=8, feed_forward=5632, vocabulary=65_536,
        sequence_tokens=2048, sequences=64, inner_steps=200, learning_rate=3e-4,
    ),
}  # fmt: skip


def nearest_size(settings: Mapping[str, Any], elements: int) -> Size:
    """Return the size that a model was created with, or the nearest one for an adopted model."""
    named = settings.get("size")
    if isinstance(named, str):
        return SIZES[named]
    return SIZES["small" if elements < 3e8 else "base" if elements < 1e9 else "1b"]


def size_named(name: str) -> Size:
    """Return the size called `name`.

    Raises:
        ConfigError: There is none.
    """
    try:
        return SIZES[name]
    except KeyError:
        raise ConfigError(f"unknown size {name!r}: choose one of {', '.join(SIZES)}") from None
