"""A charter as a judge: its held-out cases, its prompt, and what its guard stops."""

from collections.abc import Callable, Sequence

from tapestry_finetune.charter.cases import held_out_pairs
from tapestry_finetune.charter.guard import Guard
from tapestry_finetune.charter.judge import PairScore, score_charter
from tapestry_finetune.charter.prompt import render
from tapestry_finetune.charter.settings import Charter
from tapestry_finetune.evaluation.series import Series, sliced
from tapestry_finetune.voices import Voice

ALL_CASES = "all cases"


class Judge:
    """A charter, ready to be asked about models."""

    def __init__(self, charter: Charter) -> None:
        """Take a charter that has been read."""
        self._pairs = held_out_pairs(charter)
        self._guard = Guard(charter)
        self.prompt = render(charter)
        """As a system prompt."""
        self.replies = [one.answer for one in charter.protected if one.answer.strip()]
        """What is said in the place of protected topics: to say it is to refuse."""
        self.has_cases = bool(self._pairs)

    def stops(self, prompt: str, said: str) -> bool:
        """Whether the guard lets a prompt not in, or an answer not out."""
        is_free = (
            self._guard.on_prompt(prompt).is_allowed and self._guard.on_answer(said).is_allowed
        )
        return not is_free

    def preferences(
        self, voice: Voice, *, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Series]:
        """Return how often the model finds the good answer likelier, overall and by principle.

        The paraphrases of a case are one item, since they are one question.
        """
        if not self._pairs:
            return []
        scored = score_charter(voice, self._pairs, on_progress=on_progress).pairs
        made: list[Series] = []
        for measure, kept in (
            ("charter", [one.token_margin > 0 for one in scored]),
            ("charter_raw", [one.raw_margin > 0 for one in scored]),
        ):
            made += _by_case(measure, ALL_CASES, scored, kept)
            for name in dict.fromkeys(name for one in scored for name in one.principles):
                at = [number for number, one in enumerate(scored) if name in one.principles]
                made += _by_case(measure, name, [scored[n] for n in at], [kept[n] for n in at])
        return made


def _by_case(
    measure: str, name: str, scored: Sequence[PairScore], kept: Sequence[bool]
) -> list[Series]:
    cases = list(dict.fromkeys(one.case for one in scored))
    right = dict.fromkeys(cases, 0.0)
    asked = dict.fromkeys(cases, 0.0)
    for one, is_kept in zip(scored, kept, strict=True):
        right[one.case] += is_kept
        asked[one.case] += 1
    ids = [str(case) for case in cases]
    return sliced(measure, name, ids, list(right.values()), list(asked.values()))
