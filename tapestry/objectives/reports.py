"""What training and measuring tell whoever watches; without torch, for those who only watch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One optimizer step, as told to whoever watches."""

    step: int
    """Steps done in this call, from 1."""
    loss: float
    """Mean over the step's micro-batches, nats per token."""
    tokens: int
    """Tokens of the step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A model on held-out text."""

    bits: float
    """Cross-entropy summed over the text, in bits."""
    text_bytes: int
    """UTF-8 bytes of that text."""

    @property
    def bits_per_byte(self) -> float:
        """Comparable across tokenizers and languages."""
        return self.bits / self.text_bytes
