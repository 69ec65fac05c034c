"""Pairs of answers for people to choose from: read, made by a model, kept as JSONL.

`{"prompt": "What is ...?", "answers": ["One answer.", "Another."]}`, one a line.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry_finetune.charter.folding import fold
from tapestry_finetune.charter.guard import Guard
from tapestry_finetune.rows.faults import Fault, RowFaults
from tapestry_finetune.rows.records import BadRecord, records
from tapestry_finetune.voices import Voice

_SHAPE = '{"prompt": "...", "answers": ["...", "..."]}'
_LONGEST = 20_000
"""Characters of a prompt or an answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and two answers to it; which of them is whose, nobody is told."""

    prompt: str
    answers: tuple[str, str]

    @property
    def id(self) -> str:
        """Follows from what it says."""
        said = json.dumps([self.prompt, *self.answers], ensure_ascii=False)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def read_questions(path: Path) -> list[Question]:
    """Read the pairs of answers in a JSONL file.

    Raises:
        ConfigError: Something in it is no such pair; every fault is named with its line.
    """
    questions: dict[str, Question] = {}
    faults: list[Fault] = []
    for record in records(path, path.name):
        if isinstance(record, BadRecord):
            faults.append(record.fault)
            continue
        wrong = _wrong_with(record.fields)
        if wrong:
            faults.append(Fault(path.name, record.line, wrong))
            continue
        first, second = record.fields["answers"]
        question = Question(record.fields["prompt"].strip(), (first.strip(), second.strip()))
        questions[question.id] = question
    if faults:
        raise RowFaults(faults, rows=len(questions))
    if not questions:
        raise ConfigError(f"{path}: no questions; each line must be {_SHAPE}")
    return list(questions.values())


def _wrong_with(fields: Mapping[str, Any]) -> str:
    prompt, answers = fields.get("prompt"), fields.get("answers")
    if not isinstance(prompt, str) or not isinstance(answers, list) or len(answers) != 2:
        return f"a prompt with two answers is expected: {_SHAPE}"
    texts = [prompt, *answers]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "the prompt or an answer is empty, or is no text"
    if any(len(text) > _LONGEST for text in texts):
        return f"a text has more than {_LONGEST:,} characters: nobody reads that much"
    if fold(answers[0]).strip() == fold(answers[1]).strip():
        return "both answers are the same: there is nothing to choose"
    return ""


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write pairs of answers, whole or not at all."""
    lines = [
        json.dumps({"prompt": one.prompt, "answers": one.answers}, ensure_ascii=False)
        for one in questions
    ]
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file, or the field `prompt` of a JSONL file, each once.

    Raises:
        ConfigError: It cannot be read, or has none.
    """
    found: list[str] = []
    if path.suffix == ".jsonl":
        for record in records(path, path.name):
            if isinstance(record, BadRecord):
                raise RowFaults([record.fault], rows=len(found))
            prompt = record.fields.get("prompt")
            if not isinstance(prompt, str):
                fault = Fault(path.name, record.line, 'no field "prompt" with a text')
                raise RowFaults([fault], rows=len(found))
            found.append(prompt)
    else:
        try:
            found = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    prompts = list(dict.fromkeys(prompt.strip() for prompt in found if prompt.strip()))
    if not prompts:
        raise ConfigError(f"{path}: no prompts; write one a line")
    return prompts


Speaking = Callable[[], AbstractContextManager[Voice]]
"""Begins to speak as one of the two."""
Answering = Callable[[Voice, str], str]


@dataclass(frozen=True, slots=True)
class Made:
    """What two voices made of prompts."""

    questions: tuple[Question, ...]
    same: int
    """Prompts that both answered alike: left out."""
    protected: int
    """Prompts that touched a protected topic, or an answer did: left out."""


def make_questions(
    prompts: Sequence[str],
    speakers: Sequence[tuple[Speaking, Answering]],
    guard: Guard,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Let two voices answer each prompt.

    Args:
        prompts: What is asked.
        speakers: The two: how to begin to speak, and how each answers.
        guard: Of the charter; nothing that it refuses is shown to anybody.
        on_progress: Called with answers given and all of them.
    """
    asked = [prompt for prompt in prompts if guard.on_prompt(prompt).is_allowed]
    answered: list[list[str]] = []
    for number, (speaking, answering) in enumerate(speakers):
        answered.append([])
        with speaking() as voice:
            for prompt in asked:
                answered[-1].append(answering(voice, prompt).strip())
                if on_progress is not None:
                    on_progress(number * len(asked) + len(answered[-1]), len(asked) * 2)
    questions = list(_different(asked, answered))
    allowed = [one for one in questions if all(guard.on_answer(a).is_allowed for a in one.answers)]
    return Made(
        tuple(allowed),
        same=len(asked) - len(questions),
        protected=len(prompts) - len(asked) + len(questions) - len(allowed),
    )


def _different(asked: Sequence[str], answered: Sequence[Sequence[str]]) -> Iterator[Question]:
    for prompt, first, second in zip(asked, *answered, strict=True):
        if first and second and fold(first) != fold(second):
            yield Question(prompt, (first, second))
