"""The local page: one question, the consensus' answer beside that of a community's model."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nicegui import Client, events, ui

from tapestry.errors import TapestryError, UnavailableError
from tapestry.web.look import SCRIPT, STYLE
from tapestry.web.markup import Markup, joined, tag
from tapestry_finetune.ratings import Ratings
from tapestry_finetune.serving.look import SCRIPT as OWN_SCRIPT
from tapestry_finetune.serving.look import STYLE as OWN_STYLE
from tapestry_finetune.serving.speaker import Answer, Speaker
from tapestry_finetune.speaking import Asked, TooLongError
from tapestry_finetune.wording import Wording

MOST_CHARACTERS = 32_000
"""Of a question; more does not reach the server."""

_PUSH_SECONDS = 0.1
_MOST_TOKENS = 400
_BASE, _LOCALIZED = "consensus", "localized"


@dataclass
class _Exchange:
    """One question and its answers."""

    model: str | None
    prompt: list[dict[str, str]]
    """As the localized model was asked."""
    texts: dict[str, str] = field(default_factory=dict)


class Visitor:
    """One visitor's conversation."""

    def __init__(self, speaker: Speaker, ratings: Ratings, wording: Wording) -> None:
        """With the models of `speaker`; what is judged goes to `ratings`."""
        self._speaker = speaker
        self._ratings = ratings
        self._wording = wording
        self._client: Client = ui.context.client
        self._exchanges: dict[int, _Exchange] = {}
        self._begun = 0
        self._answers: list[Answer] = []

    def build(self) -> None:
        """Lay the page out."""
        names = self._speaker.assistant.names
        says = self._wording
        style, script = STYLE + OWN_STYLE, SCRIPT + OWN_SCRIPT
        ui.add_head_html(f"<style>{style}</style><script>{script}</script>")
        ui.add_body_html(joined([_bar(says, names), _main(says)]))
        ui.on("ask", self._ask)
        ui.on("stop", self._stop)
        ui.on("new", self._new)
        ui.on("judge", self._judge)
        self._client.on_delete(self._stop)

    async def _ask(self, event: events.GenericEventArguments) -> None:
        """Ask both models, one after the other."""
        text, model = str(event.args.get("text", ""))[:MOST_CHARACTERS], event.args.get("model")
        if self._answers:
            return
        named = model if model in self._speaker.assistant.bundles else None
        sides = [_BASE] if named is None else [_BASE, _LOCALIZED]
        says = self._wording.table("page")
        if named is not None:
            says = says | {_LOCALIZED: named}
        number = self._begun
        self._begun += 1
        self._run("tapestryAsked", number, text, sides, says)
        exchange = _Exchange(model=named, prompt=self._dialogue(_LOCALIZED, text))
        try:
            asked = {side: self._asked(side, text, named) for side in sides}
            for side in reversed(sides):
                self._answers.append(self._speaker.ask(asked[side]))
            pairs = zip(reversed(sides), self._answers, strict=True)
            await asyncio.gather(*[self._show(number, side, a, exchange) for side, a in pairs])
            self._exchanges[number] = exchange
        except UnavailableError:
            for side in sides:
                self._run("tapestrySays", number, side, "", says["busy"], "warn")
        finally:
            self._leave()
            self._run("tapestryRests")

    def _asked(self, side: str, text: str, model: str | None) -> Asked:
        return Asked(
            model=model if side == _LOCALIZED else None,
            messages=self._dialogue(side, text),
            most_tokens=_MOST_TOKENS,
            cuts_oldest=True,
        )

    def _dialogue(self, side: str, text: str) -> list[dict[str, str]]:
        """Return the conversation as one of the two sides knows it, with a new question."""
        turns: list[dict[str, str]] = []
        for exchange in self._exchanges.values():
            if exchange.texts.get(side):
                turns += [
                    exchange.prompt[-1],
                    {"role": "assistant", "content": exchange.texts[side]},
                ]
        return [*turns, {"role": "user", "content": text}]

    async def _show(self, number: int, side: str, answer: Answer, exchange: _Exchange) -> None:
        """Show an answer while it is written."""
        says, text, shown_at = self._wording, "", 0.0
        loop = asyncio.get_running_loop()
        note = ""
        try:
            async for piece in answer:
                text += piece
                if loop.time() - shown_at > _PUSH_SECONDS:
                    shown_at = loop.time()
                    self._run("tapestrySays", number, side, text, says("page.writing"), "busy")
        except TooLongError as error:
            tokens, most = f"{error.tokens:,}", f"{error.most:,}"
            note = says("chat.too_many_tokens", tokens=tokens, most=most)
        except TapestryError as error:
            note = says("chat.failed", reason=str(error))
        if answer.told.turns_left_out:
            note = says("chat.forgotten", turns=answer.told.turns_left_out)
        if answer.told.guard_reason:
            note = says("page.refused", reason=answer.told.guard_reason)
        exchange.texts[side] = text.strip()
        self._run("tapestrySays", number, side, text.strip(), "", "idle")
        self._run("tapestryEnds", number, side, note, bool(text.strip()))

    def _stop(self) -> None:
        for answer in self._answers:
            answer.stop()

    def _leave(self) -> None:
        for answer in self._answers:
            answer.leave()
        self._answers = []

    def _new(self) -> None:
        if not self._answers:
            self._exchanges.clear()
            self._run("tapestryCleared")

    async def _judge(self, event: events.GenericEventArguments) -> None:
        number, is_good = int(event.args.get("number", -1)), bool(event.args.get("isGood"))
        exchange = self._exchanges.get(number)
        answer = "" if exchange is None else exchange.texts.get(_LOCALIZED, "")
        if exchange is None or not answer:
            return
        await asyncio.to_thread(
            self._ratings.keep,
            exchange.prompt,
            answer,
            is_good=is_good,
            beside=exchange.texts.get(_BASE),
        )
        self._run("tapestryKept", number, is_good, self._wording("page.kept"))

    def _run(self, function: str, *values: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Call a function in the visitor's browser."""
        said = ", ".join(json.dumps(value) for value in values)
        self._client.run_javascript(f"{function}({said})")


def _bar(says: Wording, names: Sequence[str]) -> Markup:
    options = [tag("option", name, value=name) for name in names]
    if not names:
        options = [tag("option", says("page.consensus"), value="")]
    theme = says("page.theme")
    return tag(
        "header",
        tag("strong", says("page.title"), dir="auto"),
        tag(
            "div",
            tag("select", *options, id="model", aria_label=says("page.choose")),
            tag(
                "button",
                "\u25d0",
                type="button",
                onclick="tapestryTheme()",
                title=theme,
                aria_label=theme,
            ),
            class_="end",
        ),
        class_="bar",
        lang=says.language,  # NiceGUI sets the document's own
        dir=says.direction,
    )


def _main(says: Wording) -> Markup:
    prompt = says("page.prompt")
    area = tag(
        "textarea",
        id="prompt",
        dir="auto",
        rows="2",
        maxlength=str(MOST_CHARACTERS),
        placeholder=prompt,
        aria_label=prompt,
    )
    buttons = tag(
        "div",
        tag("button", says("page.ask"), type="submit", id="ask", class_="first"),
        tag("button", says("page.stop"), type="button", id="stop", disabled=""),
        tag("button", says("page.new"), type="button", id="new"),
    )
    return tag(
        "main",
        tag("p", says("page.intro"), class_="note", dir="auto"),
        tag("div", id="said"),
        tag("form", area, buttons, id="form", class_="ask"),
        tag("footer", says("page.footer"), dir="auto"),
        id="main",
        class_="page",
        lang=says.language,
        dir=says.direction,
    )
