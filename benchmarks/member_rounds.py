"""Rounds of a federation in one process: members train by turns, the coordinator's publisher signs.

What a network and its daemons add is left out; the aggregation, the outer step and the published
checkpoint are the coordinator's own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.data.reading import read_documents
from tapestry.objectives.loading import load_model, load_text_tokenizer
from tapestry.params.modules import from_model
from tapestry_coordinator.home import CoordinatorHome
from tests.coordinator.small import Small


def next_consensus(
    federation: Path,
    texts: Mapping[str, Path],
    *,
    steps: int,
    sequence_tokens: int,
    learning_rate: float,
    sequences: int = 2,
    seed: int = 0,
) -> Path:
    """Publish one more round; return its folder.

    Args:
        federation: The coordinator's folder.
        texts: What each member trains on, by its id.
        steps: Inner steps of each.
        sequence_tokens: Of a sequence.
        learning_rate: Of AdamW.
        sequences: Of a step.
        seed: Of what is drawn.
    """
    small = Small(CoordinatorHome(federation.resolve()))
    newest = max(small.home.published.glob("round-*"))
    before = open_vector_file(newest / MODEL_FILE)
    deltas: dict[str, Any] = {}
    for number, (member, path) in enumerate(sorted(texts.items())):
        model: Any = load_model(newest)
        stream = tokens_of([d.text for d in read_documents([path])], load_text_tokenizer(newest))
        teach(
            model, stream, steps=steps, sequence_tokens=sequence_tokens, sequences=sequences,
            learning_rate=learning_rate, seed=1000 * seed + number,
        )  # fmt: skip
        deltas[member] = before.vector - from_model(model, before.layout)
    small.publisher.publish(small.closed(deltas))
    return max(small.home.published.glob("round-*"))


def tokens_of(texts: Sequence[str], tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Return documents as one stream, each after an end of text."""
    stream: list[int] = []
    for text in texts:
        stream += [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    return stream


def teach(
    model: Any,  # noqa: ANN401
    stream: Sequence[int],
    *,
    steps: int,
    sequence_tokens: int,
    sequences: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train all of a model on sequences drawn from a stream of tokens."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    model.train()
    for _ in range(steps):
        starts = torch.randint(
            0, len(stream) - sequence_tokens - 1, (sequences,), generator=generator
        )
        batch = torch.tensor([stream[start : start + sequence_tokens + 1] for start in starts])
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
