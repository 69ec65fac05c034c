"""Who speaks: a model, its tokenizer, and what it was told first."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """What every measure and every answer takes.

    `dataclasses.replace(voice, system=...)` is the same model with another system prompt.
    """

    module: Any
    """A causal language model of transformers, in evaluation mode."""
    tokenizer: Any
    """Of transformers, with the template of the consensus."""
    system: str = ""
    """What it is told before a dialogue; empty: nothing."""

    @property
    def context_tokens(self) -> int:
        """The longest sequence that the model was made for."""
        return int(getattr(self.module.config, "max_position_embeddings", 2048))
