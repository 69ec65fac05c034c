"""What people chose, kept so that nothing is lost: every choice a line, on the disk at once.

Two files: the *log* (`NAME.log.jsonl`) has every choice of everybody and only grows; the newest
choice of a person about a question counts. The *rows* (`NAME.jsonl`) are what follows: one
preference for each question about which more people chose one answer than the other.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import TypeAdapter, ValidationError

from tapestry.errors import ConfigError
from tapestry.storage.atomic import sync_path, write_atomic
from tapestry_finetune.charter.agreement import krippendorff_alpha
from tapestry_finetune.charter.questions import Question

Chosen = Literal["first", "second", "neither", "both_bad"]
"""Of the answers as the question has them, wherever they stood."""
Said = Literal["left", "right", "neither", "both_bad"]
"""As somebody says it who sees two answers beside each other."""
ON_PAPER = "on paper"
"""Whose order the answers on a sheet have, whoever ticks them."""

LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Choice:
    """What one person chose."""

    question: str
    who: str
    chosen: Chosen
    principle: str
    """The one that decided; "" for none in particular."""
    left: Literal["first", "second"]
    """Which answer stood left, or above."""
    at: float
    """Unix seconds."""


_CHOICE = TypeAdapter(Choice)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far people agree."""

    people: int
    questions: int
    """That somebody judged."""
    shared: int
    """That at least two people judged."""
    alpha: float | None
    """Krippendorff's, of choices without an order; None: it says nothing yet."""


class Choices:
    """The choices about some questions; one process at a time writes them."""

    def __init__(
        self, log: BinaryIO, rows: Path, questions: Sequence[Question], *, seed: int
    ) -> None:
        """Go on with an open log; see `open_choices`."""
        self._log = log
        self._rows = rows
        self.questions = list(questions)
        self._by_id = {question.id: question for question in questions}
        self._seed = seed
        self._newest: dict[tuple[str, str], Choice] = {}

    def load(self, choices: Sequence[Choice]) -> None:
        """Take choices that are in the log already."""
        for choice in choices:
            self._newest[choice.who, choice.question] = choice
        self._write_rows()

    def is_swapped(self, question: Question, who: str) -> bool:
        """Whether the second answer stands left for this person; the same every time."""
        said = json.dumps([self._seed, question.id, who]).encode()
        return bool(hashlib.sha256(said).digest()[0] & 1)

    def shown(self, question: Question, who: str) -> tuple[str, str]:
        """Return the answers as this person sees them, left and right."""
        first, second = question.answers
        return (second, first) if self.is_swapped(question, who) else (first, second)

    @property
    def mark(self) -> str:
        """Of the questions and their order: what was ticked on a sheet fits one mark only."""
        said = json.dumps([self._seed, *(question.id for question in self.questions)])
        return hashlib.sha256(said.encode()).hexdigest()[:6]

    def next_for(self, who: str) -> Question | None:
        """Return the first question that this person has not judged; None: all are."""
        open_ones = (one for one in self.questions if not self.is_judged(one, who))
        return next(open_ones, None)

    def done_by(self, who: str) -> int:
        """Return how many of the questions this person has judged."""
        return sum(self.is_judged(one, who) for one in self.questions)

    def last_of(self, who: str) -> Choice | None:
        """Return this person's newest choice about one of the questions."""
        mine = [
            choice
            for (name, question), choice in self._newest.items()
            if name == who and question in self._by_id
        ]
        return max(mine, key=lambda choice: choice.at, default=None)

    def question(self, name: str) -> Question:
        """Return the question with an id."""
        return self._by_id[name]

    def is_judged(self, question: Question, who: str) -> bool:
        """Whether this person has judged a question."""
        return (who, question.id) in self._newest

    def choose(
        self,
        question: Question,
        who: str,
        said: Said,
        *,
        now: float,
        principle: str = "",
        seen_by: str | None = None,
    ) -> Choice:
        """Keep a choice; when this returns it is on the disk.

        Args:
            question: About which.
            who: Chose.
            said: What, as the answers stood.
            now: Unix seconds.
            principle: The id of the one that decided, if any did.
            seen_by: In whose order the answers stood; None: this person's.
        """
        is_swapped = self.is_swapped(question, seen_by or who)
        left: Literal["first", "second"] = "second" if is_swapped else "first"
        right: Literal["first", "second"] = "first" if is_swapped else "second"
        chosen: Chosen = left if said == "left" else right if said == "right" else said
        choice = Choice(question.id, who, chosen, principle, left, now)
        self.keep(choice)
        return choice

    def keep(self, choice: Choice) -> None:
        """Append a choice to the log, and write the rows anew."""
        self._log.write(json.dumps(asdict(choice), ensure_ascii=False).encode() + b"\n")
        self._log.flush()
        os.fsync(self._log.fileno())
        self._newest[choice.who, choice.question] = choice
        self._write_rows()

    def agreement(self) -> Agreement:
        """Return how far people agree by now."""
        judged = Counter(question for _who, question in self._newest)
        return Agreement(
            people=len({who for who, _question in self._newest}),
            questions=len(judged),
            shared=sum(count >= 2 for count in judged.values()),
            alpha=krippendorff_alpha(
                (choice.who, choice.question, choice.chosen) for choice in self._newest.values()
            ),
        )

    def _write_rows(self) -> None:
        by_question: dict[str, list[Choice]] = {}
        for choice in self._newest.values():
            by_question.setdefault(choice.question, []).append(choice)
        lines = []
        for question in self.questions:
            row = _row(question, by_question.get(question.id, []))
            if row is not None:
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_atomic(self._rows, "".join(lines), durable=False)  # the log has it all


def _row(question: Question, choices: Sequence[Choice]) -> dict[str, object] | None:
    """Return the preference that follows from choices; None: there is none."""
    count = Counter(choice.chosen for choice in choices)
    if count["first"] == count["second"]:
        return None
    better: Chosen = "first" if count["first"] > count["second"] else "second"
    good, bad = question.answers if better == "first" else question.answers[::-1]
    principles = Counter(one.principle for one in choices if one.principle and one.chosen == better)
    return {
        "prompt": question.prompt,
        "chosen": good,
        "rejected": bad,
        "people": len(choices),
        "agreeing": count[better],
        "principles": sorted(principles),
    }


def log_of(rows: Path) -> Path:
    """Return where the log of a file of rows is."""
    return rows.with_name(f"{rows.stem}.log.jsonl")


@contextmanager
def open_choices(rows: Path, questions: Sequence[Question], *, seed: int = 0) -> Iterator[Choices]:
    """Yield the choices that lead to the file `rows`; go on where they stood.

    Raises:
        ConfigError: Another process writes them, the folder cannot be written, or the log has a
            line that is no choice.
    """
    path = log_of(rows)
    try:
        is_new = not path.exists()
        log = path.open("a+b")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    with log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path}: another `charter collect` writes there; stop it first"
            ) from None
        if is_new:
            sync_path(path.parent)
        choices = Choices(log, rows, questions, seed=seed)
        choices.load(list(_read(log, path)))
        yield choices


def _read(log: BinaryIO, path: Path) -> Iterator[Choice]:
    """Yield what is in a log; half a line at its end, from a machine that went down, is removed."""
    log.seek(0)
    data = log.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        log.truncate(whole)
        os.fsync(log.fileno())
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            yield _CHOICE.validate_json(line)
        except ValidationError as error:
            raise ConfigError(
                f"{path}:{number}: no choice; mend the line or remove it: "
                f"{error.errors()[0]['msg'][:100]}"
            ) from error


def checked_name(text: str) -> str:
    """Return a person's name or alias.

    Raises:
        ConfigError: It is empty, or too long to be one.
    """
    name = " ".join(text.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"a name has 1 to {LONGEST_NAME} letters, got {text!r:.60}")
    return name
