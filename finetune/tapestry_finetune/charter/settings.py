"""`charter.toml`: who a community is, what it asks of its assistant, what is not to be touched."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

import rfc8785
from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from tapestry.config import Settings, load_settings, nearest
from tapestry.data.language import language_tag
from tapestry.errors import ConfigError
from tapestry_finetune.charter.labels import Labels
from tapestry_finetune.charter.patterns import expressions

Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]
"""Text that somebody must have written."""
_NAME = re.compile(r"[\w.-]{1,64}")


def _named(text: str) -> str:
    if not _NAME.fullmatch(text):
        like = re.sub(r"[^\w.-]+", "-", text.strip())[:64] or "one"
        raise ValueError(
            f"{text!r:.80} is no name: letters, digits, dots, hyphens and _, without blanks, such "
            f"as {like}"
        )
    return text


Name = Annotated[str, AfterValidator(_named)]
"""Without blanks: it stands in other files and in tables."""


class Identity(Settings):
    """Whose charter it is, and by what right."""

    community: Said
    """As the assistant is to call it."""
    languages: tuple[str, ...] = Field(min_length=1)
    """Tags such as `que` or `pt-BR`; the first is the charter's own."""
    authors: tuple[str, ...] = ()
    """Who wrote it down; names or offices."""
    adopted: str = ""
    """How and when it was adopted, in a sentence."""
    version: str = "1"
    """Of the text; raise it when the community changes something."""
    groups: dict[str, Annotated[int, Field(ge=1)]] = Field(default={})
    """Groups that voted, and how many people each has."""

    @field_validator("languages")
    @classmethod
    def _in_short_form(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(map(language_tag, languages))
        except ConfigError as error:
            raise ValueError(str(error)) from error


class Votes(Settings):
    """What one group said to a principle."""

    agree: int = Field(ge=0)
    """People for it."""
    disagree: int = Field(default=0, ge=0)
    """People against it."""
    abstain: int = Field(default=0, ge=0)
    """People who saw it and passed."""

    @property
    def cast(self) -> int:
        """How many people of the group saw it."""
        return self.agree + self.disagree + self.abstain


class Principle(Settings):
    """One thing that the community asks for."""

    id: Name
    """Short, without blanks; cases refer to it."""
    text: Said
    """The principle, in a sentence."""
    behaviour: str = ""
    """What the assistant then does, as somebody watching would say it."""
    counter_example: str = ""
    """What it would look like to break it."""
    weight: float = Field(default=1.0, gt=0, le=100)
    """How much it counts in the overall score; 1 is usual."""
    scope: str = ""
    """When it applies; empty: always."""
    source: str = ""
    """Where it comes from: a law, a saying, an assembly."""
    held_out: bool = False
    """Never trained on: shows whether what was learnt reaches beyond its examples."""
    votes: dict[str, Votes] = Field(default={})
    """Of each group, if there was a vote."""


class Protected(Settings):
    """Knowledge that is not the assistant's to tell."""

    topic: Said
    """What it is, in words that may be said."""
    terms: tuple[Said, ...] = ()
    """Words or phrases; `*` stands for the rest of a word: `initiat*`."""
    patterns: tuple[Said, ...] = ()
    """Regular expressions, for what terms cannot say; see the guide for what is understood."""
    exclude_from_training: bool = True
    """Leave texts that have it out of the training data."""
    refuse: bool = True
    """Neither answer what asks for it nor let it out."""
    answer: str = ""
    """What is said instead."""
    examples: tuple[Said, ...] = ()
    """Sentences that must be recognized; `charter lint` tries them."""

    @model_validator(mode="after")
    def _can_be_recognized(self) -> Self:
        if not self.terms and not self.patterns:
            raise ValueError("has neither terms nor patterns: nothing would be recognized")
        if self.refuse and not self.answer.strip():
            raise ValueError("refuses without a word: add answer = '...', or refuse = false")
        try:
            for _expression in expressions(self.terms, self.patterns):
                pass
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class Tone(Settings):
    """How the assistant speaks."""

    address: str = ""
    """How it addresses people."""
    style: str = ""
    """Its register: plain, solemn, short."""


class Case(Settings):
    """A question with an answer that keeps the charter and one that breaks it."""

    prompt: Said
    """What somebody says to the assistant."""
    good: Said
    """An answer as it should be."""
    bad: Said
    """An answer that breaks the principles below, though it could pass for one."""
    principles: tuple[str, ...] = Field(min_length=1)
    """Ids of those that tell the two apart."""
    held_out: bool | None = None
    """True: kept for the judge. False: trained on. Left out: decided so that there are enough."""
    paraphrases: tuple[Said, ...] = ()
    """Other ways to say the prompt."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt and its paraphrases."""
        return (self.prompt, *self.paraphrases)


class Charter(Settings):
    """The whole file."""

    identity: Identity
    """Whose charter it is."""
    tone: Tone = Tone()
    """How the assistant speaks."""
    principle: tuple[Principle, ...] = Field(min_length=1)
    """What the community asks for."""
    protected: tuple[Protected, ...] = ()
    """What is not the assistant's to tell."""
    case: tuple[Case, ...] = ()
    """Examples with a good and a bad answer."""
    labels: Labels = Labels()
    """Words around the community's own, to be translated."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the content: comments, order of keys and layout do not count."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(rfc8785.dumps(content)).hexdigest()


def read_charter(path: Path) -> Charter:
    """Read a charter whose parts may not fit together yet, for `charter lint`.

    Raises:
        ConfigError: The file is missing, not TOML, or has an unknown key or a wrong value.
    """
    return load_settings(path, Charter)


def load_charter(path: Path) -> Charter:
    """Read a charter.

    Raises:
        ConfigError: As `read_charter`, or an id is given twice or nowhere.
    """
    charter = read_charter(path)
    for where, what in misfits(charter):
        raise ConfigError(f"{path}: {where}: {what}")
    return charter


def misfits(charter: Charter) -> Iterator[tuple[str, str]]:
    """Yield what does not fit together in a charter: where, and what."""
    known = Counter(principle.id for principle in charter.principle)
    for name, count in known.items():
        if count > 1:
            yield f"principle {name}", f"this id is given to {count} principles; rename the others"
    for number, case in enumerate(charter.case, start=1):
        for name in case.principles:
            if name not in known:
                yield (
                    named(number, case),
                    f"no principle {name!r}; did you mean {nearest(name, known)!r}?",
                )
    topics = Counter(protected.topic for protected in charter.protected)
    for topic, count in topics.items():
        if count > 1:
            yield f"protected {topic!r}", f"stands {count} times; put their terms together"
    groups = charter.identity.groups
    for principle in charter.principle:
        yield from _misfits_of_votes(principle, groups)


def _misfits_of_votes(principle: Principle, groups: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for group, votes in principle.votes.items():
        where = f"principle {principle.id}"
        if group not in groups:
            beside = f"; did you mean {nearest(group, groups)!r}?" if groups else ""
            yield where, f"group {group!r} voted and is not in identity.groups{beside}"
        elif votes.cast > groups[group]:
            yield where, f"{votes.cast} votes of group {group!r}, which has {groups[group]} people"


def named(number: int, case: Case) -> str:
    """Return how a message calls a case, counted from 1."""
    shown = case.prompt if len(case.prompt) <= 40 else f"{case.prompt[:39].rstrip()}\u2026"
    return f"case {number} ({' '.join(shown.split())})"
