"""The operator's page: what is where, and what is said about it."""

from collections.abc import Callable

from nicegui import events, ui

from tapestry.web.markup import Markup, joined, tag
from tapestry.web.parts import bar, card, chart
from tapestry.web.renewing import Renewing
from tapestry_coordinator.web.board import Board

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


class Page:
    """One visitor's page."""

    def __init__(self, board: Board, *, may_look: Callable[[], bool]) -> None:
        """Show `board` to a visitor who `may_look`, which is asked at every renewal."""
        self._board = board
        self._turned = 0
        """Pages of checkpoints between the newest and what is shown."""
        self._renewing = Renewing(
            self._current, lambda: (board.charts_version, board.options), may_look=may_look
        )

    def build(self, *, has_login: bool) -> None:
        """Lay everything out; `has_login` says whether there is a session to end."""
        leave = tag(
            "form", tag("button", "Log out", type="submit"), method="post", action="/logout"
        )
        top = bar(
            self._board.federation,
            self._board.identity,
            _SECTIONS,
            last=[leave] if has_login else [],
        )
        self._renewing.build(joined([top, self._main()]))
        ui.on("turn", self._turn)

    def _main(self) -> Markup:
        part = self._renewing.part
        content = [
            part("hero"),
            _card("round", "The round", part("live")),
            tag(
                "section",
                chart("quality", "Quality by language", note=_NOTES["quality"]),
                chart("loss", "Training loss", note=_NOTES["loss"]),
                id="quality",
                class_="two",
            ),
            _card("languages", "Languages", part("languages")),
            tag(
                "section",
                chart("influence", "Influence", note=_NOTES["influence"]),
                id="influence",
            ),
            _card("checkpoints", "Checkpoints", part("checkpoints")),
            _card("members", "Members", part("members")),
            _card("record", "The record", part("record")),
            tag("footer", "Tapestry \u00b7 this page only reads; it changes nothing."),
        ]
        return tag("main", *content, id="main", class_="page")

    def _current(self) -> dict[str, Markup]:
        checkpoints, has_older = self._board.checkpoints(self._turned)
        pager = tag(
            "div",
            _button("Newer", -1, is_enabled=self._turned > 0),
            _button("Older", 1, is_enabled=has_older),
            class_="pager",
        )
        return {**self._board.current(), "checkpoints": joined([checkpoints, pager])}

    def _turn(self, event: events.GenericEventArguments) -> None:
        """Go to newer or older checkpoints."""
        step = 1 if event.args == 1 else -1
        self._turned = max(0, self._turned + step)
        self._renewing.renew()


def _card(name: str, title: str, content: Markup) -> Markup:
    return card(name, title, content, note=_NOTES.get(name, ""))


def _button(text: str, step: int, *, is_enabled: bool) -> Markup:
    return tag(
        "button",
        text,
        type="button",
        onclick=f"emitEvent('turn', {step})",
        disabled=None if is_enabled else "",
    )
