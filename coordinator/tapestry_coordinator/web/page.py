"""The page itself: sections that renew themselves while somebody looks."""

import copy
from collections.abc import Callable

from nicegui import Client, events, ui

from tapestry_coordinator.web.board import Board
from tapestry_coordinator.web.look import STYLE, THEME_SCRIPT
from tapestry_coordinator.web.markup import Markup, joined, tag

_REFRESH_SECONDS = 1.0
_SECTIONS = (
    ("round", "Round"), ("quality", "Quality"), ("influence", "Influence"),
    ("checkpoints", "Checkpoints"), ("members", "Members"), ("record", "Record"),
)  # fmt: skip


def build_page(
    board: Board, client: Client, *, has_login: bool, may_look: Callable[[], bool]
) -> None:
    """Build the page for one visitor.

    Args:
        board: What there is to show.
        client: The visitor.
        has_login: Whether there is a session to end.
        may_look: Whether the visitor may still look; asked at every renewal.
    """
    ui.add_head_html(f"<style>{STYLE}</style><script>{THEME_SCRIPT}</script>")
    Page(board, client, may_look=may_look).build(has_login=has_login)


class Page:
    """One visitor's page."""

    def __init__(self, board: Board, client: Client, *, may_look: Callable[[], bool]) -> None:
        """Show `board`."""
        self._board = board
        self._client = client
        self._may_look = may_look
        self._parts: dict[str, ui.html] = {}
        self._charts: dict[str, ui.echart] = {}
        self._places: dict[str, ui.element] = {}
        self._charts_version = -1
        self._pages = 0

    def build(self, *, has_login: bool) -> None:
        """Lay everything out."""
        _html(_bar(self._board, has_login=has_login))
        with ui.element("main").classes("page").props('id="main"'):
            self._part("hero")
            self._card("round", "The round", "What each member does at this moment.", "live")
            with ui.element("section").classes("two").props('id="quality"'):
                self._chart_card(
                    "quality",
                    "Quality by language",
                    "Each member measures every checkpoint on its own held-out text. Lower is "
                    "better.",
                )
                self._chart_card("loss", "Training loss", "Mean of the members, by tokens.")
            self._card("languages", "Languages", "", "languages")
            with ui.element("section").props('id="influence"'):
                self._chart_card(
                    "influence", "Influence", "Each member's weight in the checkpoint of a round."
                )
            with _section("checkpoints", "Checkpoints", _CHECKPOINTS):
                self._part("checkpoints")
                self._pager()
            self._card("members", "Members", "", "members")
            self._card("record", "The record", _RECORD, "record")
            _html(tag("footer", "Tapestry \u00b7 this page only reads; it changes nothing."))
        self.renew()
        timer = ui.timer(_REFRESH_SECONDS, self.renew, immediate=False)
        ui.on("seen", lambda e: self._seen(timer, e))
        ui.on("theme", self._recolour)
        ui.timer(0.05, self._draw, once=True)  # charts come after the text

    def _part(self, name: str) -> None:
        self._parts[name] = _html(Markup(""))

    def _card(self, name: str, title: str, note: str, part: str) -> None:
        with _section(name, title, note):
            self._part(part)

    def _chart_card(self, name: str, title: str, note: str) -> None:
        with ui.element("div").classes("card"):
            _html(joined([tag("h2", title), tag("p", note, class_="note")]))
            self._places[name] = ui.element("div").classes("chart")

    def _pager(self) -> None:
        with ui.element("div").classes("pager"):
            self._newer = _button("Newer", lambda: self._turn(-1))
            self._older = _button("Older", lambda: self._turn(1))

    def _turn(self, by: int) -> None:
        self._pages = max(0, self._pages + by)
        self._renew_checkpoints()

    def _renew_checkpoints(self) -> None:
        shown, has_older = self._board.checkpoints(self._pages)
        _show(self._parts["checkpoints"], shown)
        _enable(self._newer, is_enabled=self._pages > 0)
        _enable(self._older, is_enabled=has_older)

    def renew(self) -> None:
        """Show what changed."""
        if not self._may_look():
            ui.navigate.to("/login")
            return
        parts = self._board.current()
        for name, element in self._parts.items():
            if name in parts:
                _show(element, parts[name])
        self._renew_checkpoints()
        if self._charts and self._charts_version != self._board.charts_version:
            self._recolour()

    def _draw(self) -> None:
        """Put the charts into their places."""
        for name, place in self._places.items():
            with place:
                self._charts[name] = ui.echart({}, renderer="svg")
        ui.run_javascript("window.tapestryReady = true")
        self._recolour()

    def _recolour(self) -> None:
        """Draw the charts again, with new points or colours."""
        self._charts_version = self._board.charts_version
        for name, chart in self._charts.items():
            options = self._board.options.get(name, {})
            chart.options.clear()
            chart.options.update(copy.deepcopy(options))
            chart.update()

    def _seen(self, timer: ui.timer, event: events.GenericEventArguments) -> None:
        """Rest while nobody looks."""
        timer.active = bool(event.args)
        if timer.active:
            self.renew()


_CHECKPOINTS = (
    "Each names the one that it was made from; verified means that every file and signature was "
    "compared on this machine. Give the download to anybody: `tapestry checkpoint verify`."
)
_RECORD = "Who was left out, stayed away or disagreed, and the reason that was given."


def _bar(board: Board, *, has_login: bool) -> Markup:
    """Return the line at the top."""
    links = [tag("a", title, href=f"#{name}") for name, title in _SECTIONS]
    theme = Markup(
        '<button type="button" onclick="tapestryTheme()" aria-label="Light or dark">\u25d0</button>'
    )
    leave = tag("form", tag("button", "Log out", type="submit"), method="post", action="/logout")
    return tag(
        "header",
        tag("a", "Skip to content", href="#main", class_="skip"),
        tag("strong", board.federation),
        tag("code", board.identity[:16], title=f"The federation's identity: {board.identity}"),
        tag("nav", *links, aria_label="Sections"),
        theme,
        *([leave] if has_login else []),
        class_="bar",
    )


def _section(name: str, title: str, note: str) -> ui.element:
    section = ui.element("section").classes("card").props(f'id="{name}"')
    with section:
        parts = note.split("`")
        shown = joined(tag("code", part) if i % 2 else part for i, part in enumerate(parts))
        _html(joined([tag("h2", title), *([tag("p", shown, class_="note")] if note else [])]))
    return section


def _html(markup: Markup) -> ui.html:
    """Show markup of ours; text from outside was escaped when it was made."""
    return ui.html(markup, sanitize=False)


def _show(element: ui.html, markup: Markup) -> None:
    if element.content != markup:
        element.set_content(markup)


def _button(text: str, pressed: Callable[[], None]) -> ui.element:
    button = ui.element("button").props('type="button"').on("click", lambda _: pressed())
    with button:
        ui.html(tag("span", text), sanitize=False, tag="span")
    return button


def _enable(button: ui.element, *, is_enabled: bool) -> None:
    if is_enabled == ("disabled" in button.props):
        button.props(remove="disabled") if is_enabled else button.props("disabled")
