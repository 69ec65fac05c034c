"""Rows as token ids: what is learnt, what is too long, and what that means in numbers."""

import tapestry.offline  # noqa: F401 - before datasets is imported

# isort: split
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from datasets import Dataset

from tapestry.errors import ConfigError
from tapestry_finetune.dialogue import Message, answer_ids, encode, encode_masked

_MOST_DROPPED = 0.01
_NAMED = 5
_T = TypeVar("_T")


@dataclass(slots=True)
class Counted:
    """What became of the rows of one kind."""

    rows: int = 0
    tokens: int = 0
    learnt: int = 0
    """Tokens that the loss is taken of."""
    text_bytes: int = 0
    text_tokens: int = 0
    """What `text_bytes` is in tokens: without replay, of preferences the answers alone."""
    replayed: int = 0
    """Of the rows, those that are replay."""
    cut: int = 0
    """Pieces that a long text was cut into, beyond the first."""
    dropped: list[str] = field(default_factory=list)
    """Rows that do not fit the context, as file:line."""

    def warning(self) -> str:
        """Return what a person should know of dropped rows; empty: nothing."""
        if not self.dropped:
            return ""
        share = len(self.dropped) / (self.rows + len(self.dropped))
        named = ", ".join(self.dropped[:_NAMED]) + (", ..." if len(self.dropped) > _NAMED else "")
        if share <= _MOST_DROPPED:
            return f"longer than a sequence and dropped, {self._many()}: {named}"
        return (
            f"longer than a sequence and dropped, {self._many()} ({share:.0%}): "
            f"{named}; raise training.sequence_tokens, or shorten them"
        )

    def _many(self) -> str:
        return "1 row" if len(self.dropped) == 1 else f"{len(self.dropped):,} rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Tokenized rows of one stage."""

    kind: str
    """`tokens` (text or chats), `pairs` or `thumbs`."""
    columns: dict[str, list[Any]]
    counted: Counted
    first: int = 0
    """A row that is the community's own, to be shown."""

    def __len__(self) -> int:
        return self.counted.rows

    def dataset(self) -> Dataset:
        """Return them as trl takes them."""
        return Dataset.from_dict(self.columns)


def is_held_out(key: str, share: float) -> bool:
    """Return whether what is called or reads `key` is held out; the same on every run."""
    first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return first < share * 2**64


def split(rows: Sequence[_T], keys: Sequence[str], share: float) -> tuple[list[_T], list[_T]]:
    """Return what is learnt from and what is held out; each has at least one of several rows."""
    out = [is_held_out(key, share) for key in keys]
    if len(rows) > 1 and all(out):
        out[0] = False
    if len(rows) > 1 and not any(out):
        out[-1] = True
    kept = [row for row, is_out in zip(rows, out, strict=True) if not is_out]
    return kept, [row for row, is_out in zip(rows, out, strict=True) if is_out]


def text_examples(
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
    documents: Sequence[str],
    *,
    sequence_tokens: int,
) -> Examples:
    """Return running text as pieces of at most `sequence_tokens`; nothing of it is lost."""
    counted = Counted()
    pieces: list[list[int]] = []
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        ids = [*ids, tokenizer.eos_token_id]
        starts = range(0, len(ids), sequence_tokens)
        pieces += [ids[start : start + sequence_tokens] for start in starts]
        counted.cut += len(starts) - 1
        counted.tokens += len(ids)
        counted.text_bytes += len(document.encode())
    counted.learnt, counted.rows = counted.tokens, len(pieces)
    counted.text_tokens = counted.tokens
    return Examples(kind="tokens", columns={"input_ids": pieces, "labels": pieces}, counted=counted)


def chat_examples(
    tokenizer: Any,  # noqa: ANN401
    dialogues: Sequence[Sequence[Message]],
    names: Sequence[str],
    *,
    sequence_tokens: int,
) -> Examples:
    """Return dialogues whose assistant turns are learnt; what is too long is dropped and named.

    Raises:
        ConfigError: Every one is too long.
    """
    counted = Counted()
    all_ids: list[list[int]] = []
    labels: list[list[int]] = []
    for dialogue, name in zip(dialogues, names, strict=True):
        ids, learnt = encode_masked(tokenizer, dialogue)
        if len(ids) > sequence_tokens:
            counted.dropped.append(name)
            continue
        all_ids.append(ids)
        labels.append([t if is_learnt else -100 for t, is_learnt in zip(ids, learnt, strict=True)])
        counted.rows += 1
        counted.tokens += len(ids)
        counted.learnt += sum(learnt)
        counted.text_bytes += sum(len(message["content"].encode()) for message in dialogue)
    counted.text_tokens = counted.tokens
    _require_some(counted, sequence_tokens)
    return Examples(
        kind="tokens", columns={"input_ids": all_ids, "labels": labels}, counted=counted
    )


def answer_examples(
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[dict[str, Any]],
    names: Sequence[str],
    *,
    kind: str,
    sequence_tokens: int,
) -> Examples:
    """Return prompts with their answers, for DPO and KTO.

    Args:
        tokenizer: With the consensus' template.
        prompts: Dialogues that end with the user's turn.
        answers: `chosen` and `rejected` for pairs; `completion` and `label` for thumbs.
        names: Of the rows, as file:line.
        kind: `pairs` or `thumbs`.
        sequence_tokens: What is longer is dropped and named.

    Raises:
        ConfigError: Every one is too long.
    """
    counted = Counted()
    texts = ("chosen", "rejected") if kind == "pairs" else ("completion",)
    columns: dict[str, list[Any]] = {"prompt_ids": [], **{f"{text}_ids": [] for text in texts}}
    if kind == "thumbs":
        columns["label"] = []
    for prompt, row, name in zip(prompts, answers, names, strict=True):
        head = encode(tokenizer, prompt, opens_answer=True)
        ids = {text: answer_ids(tokenizer, row[text]) for text in texts}
        if len(head) + max(map(len, ids.values())) > sequence_tokens:
            counted.dropped.append(name)
            continue
        columns["prompt_ids"].append(head)
        for text in texts:
            columns[f"{text}_ids"].append(ids[text])
            counted.text_bytes += len(row[text].encode())
        if kind == "thumbs":
            columns["label"].append(row["label"])
        counted.rows += 1
        counted.learnt += sum(map(len, ids.values()))
        counted.tokens += len(head) * len(texts) + sum(map(len, ids.values()))
    counted.text_tokens = counted.learnt
    _require_some(counted, sequence_tokens)
    return Examples(kind=kind, columns=columns, counted=counted)


def with_replay(own: Examples, replay: Examples, share: float, *, seed: int) -> Examples:
    """Return `own` with so much of `replay` that it makes `share` of the tokens, in mixed order.

    Replay that is too short is seen several times.
    """
    import random  # noqa: PLC0415

    order = random.Random(seed)  # noqa: S311
    wanted = own.counted.tokens * share / (1 - share)
    added: list[int] = []
    taken = 0
    pieces = replay.columns["input_ids"]
    while taken < wanted and pieces:
        for index in order.sample(range(len(pieces)), len(pieces)):
            if taken >= wanted:
                break
            added.append(index)
            taken += len(pieces[index])
    places = list(range(len(own) + len(added)))
    order.shuffle(places)
    columns = {}
    for name in own.columns:
        merged = own.columns[name] + [replay.columns[name][index] for index in added]
        columns[name] = [merged[place] for place in places]
    counted = Counted(
        rows=len(places),
        tokens=own.counted.tokens + taken,
        learnt=own.counted.learnt + taken,
        text_bytes=own.counted.text_bytes,
        text_tokens=own.counted.text_tokens,
        replayed=len(added),
        cut=own.counted.cut,
        dropped=own.counted.dropped,
    )
    return Examples(kind=own.kind, columns=columns, counted=counted, first=places.index(0))


def _require_some(counted: Counted, sequence_tokens: int) -> None:
    if not counted.rows:
        first = counted.dropped[0] if counted.dropped else "none"
        raise ConfigError(
            f"all {len(counted.dropped):,} rows are longer than {sequence_tokens:,} tokens "
            f"(first: {first}): raise training.sequence_tokens, or shorten them"
        )
