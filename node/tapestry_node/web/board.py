"""Everything that the local page shows, made once for all who look at it."""

import threading
from collections.abc import Callable
from typing import Any

from tapestry.web.frames import COLOURS, frame, line
from tapestry.web.markup import Markup
from tapestry_node.home import NodeHome
from tapestry_node.overview import Observer
from tapestry_node.web import sections


class Board:
    """What was seen last, as sections and charts."""

    def __init__(self, home: NodeHome, *, clock: Callable[[], float]) -> None:
        """Of the node in `home`."""
        self._clock = clock
        self._observer = Observer(home)
        self._turn = threading.Lock()
        self._points: object = None
        self.seen = self._observer.look(now=clock())
        self.parts: dict[str, Markup] = {}
        """Sections by name."""
        self.options: dict[str, dict[str, Any]] = {}
        """Charts by name."""
        self.charts_version = 0
        self._render()

    @property
    def member_id(self) -> str:
        """Whose node it is."""
        return self.seen.membership.member_id

    def refresh(self) -> bool:
        """Look again; there is never more to look at, at once."""
        with self._turn:
            self.seen = self._observer.look(now=self._clock())
            self._render()
        return False

    def _render(self) -> None:
        seen = self.seen
        self.parts = {
            "hero": sections.top(seen),
            "todo": sections.to_do(seen),
            "approval": sections.approval(seen),
            "rounds": sections.rounds(seen.rounds),
            "left": sections.left(seen.left),
            "ledger": sections.ledger(seen.left),
            "policy": sections.policy(seen),
            "machine": sections.machine(seen),
        }
        losses = [(int(step), float(loss)) for step, loss in seen.now.losses]
        scores = sorted((int(n), float(bits)) for n, bits in seen.now.bits_per_byte.items())
        speeds = [(int(step), float(speed)) for step, speed in seen.now.speeds]
        points = (seen.now.round, losses, speeds, scores)
        if points != self._points:
            self._points = points
            self.options = {
                "loss": frame(
                    [line("training loss", losses, COLOURS[0])], y="nats per token", x="step"
                ),
                "speed": frame([line("speed", speeds, COLOURS[1])], y="tokens a second", x="step"),
                "quality": frame(
                    [line("held-out text", scores, COLOURS[2])], y="bits per byte", x="checkpoint"
                ),
            }
            self.charts_version += 1
