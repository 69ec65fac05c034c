"""Which model a charter is held against: a checkpoint, or a bundle on one."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from tapestry_finetune.assistants import Assistant, load_assistant
from tapestry_finetune.base import open_base
from tapestry_finetune.bundle import open_bundle
from tapestry_finetune.charter.cases import held_out_pairs
from tapestry_finetune.charter.guard import Guard
from tapestry_finetune.charter.judge import CharterScore, score_charter
from tapestry_finetune.charter.models import Chosen
from tapestry_finetune.charter.prompt import render
from tapestry_finetune.charter.questions import Answering, Made, Speaking, make_questions
from tapestry_finetune.charter.settings import Charter
from tapestry_finetune.charter.written import WrittenAnswers
from tapestry_finetune.dialogue import answer
from tapestry_finetune.voices import Voice

_NAME = "bundle"
_MOST_TOKENS = 160
_COLD, _WARM = 0.3, 1.0
"""Temperatures of two answers of one model: the careful one, and another."""

OnProgress = Callable[[int, int], None]


def _loaded(chosen: Chosen) -> Assistant:
    """Verify a model and load it."""
    base = open_base(chosen.base, federation=chosen.federation, unverified=chosen.is_unverified)
    bundles = {} if chosen.bundle is None else {_NAME: open_bundle(chosen.bundle)}
    return load_assistant(base, bundles, device=chosen.device)


def score_chosen(
    charter: Charter, chosen: Chosen, *, with_prompt: bool, seed: int, on_progress: OnProgress
) -> CharterScore:
    """Return how well the model keeps a charter.

    Raises:
        ConfigError: The charter has no held-out cases.
        UntrustedError: The checkpoint or bundle does not verify.
    """
    pairs = held_out_pairs(charter)
    assistant = _loaded(chosen)
    with assistant.speaking_as(None if chosen.bundle is None else _NAME) as voice:
        return score_charter(
            replace(voice, system=render(charter)) if with_prompt else voice,
            pairs,
            weights={one.id: one.weight for one in charter.principle},
            seed=seed,
            on_progress=on_progress,
        )


def answer_twice(
    charter: Charter,
    chosen: Chosen,
    prompts: Sequence[str],
    *,
    seed: int,
    so_far: WrittenAnswers,
    on_progress: OnProgress,
) -> Made:
    """Let base and bundle answer each prompt; without a bundle, the base at two temperatures.

    What the same models have answered `so_far` is taken from there, and every new answer kept.
    """
    assistant = _loaded(chosen)

    def speaker(name: str | None, temperature: float) -> tuple[Speaking, Answering]:
        bundle = "" if name is None else assistant.bundles[name].digest
        by = json.dumps([assistant.base.identity.tensors, bundle, temperature, seed])

        def speaking() -> AbstractContextManager[Voice]:
            return assistant.speaking_as(name)

        def answering(voice: Voice, prompt: str) -> str:
            said = so_far.get(by, prompt)
            if said is None:
                asked = [{"role": "user", "content": prompt}]
                said = answer(
                    voice, asked, most_tokens=_MOST_TOKENS, temperature=temperature, seed=seed
                )
                so_far.keep(by, prompt, said)
            return said

        return speaking, answering

    if chosen.bundle is None:
        speakers = [speaker(None, _COLD), speaker(None, _WARM)]
    else:
        speakers = [speaker(None, _COLD), speaker(_NAME, _COLD)]
    return make_questions(prompts, speakers, Guard(charter), on_progress=on_progress)
