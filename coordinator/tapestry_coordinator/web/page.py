"""The page itself: plain HTML that can be read at once, and renews itself while somebody looks.

The text is in the document and needs no script. NiceGUI, which takes longer to arrive, brings what
changes, and the charts.
"""

import copy
import json
from collections.abc import Callable

from nicegui import events, ui

from tapestry_coordinator.web.board import Board
from tapestry_coordinator.web.look import SCRIPT, STYLE
from tapestry_coordinator.web.markup import Markup, joined, tag

_REFRESH_SECONDS = 1.0
_SECTIONS = {
    "round": "Round",
    "quality": "Quality",
    "influence": "Influence",
    "checkpoints": "Checkpoints",
    "members": "Members",
    "record": "Record",
}
_NOTES = {
    "round": "What each member does at this moment.",
    "quality": "Each member measures every checkpoint on its own held-out text. Lower is better.",
    "loss": "Mean of the members, by tokens.",
    "influence": "Each member's weight in the checkpoint of a round.",
    "checkpoints": "Each names the one that it was made from; verified means that every file and "
    "signature was compared on this machine. Whoever has a copy compares it with `tapestry "
    "checkpoint verify`.",
    "record": "Who was left out, stayed away or disagreed, and the reason that was given.",
}
_CHARTS = ("quality", "loss", "influence")


class Page:
    """One visitor's page."""

    def __init__(self, board: Board, *, may_look: Callable[[], bool]) -> None:
        """Show `board` to a visitor who `may_look`, which is asked at every renewal."""
        self._board = board
        self._may_look = may_look
        self._shown: dict[str, Markup] = {}
        self._charts: dict[str, ui.echart] = {}
        self._charts_version = -1
        self._turned = 0
        """Pages of checkpoints between the newest and what is shown."""

    def build(self, *, has_login: bool) -> None:
        """Lay everything out; `has_login` says whether there is a session to end."""
        self._shown = self._current()
        ui.add_head_html(f"<style>{STYLE}</style><script>{SCRIPT}</script>")
        ui.add_body_html(joined([_bar(self._board, has_login=has_login), self._main()]))
        self._place_charts()
        timer = ui.timer(_REFRESH_SECONDS, self._renew, immediate=False)
        ui.on("seen", lambda event: self._seen(timer, event))
        ui.on("theme", self._draw)
        ui.on("turn", self._turn)

    def _main(self) -> Markup:
        content = [
            self._part("hero"),
            _card("round", "The round", self._part("live")),
            tag(
                "section",
                _chart("quality", "Quality by language"),
                _chart("loss", "Training loss"),
                id="quality",
                class_="two",
            ),
            _card("languages", "Languages", self._part("languages")),
            tag("section", _chart("influence", "Influence"), id="influence"),
            _card("checkpoints", "Checkpoints", self._part("checkpoints")),
            _card("members", "Members", self._part("members")),
            _card("record", "The record", self._part("record")),
            tag("footer", "Tapestry \u00b7 this page only reads; it changes nothing."),
        ]
        return tag("main", *content, id="main", class_="page")

    def _part(self, name: str) -> Markup:
        return tag("div", self._shown[name], data_part=name)

    def _current(self) -> dict[str, Markup]:
        checkpoints, has_older = self._board.checkpoints(self._turned)
        pager = tag(
            "div",
            _button("Newer", -1, is_enabled=self._turned > 0),
            _button("Older", 1, is_enabled=has_older),
            class_="pager",
        )
        return {**self._board.current(), "checkpoints": joined([checkpoints, pager])}

    def _renew(self) -> None:
        """Show what changed."""
        if not self._may_look():
            ui.navigate.to("/login")
            return
        current = self._current()
        changed = {name: part for name, part in current.items() if part != self._shown.get(name)}
        if changed:
            self._shown = current
            ui.run_javascript(f"tapestryShow({json.dumps(changed)})")
        if self._charts_version != self._board.charts_version:
            self._draw()

    def _turn(self, event: events.GenericEventArguments) -> None:
        """Go to newer or older checkpoints."""
        step = 1 if event.args == 1 else -1
        self._turned = max(0, self._turned + step)
        self._renew()

    def _seen(self, timer: ui.timer, event: events.GenericEventArguments) -> None:
        """Rest while nobody looks."""
        timer.active = bool(event.args)
        if timer.active:
            self._renew()

    def _place_charts(self) -> None:
        self._charts_version = self._board.charts_version
        for name in _CHARTS:
            with ui.teleport(f"#chart-{name}"):
                options = copy.deepcopy(self._board.options[name])
                self._charts[name] = ui.echart(options, renderer="svg")

    def _draw(self) -> None:
        """Draw the charts, with new points or other colours."""
        self._charts_version = self._board.charts_version
        for name, chart in self._charts.items():
            chart.options.clear()
            chart.options.update(copy.deepcopy(self._board.options[name]))
            chart.update()


def _bar(board: Board, *, has_login: bool) -> Markup:
    """Return the line at the top."""
    links = [tag("a", title, href=f"#{name}") for name, title in _SECTIONS.items()]
    leave = tag("form", tag("button", "Log out", type="submit"), method="post", action="/logout")
    return tag(
        "header",
        tag("a", "Skip to content", href="#main", class_="skip"),
        tag("strong", board.federation),
        tag("code", board.identity[:16], title=f"The federation's identity: {board.identity}"),
        tag("nav", *links, aria_label="Sections"),
        tag(
            "button",
            "\u25d0",
            type="button",
            onclick="tapestryTheme()",
            title="Light or dark",
            aria_label="Light or dark",
        ),
        *([leave] if has_login else []),
        class_="bar",
    )


def _card(name: str, title: str, content: Markup) -> Markup:
    return tag("section", *_heading(name, title), content, id=name, class_="card")


def _chart(name: str, title: str) -> Markup:
    place = tag("div", id=f"chart-{name}", class_="chart", role="img", aria_label=title)
    return tag("div", *_heading(name, title), place, class_="card")


def _heading(name: str, title: str) -> list[Markup]:
    heading = [tag("h2", title)]
    if name in _NOTES:
        parts = _NOTES[name].split("`")
        shown = joined(tag("code", part) if i % 2 else part for i, part in enumerate(parts))
        heading.append(tag("p", shown, class_="note"))
    return heading


def _button(text: str, step: int, *, is_enabled: bool) -> Markup:
    return tag(
        "button",
        text,
        type="button",
        onclick=f"emitEvent('turn', {step})",
        disabled=None if is_enabled else "",
    )
