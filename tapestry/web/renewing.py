"""What changes on a page while somebody looks: sections of markup, and charts.

The text is in the document and needs no script. NiceGUI, which takes longer to arrive, brings what
changes, and the charts.
"""

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import events, ui

from tapestry.web.look import SCRIPT, STYLE
from tapestry.web.markup import Markup, tag

_REFRESH_SECONDS = 1.0

Charts = Callable[[], tuple[int, Mapping[str, dict[str, Any]]]]
"""Returns a version that changes with the charts, and ECharts options by name."""


class Renewing:
    """One visitor's sections and charts."""

    def __init__(
        self,
        current: Callable[[], dict[str, Markup]],
        charts: Charts,
        *,
        may_look: Callable[[], bool] = lambda: True,
    ) -> None:
        """Show what `current` and `charts` return to a visitor who `may_look`.

        All three are asked at every renewal.
        """
        self._current = current
        self._charts = charts
        self._may_look = may_look
        self._shown = current()
        self._drawn: dict[str, ui.echart] = {}
        self._version = -1

    def part(self, name: str) -> Markup:
        """Return a section's place with what is in it."""
        return tag("div", self._shown[name], data_part=name)

    def build(self, body: Markup) -> None:
        """Lay the document out, and begin to renew it."""
        ui.add_head_html(f"<style>{STYLE}</style><script>{SCRIPT}</script>")
        ui.add_body_html(body)
        self._version, options = self._charts()
        for name, option in options.items():
            with ui.teleport(f"#chart-{name}"):
                self._drawn[name] = ui.echart(copy.deepcopy(option), renderer="svg")
        timer = ui.timer(_REFRESH_SECONDS, self.renew, immediate=False)
        ui.on("seen", lambda event: self._seen(timer, event))
        ui.on("theme", self._draw)

    def renew(self) -> None:
        """Show what changed."""
        if not self._may_look():
            ui.navigate.to("/login")
            return
        current = self._current()
        changed = {name: part for name, part in current.items() if part != self._shown.get(name)}
        if changed:
            self._shown = current
            ui.run_javascript(f"tapestryShow({json.dumps(changed)})")
        if self._version != self._charts()[0]:
            self._draw()

    def _seen(self, timer: ui.timer, event: events.GenericEventArguments) -> None:
        """Rest while nobody looks."""
        timer.active = bool(event.args)
        if timer.active:
            self.renew()

    def _draw(self) -> None:
        """Draw the charts, with new points or other colours."""
        self._version, options = self._charts()
        for name, chart in self._drawn.items():
            chart.options.clear()
            chart.options.update(copy.deepcopy(options[name]))
            chart.update()
