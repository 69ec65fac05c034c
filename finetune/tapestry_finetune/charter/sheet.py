"""Choosing on paper: a sheet to print, and what was ticked, typed in later."""

import re
from collections.abc import Callable, Iterator, Sequence

from tapestry.errors import ConfigError
from tapestry.web.markup import Markup, joined, tag
from tapestry_finetune.charter.choices import ON_PAPER, Choices, Said
from tapestry_finetune.charter.questions import Question
from tapestry_finetune.charter.settings import Charter

_TYPED = re.compile(r"\s*([abnx])\s*(\d{0,3})\s*", re.IGNORECASE)
_SIDES: dict[str, Said] = {"a": "left", "b": "right", "n": "neither", "x": "both_bad"}
HOW = (
    "a or b: which answer was ticked; n: equally good; x: both bad; after that the principle's "
    "number, if there is one, as in `a2`; an empty line: not answered; . to stop"
)
_STYLE = """
@page { margin: 16mm; }
body { font: 12pt/1.45 "Noto Sans", "DejaVu Sans", system-ui, sans-serif; margin: 0 auto;
  max-width: 48rem; color: #000; background: #fff; }
h1 { font-size: 16pt; margin: 0 0 .25rem; } p { margin: 0; }
.mark { font-family: monospace; }
.name { margin: 1rem 0 1.5rem; border-bottom: 1px solid #000; padding-bottom: .2rem; }
.question { break-inside: avoid; border-top: 2px solid #000; padding: .8rem 0 1.2rem; }
.asked { font-weight: 600; white-space: pre-wrap; margin-bottom: .6rem; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.answer { border: 1px solid #555; padding: .6rem; overflow-wrap: anywhere; }
.answer p { white-space: pre-wrap; }
.boxes { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; margin-top: .7rem; }
.box::before { content: "\\2610"; margin-inline-end: .35em; }
ol { margin: .4rem 0 1rem; padding-inline-start: 1.6rem; }
"""


def render_sheet(charter: Charter, choices: Choices) -> str:
    """Return the sheet as a page of HTML that needs nothing else."""
    labels = charter.labels
    principles = [tag("li", tag("bdi", one.text)) for one in charter.principle]
    content = [
        tag("h1", charter.identity.community, dir="auto"),
        tag("p", choices.mark, class_="mark"),
        tag("p", f"{labels.your_name}:", class_="name", dir="auto"),
        tag("p", labels.because, dir="auto"),
        tag("ol", *principles),
        *(
            _question(charter, choices, number, question)
            for number, question in enumerate(choices.questions, start=1)
        ),
    ]
    head = joined([tag("title", charter.identity.community), Markup(f"<style>{_STYLE}</style>")])
    encoding = Markup('<meta charset="utf-8">')
    body = tag("html", tag("head", encoding, head), tag("body", *content), dir=labels.direction)
    return f"<!DOCTYPE html>\n{body}\n"


def _question(charter: Charter, choices: Choices, number: int, question: Question) -> Markup:
    labels = charter.labels
    answers = [
        tag("div", tag("strong", name), tag("p", text, dir="auto"), class_="answer")
        for name, text in zip("AB", choices.shown(question, ON_PAPER), strict=True)
    ]
    because = tag("span", f"{labels.because} ____", dir="auto")
    boxes = [
        tag("span", name, class_="box", dir="auto")
        for name in ("A", "B", labels.neither, labels.both_bad)
    ]
    return tag(
        "div",
        tag("strong", f"{number}."),
        tag("p", question.prompt, class_="asked", dir="auto"),
        tag("div", *answers, class_="two"),
        tag("p", *boxes, because, class_="boxes"),
        class_="question",
    )


def enter_sheet(
    charter: Charter,
    choices: Choices,
    who: str,
    lines: Callable[[str], str | None],
    *,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> int:
    """Take what somebody ticked, question by question; return how many choices were kept.

    Args:
        charter: Whose principles are numbered.
        choices: Where they go; questions that this person has judged are not asked again.
        who: Whose sheet it is.
        lines: Asks with a prompt and returns a line; None: no more come.
        clock: Unix seconds.
        say: Takes what was not understood.
    """
    kept = 0
    for number, question in _open(choices, who):
        while True:
            line = lines(f"{number}. {_short(question.prompt)}  ")
            if line is None or line.strip() == ".":
                return kept
            if not line.strip():
                break
            try:
                said, principle = _understood(line, [one.id for one in charter.principle])
            except ConfigError as error:
                say(str(error))
                continue
            choices.choose(question, who, said, now=clock(), principle=principle, seen_by=ON_PAPER)
            kept += 1
            break
    return kept


def _open(choices: Choices, who: str) -> Iterator[tuple[int, Question]]:
    for number, question in enumerate(choices.questions, start=1):
        if not choices.is_judged(question, who):
            yield number, question


def _understood(line: str, principles: Sequence[str]) -> tuple[Said, str]:
    typed = _TYPED.fullmatch(line)
    if typed is None:
        raise ConfigError(f"{line.strip()!r:.40}: {HOW}")
    number = int(typed[2] or 0)
    if number > len(principles):
        raise ConfigError(f"there are {len(principles)} principles, not {number}")
    return _SIDES[typed[1].lower()], principles[number - 1] if number else ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}\u2026"
