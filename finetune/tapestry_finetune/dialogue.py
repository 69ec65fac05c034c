"""Dialogues as tokens, and answers as text; one way for training, measures, chat and serving.

A message is a table with `role` (system, user or assistant) and `content`. Words that look like a
control token stay words: nobody can end a turn, or begin another's, by writing so.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from tapestry.data.chat import CHATML, PLAIN, TURN_END, TURN_START
from tapestry.errors import ConfigError
from tapestry_finetune.base import turn_end_ids
from tapestry_finetune.streaming import Streamer, Written
from tapestry_finetune.voices import Voice

Message = Mapping[str, str]


def encode(
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
    messages: Sequence[Message],
    *,
    opens_answer: bool = False,
) -> list[int]:
    """Return the token ids of a dialogue.

    Args:
        tokenizer: With the template of the consensus.
        messages: In order.
        opens_answer: Add the beginning of the assistant's turn.
    """
    return _encoded(tokenizer, messages, opens_answer=opens_answer)[0]


def encode_masked(
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
    messages: Sequence[Message],
) -> tuple[list[int], list[bool]]:
    """Return the token ids of a dialogue, and for each whether it is learnt.

    Learnt are the assistant's words and the token that ends its turn.
    """
    return _encoded(tokenizer, messages, opens_answer=False)


def answer_ids(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401
    """Return the tokens of an answer, with the one that ends the turn."""
    dialogue = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
    ids, learnt = encode_masked(tokenizer, dialogue)
    return [token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt]


def _encoded(
    tokenizer: Any,  # noqa: ANN401
    messages: Sequence[Message],
    *,
    opens_answer: bool,
) -> tuple[list[int], list[bool]]:
    template = tokenizer.chat_template
    if template == CHATML:
        start, end = (tokenizer.convert_tokens_to_ids(t) for t in (TURN_START, TURN_END))
        return _by_turns(tokenizer, messages, [start], end, "", opens_answer=opens_answer)
    if template == PLAIN:
        end = tokenizer.eos_token_id
        return _by_turns(tokenizer, messages, [], end, "### ", opens_answer=opens_answer)
    encoded = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        add_generation_prompt=opens_answer,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return list(encoded["input_ids"]), [bool(bit) for bit in encoded["assistant_masks"]]


def _by_turns(
    tokenizer: Any,  # noqa: ANN401
    messages: Sequence[Message],
    start: list[int],
    end: int,
    mark: str,
    *,
    opens_answer: bool,
) -> tuple[list[int], list[bool]]:
    """Encode turn by turn what the template writes; the tests compare the two."""
    ids: list[int] = []
    learnt: list[bool] = []

    def add(tokens: list[int], *, is_learnt: bool = False) -> None:
        ids.extend(tokens)
        learnt.extend([is_learnt] * len(tokens))

    with _words_only(tokenizer) as words:
        for message in messages:
            role, content = message["role"], message["content"]
            add(start)
            if role == "assistant":
                add(words(f"{mark}{role}\n"))
                add([*words(content), end], is_learnt=True)
            else:
                add([*words(f"{mark}{role}\n{content}"), end])
            add(words("\n"))
        if opens_answer:
            add([*start, *words(f"{mark}assistant\n")])
    return ids, learnt


@contextmanager
def _words_only(tokenizer: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield an encoder for which control tokens are words like any other."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        yield lambda text: backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.encode_special_tokens = before


def answers(
    voice: Voice,
    messages: Sequence[Message],
    *,
    most_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    written: Written | None = None,
) -> Iterator[str]:
    """Yield the answer to `messages`, piece by piece; closing the iterator stops the model.

    Args:
        voice: Who answers; its system prompt comes first unless the dialogue has one.
        messages: The last one is the user's.
        most_tokens: Where an answer is cut.
        temperature: 0 takes the likeliest token each time.
        seed: Of the choice.
        written: Told with each piece how much has been written; None: nobody asks.

    Raises:
        ConfigError: The dialogue leaves no room for an answer in the model's context.
    """
    prompt = encode(voice.tokenizer, opened(voice, messages), opens_answer=True)
    room = voice.context_tokens - len(prompt)
    if room < 1:
        raise ConfigError(
            f"the dialogue has {len(prompt):,} tokens, the model reads {voice.context_tokens:,}: "
            "shorten it"
        )
    written = written if written is not None else Written()
    streamer = Streamer(voice.tokenizer, turn_end_ids(voice.tokenizer))
    stopped = _Stopped()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with torch.inference_mode():
                voice.module.generate(
                    **_settings(voice, prompt, min(room, most_tokens), temperature, seed),
                    streamer=streamer,
                    stopping_criteria=[stopped],
                )
        except BaseException as error:  # noqa: BLE001 - raised again by who reads
            failures.append(error)
            streamer.end()

    worker = threading.Thread(target=write, name="answer", daemon=True)
    worker.start()
    try:
        for piece, so_far in streamer:
            written.tokens, written.is_ended = so_far.tokens, so_far.is_ended
            if piece:
                yield piece
    finally:
        stopped.event.set()
        worker.join()
    if failures:
        raise failures[0]


def answer(
    voice: Voice,
    messages: Sequence[Message],
    *,
    most_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return the whole answer to `messages`; arguments and refusals are those of `answers`."""
    return "".join(
        answers(voice, messages, most_tokens=most_tokens, temperature=temperature, seed=seed)
    )


def opened(voice: Voice, messages: Sequence[Message]) -> list[Message]:
    """Return a dialogue with the voice's system prompt first, unless it has one of its own."""
    if voice.system and not any(message["role"] == "system" for message in messages):
        return [{"role": "system", "content": voice.system}, *messages]
    return list(messages)


class _Stopped:
    """Ends a generation that nobody listens to any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


def _settings(
    voice: Voice, prompt: list[int], most_tokens: int, temperature: float, seed: int
) -> dict[str, Any]:
    device = next(voice.module.parameters()).device
    ids_BT = torch.tensor([prompt], device=device)
    if temperature > 0:
        torch.manual_seed(seed)
    return {
        "input_ids": ids_BT,
        "attention_mask": torch.ones_like(ids_BT),
        "max_new_tokens": most_tokens,
        "do_sample": temperature > 0,
        "temperature": temperature if temperature > 0 else None,
        "top_p": 0.9 if temperature > 0 else None,
        "top_k": None,
        "eos_token_id": turn_end_ids(voice.tokenizer),
        "pad_token_id": cast("int", voice.tokenizer.pad_token_id),
    }
