"""A charter's cases as training data and as questions for the judge, never both.

A case is held out if it says so, if one of its principles is, or if its principle has too few that
are: then those whose prompts have the smallest SHA-256, so that the split is the same everywhere
and another case changes little of it. Cases that share a prompt stay together.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tapestry_finetune.charter.folding import fold
from tapestry_finetune.charter.guard import Guard
from tapestry_finetune.charter.settings import Case, Charter
from tapestry_finetune.rows.kinds import ChatRow, Message, Origin, PairRow

FEWEST_HELD_OUT = 2
"""Of a principle."""
_SHARE_HELD_OUT = 0.3


@dataclass(frozen=True, slots=True)
class HeldOutPair:
    """A question for the judge: which of two answers does a model find likelier?"""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    principles: tuple[str, ...]
    case: int
    """Number of its case in the charter, from 1; paraphrases share it."""


def held_out(charter: Charter) -> list[bool]:
    """Return for each case whether it is kept for the judge."""
    groups = _groups(charter)
    kept_whole = {one.id for one in charter.principle if one.held_out}
    decided: dict[int, bool] = {}
    for number, case in enumerate(charter.case):
        group = groups[number]
        if case.held_out or kept_whole.intersection(case.principles):
            decided[group] = True
        elif case.held_out is False:
            decided.setdefault(group, False)
    for principle in charter.principle:
        mine = [n for n, case in enumerate(charter.case) if principle.id in case.principles]
        wanted = min(max(FEWEST_HELD_OUT, round(_SHARE_HELD_OUT * len(mine))), len(mine) // 2)
        have = sum(decided.get(groups[n], False) for n in mine)
        for number in sorted(mine, key=lambda n: _rank(charter.case[n])):
            if have >= wanted:
                break
            if groups[number] not in decided:
                decided[groups[number]] = True
                have += sum(groups[n] == groups[number] for n in mine)
    return [decided.get(group, False) for group in groups]


def chat_rows(charter: Charter) -> list[ChatRow]:
    """Return the training cases as conversations with the good answer."""
    return [
        ChatRow((*_asked(prompt), {"role": "assistant", "content": case.good}), _origin(number))
        for number, case in training_cases(charter)
        for prompt in case.prompts
    ]


def pair_rows(charter: Charter) -> list[PairRow]:
    """Return the training cases as preferences of the good answer to the bad one."""
    return [
        PairRow(_asked(prompt), case.good, case.bad, _origin(number))
        for number, case in training_cases(charter)
        for prompt in case.prompts
    ]


def held_out_pairs(charter: Charter) -> list[HeldOutPair]:
    """Return the pairs for the judge, a paraphrase of a prompt as a pair of its own."""
    return [
        HeldOutPair(_asked(prompt), case.good, case.bad, case.principles, number + 1)
        for (number, case), is_held_out in zip(
            enumerate(charter.case), held_out(charter), strict=True
        )
        if is_held_out
        for prompt in case.prompts
    ]


def training_cases(charter: Charter) -> Iterator[tuple[int, Case]]:
    """Yield the cases to train on, counted from 1; those with excluded topics are left out."""
    guard = Guard(charter)
    for number, (case, is_held_out) in enumerate(
        zip(charter.case, held_out(charter), strict=True), start=1
    ):
        texts = [*case.prompts, case.good, case.bad]
        if not is_held_out and not any(guard.is_protected(text) for text in texts):
            yield number, case


def _origin(number: int) -> Origin:
    return Origin("charter.toml [[case]]", number)


def _asked(prompt: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt},)


def _rank(case: Case) -> str:
    return hashlib.sha256(fold(case.prompt).encode()).hexdigest()


def _groups(charter: Charter) -> list[int]:
    """Return for each case the number of the first with which it shares a prompt, however far."""
    groups = list(range(len(charter.case)))
    seen: dict[str, int] = {}
    for number, case in enumerate(charter.case):
        for prompt in case.prompts:
            other = groups[seen.setdefault(fold(prompt).strip(), number)]
            mine = groups[number]
            if other != mine:
                first, later = min(other, mine), max(other, mine)
                groups = [first if group == later else group for group in groups]
    return groups
