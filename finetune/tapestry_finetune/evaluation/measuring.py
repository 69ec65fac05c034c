"""Measure one voice: read what the suites hold once, then ask any number of models."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tapestry.data.language import identify, language_tag
from tapestry.data.reading import read_documents
from tapestry.errors import ConfigError
from tapestry_finetune.evaluation.bits import bits_of, first_token
from tapestry_finetune.evaluation.grams import Grams
from tapestry_finetune.evaluation.items import Prompt, Suite, read_prompts, read_suite
from tapestry_finetune.evaluation.preferences import Judge
from tapestry_finetune.evaluation.questions import answer_within, measure_suite
from tapestry_finetune.evaluation.series import Measured, Series, sliced
from tapestry_finetune.evaluation.spoken import (
    Protected,
    is_refusal,
    lines_in_language,
    main_scripts,
    opening_of,
    phrases_for,
)
from tapestry_finetune.evaluation.suites import Suites
from tapestry_finetune.evaluation.survey import (
    Behaviour,
    Survey,
    load_asked,
    stand_by_behaviour,
    stand_by_survey,
)
from tapestry_finetune.rows.kinds import ChatRow
from tapestry_finetune.rows.reading import read_rows
from tapestry_finetune.scoring import answer_likelihoods
from tapestry_finetune.voices import Fit, Voice

_MOST_OPENINGS = 20
"""Protected texts whose beginning a model is given."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is measured, how many are done, and of how many."""


@dataclass(frozen=True)
class Material:
    """What the suites hold, in memory."""

    suites: Suites
    texts: dict[str, list[str]]
    chats: list[ChatRow]
    questions: list[Suite]
    prompts: list[Prompt]
    must_answer: list[Prompt]
    must_refuse: list[Prompt]
    protected: list[str]
    survey: Survey | None
    behaviour: Behaviour | None
    judge: Judge | None
    """The charter: its held-out cases, its prompt, its guard."""

    def scripts(self, language: str) -> frozenset[str]:
        """Return the scripts of a language: of its held-out text, else of the prompts in it."""
        asked = [one.text for one in self.prompts if language in (one.language, identify(one.text))]
        return main_scripts(self.texts.get(language) or asked)

    def described(self) -> dict[str, Any]:
        """Return what was measured on and how, so that it can be done again: digests, no text."""
        read: dict[str, Any] = {
            **{f"text {tag}": texts for tag, texts in self.texts.items()},
            "chats": [row.messages for row in self.chats],
            **{f"suite {one.name}": one.items for one in self.questions},
            "prompts": self.prompts,
            "must_answer": self.must_answer,
            "must_refuse": self.must_refuse,
            "protected": self.protected,
        }
        asked = {
            name: one.model_dump_json()
            for name, one in (("survey", self.survey), ("behaviour", self.behaviour))
            if one is not None
        }
        settings = ("most_tokens", "window_tokens", "context_tokens", "resamples", "seed")
        return {
            **{
                name: {"items": len(found), "digest": _digest(repr(found))}
                for name, found in read.items()
                if found
            },
            **{name: {"digest": _digest(text)} for name, text in asked.items()},
            "settings": {name: getattr(self.suites, name) for name in settings},
        }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_material(suites: Suites, judge: Judge | None = None) -> Material:
    """Read everything that is to be measured.

    Raises:
        ConfigError: Something is missing or cannot be used; the message names file and line.
    """

    def prompts(name: str) -> list[Prompt]:
        path = getattr(suites, name)
        return [] if path is None else read_prompts(path)

    texts = {
        language_tag(tag): [
            one.text for one in islice(read_documents(paths), suites.documents) if one.text.strip()
        ]
        for tag, paths in suites.text.items()
    }
    names = [path.stem for path in suites.suites]
    for name in names:
        if name in texts or names.count(name) > 1:
            raise ConfigError(
                f"two things to measure are called {name!r}: rename a suite, the report tells "
                "them apart by the names of their files"
            )
    return Material(
        suites=suites,
        texts=texts,
        chats=[] if suites.chats is None else _read_chats(suites.chats, suites.documents),
        questions=[read_suite(path) for path in suites.suites],
        prompts=prompts("prompts"),
        must_answer=prompts("must_answer"),
        must_refuse=prompts("must_refuse"),
        protected=[one.text for one in read_documents(suites.protected)]
        if suites.protected
        else [],
        survey=load_asked(suites.survey, Survey, "survey"),
        behaviour=load_asked(suites.behaviour, Behaviour, "behaviour"),
        judge=judge,
    )


def _read_chats(path: Path, most: int) -> list[ChatRow]:
    found = read_rows([path])
    if found.kind != "chat":
        raise ConfigError(f"{path}: holds {found.kind}, expected conversations; see docs/data.md")
    return [row for row in found.rows if isinstance(row, ChatRow)][:most]


def measure(
    voice: Voice,
    material: Material,
    *,
    only_values: bool = False,
    on_progress: OnProgress = lambda _what, _done, _of: None,
) -> Measured:
    """Ask a model everything.

    Args:
        voice: The model, with the system prompt that it gets.
        material: From `read_material`.
        only_values: Leave out texts and questions, which a system prompt is not about.
        on_progress: Told how far it is.
    """
    measured = Measured()
    voice = dataclasses.replace(voice, fit=Fit())
    if not only_values:
        _measure_ability(voice, material, measured, on_progress)
    if material.judge is not None:
        measured.add(material.judge.preferences(voice, on_progress=partial(on_progress, "charter")))
    _measure_speech(voice, material, measured, on_progress)
    if material.survey is not None:
        measured.values["survey"] = stand_by_survey(voice, material.survey, on_progress=on_progress)
    if material.behaviour is not None:
        measured.values["behaviour"] = stand_by_behaviour(
            voice, material.behaviour, on_progress=on_progress
        )
    if said := voice.fit.said(voice.context_tokens):
        measured.notes.append(said)
    return measured


def with_prompt(voice: Voice, judge: Judge) -> Voice:
    """Return the same model with the charter as its system prompt."""
    return dataclasses.replace(voice, system=judge.prompt)


def _measure_ability(
    voice: Voice, material: Material, measured: Measured, on_progress: OnProgress
) -> None:
    suites = material.suites
    window, context = suites.window_tokens, suites.context_tokens
    for tag, texts in material.texts.items():
        bits, text_bytes = bits_of(
            voice,
            texts,
            window_tokens=window,
            context_tokens=context,
            on_progress=partial(on_progress, f"text {tag}"),
        )
        ids = [str(number) for number in range(len(texts))]
        measured.add(sliced("bits_per_byte", tag, ids, bits, text_bytes))
    if material.chats:
        asked = [(chat.messages[:-1], chat.messages[-1]["content"]) for chat in material.chats]
        found = answer_likelihoods(voice, asked)
        on_progress("chats", len(found), len(found))
        bits_N = [-one.nats / math.log(2) for one in found]
        ids = [str(number) for number in range(len(found))]
        measured.add(sliced("answer_bits", "chats", ids, bits_N, [o.text_bytes for o in found]))
    for suite in material.questions:
        measured.add(
            measure_suite(
                voice,
                suite,
                window_tokens=window,
                context_tokens=context,
                on_progress=on_progress,
            )
        )


def _measure_speech(
    voice: Voice, material: Material, measured: Measured, on_progress: OnProgress
) -> None:
    """Let the model answer, and look at what it said."""

    def said(what: str, prompts: Sequence[Prompt]) -> list[str]:
        answers = []
        for number, prompt in enumerate(prompts, 1):
            answers.append(
                answer_within(voice, prompt.text, most_tokens=material.suites.most_tokens)
            )
            on_progress(what, number, len(prompts))
        if empty := sum(not one.strip() for one in answers):
            measured.notes.append(
                f"{what}: {empty} of {len(prompts)} prompts got no answer, or with what the model "
                "is told first leave no room in its context"
            )
        return answers

    measured.answers = said("answers", material.prompts)
    measured.add(_languages(material, measured.answers))
    judge = material.judge
    phrases = phrases_for([*material.suites.refusals, *(judge.replies if judge else [])])
    outputs = list(measured.answers)
    for is_wanted, prompts in ((True, material.must_answer), (False, material.must_refuse)):
        name = "answered" if is_wanted else "refused"
        answers = said(name, prompts)
        outputs += answers
        measured.add(_refusals(name, prompts, answers, phrases, judge))
    if material.protected:
        openings = material.protected[:_MOST_OPENINGS]
        for number, text in enumerate(openings, 1):
            outputs.append(_gone_on(voice, opening_of(text), material.suites.most_tokens))
            on_progress("protected text", number, len(openings))
        measured.add(_leaks(material.protected, outputs))


def _languages(material: Material, answers: Sequence[str]) -> list[Series]:
    """Return the share of lines in the language of the prompt, by language."""
    languages = [prompt.language or identify(prompt.text) for prompt in material.prompts]
    grams = Grams(material.texts)
    made: list[Series] = []
    for language in sorted(set(languages) - {""}):
        at = [number for number, one in enumerate(languages) if one == language]
        scripts = material.scripts(language)
        counts = [
            lines_in_language(answers[number], language, scripts=scripts, grams=grams)
            for number in at
        ]
        made += sliced(
            "language",
            language,
            [str(number) for number in at],
            [right for right, _told in counts],
            [told for _right, told in counts],
        )
    return made


def _refusals(
    name: str,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    phrases: Sequence[str],
    judge: Judge | None,
) -> list[Series]:
    """Return how often the model, and the model behind the guard, does what it must."""
    if not prompts:
        return []
    ids = [str(number) for number in range(len(prompts))]
    tags = [{"language": one.language} if one.language else {} for one in prompts]

    def series(measure_name: str, refused: Sequence[bool]) -> list[Series]:
        done = [
            float(not one and bool(said.strip())) if name == "answered" else float(one)
            for one, said in zip(refused, answers, strict=True)
        ]
        return sliced(measure_name, "all", ids, done, tags=tags)

    refused = [is_refusal(one, phrases) for one in answers]
    made = series(name, refused)
    if judge is not None:
        guarded = [
            one or judge.stops(prompt.text, said)
            for one, prompt, said in zip(refused, prompts, answers, strict=True)
        ]
        made += series(f"{name}_guarded", guarded)
    return made


def _leaks(protected: Sequence[str], outputs: Sequence[str]) -> list[Series]:
    known = Protected(protected)
    leaked = [float(known.is_repeated_in(one)) for one in outputs]
    return sliced("leaked", "all outputs", [str(n) for n in range(len(outputs))], leaked)


def _gone_on(voice: Voice, opening: str, most_tokens: int) -> str:
    """Return how a model goes on with a text, without the chat template."""
    tokens = [first_token(voice), *voice.tokenizer.encode(opening, add_special_tokens=False)]
    device = next(voice.module.parameters()).device
    with torch.inference_mode():
        ids = torch.tensor([tokens], device=device)
        made = voice.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most_tokens,
            do_sample=False,
            pad_token_id=voice.tokenizer.eos_token_id,
        )
    return str(voice.tokenizer.decode(made[0, len(tokens) :], skip_special_tokens=True))
