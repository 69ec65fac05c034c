"""Who speaks: a model, its tokenizer, and what it was told first."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Fit:
    """How many texts were asked for their likelihood, and how many did not fit into the context."""

    asked: int = 0
    prompts_cut: int = 0
    """Whose beginning is gone."""
    answers_cut: int = 0
    """Whose end is gone, with all of the prompt but its last token."""

    def said(self, context_tokens: int) -> str:
        """Return a sentence for people; empty if everything fitted."""
        if not self.prompts_cut + self.answers_cut:
            return ""
        return (
            f"of {self.asked:,} likelihoods {self.prompts_cut:,} were asked without the beginning "
            f"of the prompt and {self.answers_cut:,} without the end of the answer: longer than "
            f"the context of {context_tokens:,} tokens"
        )


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
    fit: Fit = field(default_factory=Fit, compare=False)
    """Counted while it is asked."""

    @property
    def context_tokens(self) -> int:
        """The longest sequence that the model was made for."""
        return int(getattr(self.module.config, "max_position_embeddings", 2048))
