"""How likely a model holds a text. Shapes: B sequences in a batch, T tokens, V vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tapestry_finetune.dialogue import Message, answer_ids, encode, opened
from tapestry_finetune.voices import Voice

_BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihood:
    """Of an answer."""

    nats: float
    """Sum of log p over its tokens, with the one that ends the turn; at most 0."""
    tokens: int
    """Those that were asked for: an answer longer than the context is cut."""
    text_bytes: int
    """Of the answer in UTF-8."""


def answer_likelihoods(
    voice: Voice, asked: Sequence[tuple[Sequence[Message], str]]
) -> list[Likelihood]:
    """Return how likely `voice` gives each answer to its dialogue.

    Args:
        voice: Who is asked.
        asked: Dialogues that end with the user's turn, each with an answer.
    """
    pairs = [
        (
            encode(voice.tokenizer, opened(voice, messages), opens_answer=True),
            answer_ids(voice.tokenizer, text),
        )
        for messages, text in asked
    ]
    return [
        Likelihood(
            nats=nats,
            tokens=min(len(ids), voice.context_tokens - 1),
            text_bytes=len(text.encode()),
        )
        for nats, (_, ids), (_, text) in zip(
            continuation_likelihoods(voice, pairs), pairs, asked, strict=True
        )
    ]


def continuation_likelihoods(
    voice: Voice, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[float]:
    """Return the sum of log p, in nats, of each continuation given its prefix.

    Args:
        voice: Whose model.
        pairs: Token ids of prefix, at least one, and of continuation. What is longer than the
            model's context loses the prefix's beginning, and if need be the continuation's end;
            `voice.fit` counts them.
    """
    cut = [_fitting(prefix, rest, voice) for prefix, rest in pairs]
    order = sorted(range(len(cut)), key=lambda i: len(cut[i][0]) + len(cut[i][1]))
    found = [0.0] * len(cut)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * sum(map(len, cut[order[stop]])) <= (
            _BATCH_TOKENS
        ):
            stop += 1
        batch = order[start:stop]
        for index, nats in zip(batch, _scored(voice, [cut[i] for i in batch]), strict=True):
            found[index] = nats
        start = stop
    return found


def _fitting(prefix: list[int], rest: list[int], voice: Voice) -> tuple[list[int], list[int]]:
    most, fit = voice.context_tokens, voice.fit
    fit.asked += 1
    fit.answers_cut += len(rest) >= most
    fit.prompts_cut += len(rest) < most < len(prefix) + len(rest)
    rest = rest[: most - 1]
    return prefix[-(most - len(rest)) :], rest


def _scored(voice: Voice, batch: list[tuple[list[int], list[int]]]) -> list[float]:
    device = next(voice.module.parameters()).device
    longest = max(len(prefix) + len(rest) for prefix, rest in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    seen_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, (prefix, rest) in enumerate(batch):
        ids_BT[row, : len(prefix) + len(rest)] = torch.tensor(prefix + rest)
        seen_BT[row, : len(prefix) + len(rest)] = 1
    fewest = min(len(prefix) for prefix, _ in batch)
    with torch.inference_mode():
        logits_BTV = voice.module(
            input_ids=ids_BT.to(device),
            attention_mask=seen_BT.to(device),
            use_cache=False,
            logits_to_keep=longest - fewest + 1,
        ).logits.float()
    first = longest - logits_BTV.shape[1]
    sums: list[float] = []
    for row, (prefix, rest) in enumerate(batch):
        begin = len(prefix) - 1 - first
        logp_TV = logits_BTV[row, begin : begin + len(rest)].log_softmax(-1)
        chosen = logp_TV.gather(1, torch.tensor(rest, device=device)[:, None])
        sums.append(float(chosen.double().sum()))
    return sums
