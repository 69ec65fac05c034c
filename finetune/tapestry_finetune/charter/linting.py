"""What a board should look at before it adopts its charter: errors to mend, hints to weigh."""

import itertools
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tapestry_finetune.charter.cases import FEWEST_HELD_OUT, held_out
from tapestry_finetune.charter.folding import fold
from tapestry_finetune.charter.framing import Framing
from tapestry_finetune.charter.guard import Topics
from tapestry_finetune.charter.labels import Labels
from tapestry_finetune.charter.likeness import likeness
from tapestry_finetune.charter.patterns import expressions
from tapestry_finetune.charter.probing import can_match, too_wide
from tapestry_finetune.charter.settings import Case, Charter, Principle, Protected, misfits, named
from tapestry_finetune.charter.starter import starter
from tapestry_finetune.charter.votes import agreement_of, group_aware_consensus

FEWEST_CASES = 5
"""Of a principle: fewer neither teach nor measure it."""
_ALIKE = 0.7
"""Of two prompts, that ask the same."""
_CONTRARY = 0.5
"""Of a good and a bad answer, that say the same; answers vary more than questions."""
_LONGEST_TEXT = 240
_LONGER = 1.5
"""Good answers so many times as long as bad ones teach length."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at."""

    level: Literal["error", "hint"]
    where: str
    what: str


def lint(charter: Charter) -> list[Finding]:
    """Return everything that should be looked at, errors first."""
    misfitting = [Finding("error", where, what) for where, what in misfits(charter)]
    found = itertools.chain(
        misfitting,
        _of_samples(charter),
        _of_principles(charter),
        _of_answers(charter),
        _of_likeness(charter),
        _of_topics(charter),
        _of_cases_with_topics(charter),
        _of_labels(charter),
    )
    return sorted(found, key=lambda finding: finding.level != "error")


def _of_samples(charter: Charter) -> Iterator[Finding]:
    """Find what still stands there as `charter new` wrote it."""
    sample = tomllib.loads(starter(charter.identity.languages[0]))
    if charter.identity.community == sample["identity"]["community"]:
        what = f'community = "{charter.identity.community}" is the sample\'s: write who you are'
        yield Finding("hint", "identity", what)
    texts = {one["text"] for one in sample["principle"]}
    for principle in charter.principle:
        if principle.text in texts:
            what = "this is the sample's text: replace it by your own, with its cases, or remove it"
            yield Finding("hint", f"principle {principle.id}", what)


def _of_principles(charter: Charter) -> Iterator[Finding]:
    is_kept = held_out(charter)
    framing = Framing(charter.identity.languages[0])
    for principle in {one.id: one for one in charter.principle}.values():
        where = f"principle {principle.id}"
        kept = [
            kept
            for case, kept in zip(charter.case, is_kept, strict=True)
            if principle.id in case.principles
        ]
        yield from (Finding("error", where, what) for what in _too_few(principle, kept))
        yield from (Finding("hint", where, what) for what in _wording(principle, framing))
        yield from (Finding("hint", where, what) for what in _standing(principle, charter))


def _too_few(principle: Principle, kept: Sequence[bool]) -> Iterator[str]:
    if len(kept) < FEWEST_CASES:
        yield (
            f"{len(kept)} cases name it, {FEWEST_CASES} are the fewest that teach and measure it: "
            f"add {FEWEST_CASES - len(kept)} [[case]] with principles = [{principle.id!r}]"
        )
    elif sum(kept) < FEWEST_HELD_OUT:
        yield (
            f"{sum(kept)} of its cases held out, {FEWEST_HELD_OUT} are the fewest that measure "
            "it: leave held_out away where it is false"
        )
    elif all(kept) and not principle.held_out:
        yield (
            "all its cases are held out, nothing teaches it: leave held_out away in some, or say "
            "held_out = true in the principle if that is meant"
        )


def _wording(principle: Principle, framing: Framing) -> Iterator[str]:
    word = framing.negative_word(principle.text)
    if word is not None:
        yield (
            f"says what not to do ({word!r}): people agree more with what is to be done; say that, "
            "and keep this as counter_example"
        )
    if not principle.behaviour.strip():
        yield "has no behaviour: say what somebody watching would see the assistant do"
    if not principle.counter_example.strip():
        yield "has no counter_example: say what it would look like to break it"
    if len(principle.text) > _LONGEST_TEXT:
        yield (
            f"its text has {len(principle.text)} characters: more than one idea? Split it, or move "
            "the detail to behaviour"
        )


def _standing(principle: Principle, charter: Charter) -> Iterator[str]:
    if not principle.votes:
        return
    whole = group_aware_consensus(principle.votes)
    for group, votes in principle.votes.items():
        if agreement_of(votes) < 0.5:
            yield (
                f"group {group!r} is not behind it ({votes.agree} of {votes.cast} agree); "
                f"group-aware consensus {whole:.2f}: reword it with them"
            )
    silent = [group for group in charter.identity.groups if group not in principle.votes]
    if silent:
        yield f"no votes of {', '.join(silent)}: their consent is not known"


def _of_answers(charter: Charter) -> Iterator[Finding]:
    for number, case in enumerate(charter.case, start=1):
        if fold(case.good).strip() == fold(case.bad).strip():
            yield Finding(
                "error", named(number, case), "the good and the bad answer are the same: change one"
            )
    ratios = [len(case.good) / len(case.bad) for case in charter.case]
    if len(ratios) >= FEWEST_CASES:
        middle = float(np.median(ratios))
        if not 1 / _LONGER <= middle <= _LONGER:
            which, times = ("longer", middle) if middle > 1 else ("shorter", 1 / middle)
            yield Finding(
                "hint",
                "cases",
                f"good answers are usually {times:.1f} times {which} than bad ones: a model would "
                "learn the length; make some bad answers as long as the good",
            )


def _of_likeness(charter: Charter) -> Iterator[Finding]:
    cases = charter.case
    if len(cases) < 2:
        return
    owners = [number for number, case in enumerate(cases) for _prompt in case.prompts]
    prompts = [prompt for case in cases for prompt in case.prompts]
    goods, bads = [case.good for case in cases], [case.bad for case in cases]
    contrary, alike = likeness(goods, bads), likeness(goods, goods) + likeness(bads, bads)
    crossed = contrary + contrary.T
    same_prompt = likeness(prompts, prompts)
    is_kept = held_out(charter)
    pairs = {
        (owners[i], owners[j])
        for i, j in zip(*np.nonzero(same_prompt >= _ALIKE), strict=True)
        if owners[i] < owners[j]
    }
    for one, other in sorted(pairs):
        beside = named(other + 1, cases[other])
        where = named(one + 1, cases[one])
        is_contrary = max(contrary[one, other], contrary[other, one]) >= _CONTRARY
        if is_contrary and crossed[one, other] > alike[one, other]:
            yield Finding(
                "error",
                where,
                f"{beside} asks the same, and what is good here is bad there: decide for one",
            )
        elif is_kept[one] != is_kept[other]:
            yield Finding(
                "hint",
                where,
                f"{beside} asks nearly the same, and one is trained on while the other judges: "
                "make them paraphrases of one case",
            )


def _of_topics(charter: Charter) -> Iterator[Finding]:
    texts = [text for case in charter.case for text in _texts_of(case)]
    for protected in charter.protected:
        where = f"protected {protected.topic!r}"
        said = list(expressions(protected.terms, protected.patterns))
        wide = too_wide([node for _name, node in said], texts)
        for number, (name, node) in enumerate(said):
            if not can_match(node):
                yield Finding("error", where, f"{name} matches nothing: no text is as it asks")
            elif number in wide:
                yield Finding("error", where, f"{name} matches too much: {wide[number]}")
        missed = _missed(protected)
        for number in missed:
            yield Finding(
                "error", where, f"example {number} is not recognized: add what it says to terms"
            )
        if protected.answer and Topics([protected]).found_in(protected.answer):
            yield Finding("error", where, "its answer says itself what it protects: reword it")


def _missed(protected: Protected) -> list[int]:
    topics = Topics([protected])
    return [
        number
        for number, example in enumerate(protected.examples, start=1)
        if topics.found_in(example) is None
    ]


def _of_cases_with_topics(charter: Charter) -> Iterator[Finding]:
    topics = Topics(charter.protected)
    for number, case in enumerate(charter.case, start=1):
        where = named(number, case)
        good = topics.found_in(case.good)
        if good is not None:
            yield Finding(
                "error",
                where,
                f"its good answer has {good[1]} of the protected topic {good[0].topic!r}: the "
                "guard would stop it",
            )
            continue
        for text in (*case.prompts, case.bad):
            found = topics.found_in(text)
            if found is not None:
                yield Finding(
                    "hint",
                    where,
                    f"touches the protected topic {found[0].topic!r} ({found[1]}): not trained "
                    "on, and the guard answers before the model",
                )
                break


def _of_labels(charter: Charter) -> Iterator[Finding]:
    language = charter.identity.languages[0]
    if language.split("-", maxsplit=1)[0] == "eng":
        return
    said, english = charter.labels.model_dump(), Labels().model_dump()
    left = [key for key, text in said.items() if text == english[key]]
    if left == list(said):
        yield Finding(
            "hint",
            "labels",
            f"are in English, the charter is in {language}: translate [labels], since they stand "
            "in the prompt",
        )
    elif left:
        what = f"still in English, the charter is in {language}: {', '.join(left)}"
        yield Finding("hint", "labels", what)


def _texts_of(case: Case) -> list[str]:
    return [*case.prompts, case.good, case.bad]
