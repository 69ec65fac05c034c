"""The page on which people choose: one question at a time, two answers in hidden order."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, get_args

from nicegui import events, ui

from tapestry.errors import ConfigError
from tapestry.web.markup import Markup, joined, tag
from tapestry.web.renewing import Renewing
from tapestry_finetune.charter.choices import LONGEST_NAME, Choice, Choices, Said, checked_name
from tapestry_finetune.charter.questions import Question
from tapestry_finetune.charter.settings import Charter

_SAID = {said: said for said in get_args(Said)}
_STYLE = """
.choosing { max-width: 62rem; }
.choosing h1 { font-size: 1.15rem; margin: 0 0 1rem; }
.asked { font-size: 1.2rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.card.answer { display: flex; flex-direction: column; gap: 1rem; }
.answer p { white-space: pre-wrap; overflow-wrap: anywhere; flex: 1; }
.choosing button { padding: .7rem 1.1rem; min-height: 2.9rem; text-align: start; }
.choosing .answer button, .choosing form button {
  background: var(--accent); color: var(--card); border-color: var(--accent); text-align: center;
}
.others { display: flex; flex-wrap: wrap; gap: .75rem; margin-top: 1.25rem; }
.others button { flex: 1 1 11rem; text-align: center; }
.principles { display: grid; gap: .75rem; margin-top: 1rem; }
.choosing form { display: grid; gap: 1rem; max-width: 24rem; }
.choosing input {
  font: inherit; color: var(--text); background: var(--card); padding: .7rem .8rem;
  border: 1px solid var(--muted); border-radius: 8px;
}
.choosing label { display: grid; gap: .35rem; }
.choosing .quiet { border: 0; background: none; color: var(--muted); padding-inline: 0; }
.choosing .problem { color: var(--bad); }
.choosing .problem:empty { display: none; }
"""
_SCRIPT = """
(() => {
  const name = 'tapestry-name';
  window.tapestryBegin = form => {
    const who = form.elements.who.value;
    try { localStorage.setItem(name, who); } catch {}
    emitEvent('begin', who);
    return false;
  };
  window.addEventListener('load', () => {
    const field = document.querySelector('input[name=who]');
    try { if (field && !field.value) field.value = localStorage.getItem(name) || ''; } catch {}
  });
})();
"""


class Visit:
    """One person at the page."""

    def __init__(self, charter: Charter, choices: Choices, *, clock: Callable[[], float]) -> None:
        """Ask about `choices`."""
        self._charter = charter
        self._choices = choices
        self._clock = clock
        self._who = ""
        self._problem = ""
        self._again: Question | None = None
        self._chosen: Choice | None = None

    def build(self) -> None:
        """Lay the page out, and listen."""
        renewing = Renewing(self._parts, _no_charts)

        def heard(act: Callable[[str], None]) -> Callable[[events.GenericEventArguments], None]:
            def hear(event: events.GenericEventArguments) -> None:
                act(event.args if isinstance(event.args, str) else "")
                renewing.renew()
                ui.run_javascript("scrollTo(0, 0)")

            return hear

        ui.add_head_html(f"<style>{_STYLE}</style><script>{_SCRIPT}</script>")
        community, direction = self._charter.identity.community, self._charter.labels.direction
        top = tag("header", tag("strong", community, dir="auto"), class_="bar", dir=direction)
        question = renewing.part("question")
        page = tag("main", question, id="main", class_="page choosing", dir=direction)
        renewing.build(joined([top, page]))
        for name, act in {
            "begin": self.begin,
            "choose": self.choose,
            "because": self.because,
            "back": self.back,
        }.items():
            ui.on(name, heard(act))

    def begin(self, name: str) -> None:
        """Take the name under which choices are kept."""
        try:
            self._who, self._problem = checked_name(name), ""
        except ConfigError:
            wrong = self._charter.labels.name_wrong
            self._problem = wrong.replace("{most}", str(LONGEST_NAME))

    def choose(self, clicked: str) -> None:
        """Keep a choice, clicked as `QUESTION SIDE`: a second click on the same is harmless."""
        name, _blank, side = clicked.partition(" ")
        question = self._question()
        if not self._who or question is None or name != question.id or self._chosen:
            return
        said: Said | None = _SAID.get(side)
        if said is None:
            return
        choice = self._choices.choose(question, self._who, said, now=self._clock())
        self._again = None
        self._chosen = choice if side in {"left", "right"} else None

    def because(self, principle: str) -> None:
        """Keep which principle decided, beside the choice that is kept already."""
        if self._chosen is None:
            return
        if principle in {one.id for one in self._charter.principle}:
            self._choices.keep(
                dataclasses.replace(self._chosen, principle=principle, at=self._clock())
            )
        self._chosen = None

    def back(self, _nothing: str) -> None:
        """Ask the last question again."""
        last = self._choices.last_of(self._who)
        if last is not None:
            self._again, self._chosen = self._choices.question(last.question), None

    def _question(self) -> Question | None:
        return self._again or self._choices.next_for(self._who)

    def _parts(self) -> dict[str, Markup]:
        return {"question": self._shown()}

    def _shown(self) -> Markup:
        if not self._who:
            return self._name()
        if self._chosen is not None:
            return self._because()
        question = self._question()
        return self._done() if question is None else self._asked(question)

    def _name(self) -> Markup:
        labels = self._charter.labels
        field = tag(
            "label",
            tag("span", labels.your_name, dir="auto"),
            tag("input", name_="who", maxlength=str(LONGEST_NAME), required="", dir="auto"),
        )
        problem = tag("p", self._problem, class_="problem", role="alert", dir="auto")
        form = tag(
            "form", field, problem, tag("button", labels.begin, type="submit", dir="auto"),
            onsubmit="return tapestryBegin(this)",
        )  # fmt: skip
        return tag("section", form, class_="card")

    def _asked(self, question: Question) -> Markup:
        labels = self._charter.labels
        shown = self._choices.shown(question, self._who)
        answers = [
            tag(
                "article",
                tag("p", text, dir="auto"),
                _button(label, "choose", f"{question.id} {side}"),
                class_="card answer",
            )
            for text, label, side in zip(
                shown, (labels.left, labels.right), ("left", "right"), strict=True
            )
        ]
        others = [
            _button(labels.neither, "choose", f"{question.id} neither"),
            _button(labels.both_bad, "choose", f"{question.id} both_bad"),
        ]
        return joined(
            [
                self._progress(),
                tag("section", tag("p", question.prompt, class_="asked", dir="auto")),
                tag("h1", labels.which, dir="auto"),
                tag("div", *answers, class_="two"),
                tag("div", *others, class_="others"),
                self._back(),
            ]
        )

    def _because(self) -> Markup:
        labels = self._charter.labels
        buttons = [_button(one.text, "because", one.id) for one in self._charter.principle]
        return joined(
            [
                self._progress(),
                tag("h1", labels.because, dir="auto"),
                tag(
                    "div", *buttons, _button(labels.no_principle, "because", ""),
                    class_="principles",
                ),
                self._back(),
            ]
        )  # fmt: skip

    def _done(self) -> Markup:
        return joined(
            [
                self._progress(),
                tag("section", tag("h1", self._charter.labels.done, dir="auto"), class_="card"),
                self._back(),
            ]
        )

    def _progress(self) -> Markup:
        done, of = self._choices.done_by(self._who), len(self._choices.questions)
        said = self._charter.labels.progress.replace("{done}", str(done)).replace("{all}", str(of))
        return tag("p", said, class_="note", dir="auto", role="status")

    def _back(self) -> Markup:
        if self._choices.last_of(self._who) is None or self._again is not None:
            return joined([])
        return tag("p", _button(self._charter.labels.back, "back", "", class_="quiet"))


def _button(label: str, name: str, value: str, **attributes: str) -> Markup:
    emitted = f"emitEvent({json.dumps(name)}, {json.dumps(value)})"
    return tag("button", label, type="button", dir="auto", onclick=emitted, **attributes)


def _no_charts() -> tuple[int, Mapping[str, dict[str, Any]]]:
    return 0, {}
