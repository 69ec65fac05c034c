"""The charts of the operator's page."""

from collections.abc import Mapping, Sequence
from typing import Any

from tapestry.web.frames import COLOURS, frame, line
from tapestry_coordinator.web.history import RoundSummary
from tapestry_coordinator.web.measured import Language

BARS = 60
"""Rounds, or spans of rounds, that influence shows at most."""
LANGUAGES = 10
MEMBERS = 10

_OTHERS = "#9aa3af"


def quality(languages: Sequence[Language]) -> dict[str, Any]:
    """Bits per byte of each language over rounds."""
    shown = sorted(languages[:LANGUAGES], key=lambda language: language.name)
    series = [line(one.name, list(one.by_round.items()), COLOURS[i]) for i, one in enumerate(shown)]
    return frame(series, y="bits per byte")


def loss(rounds: Sequence[RoundSummary]) -> dict[str, Any]:
    """The members' training loss over rounds."""
    points = [(r.number, r.loss) for r in rounds if r.loss is not None]
    return frame([line("training loss", points, COLOURS[0])], y="nats per token")


def influence(every: Sequence[RoundSummary], totals: Mapping[str, float]) -> dict[str, Any]:
    """Each member's weight over rounds: those with most in colours, the rest together."""
    rounds = [summary for summary in every if summary.weights]
    names = sorted(sorted(totals, key=lambda name: (-totals[name], name))[:MEMBERS])
    spans = list(_spans(rounds, BARS))
    columns = [_mean_weights(span, names) for span in spans]
    labels = [_span_label(span) for span in spans]
    shown = [*names, "others"] if any(column["others"] > 0.0005 for column in columns) else names
    series = [
        {
            "name": name,
            "type": "bar",
            "stack": "all",
            "barCategoryGap": "12%",
            "itemStyle": {"color": _OTHERS if name == "others" else COLOURS[i % len(COLOURS)]},
            "data": [round(100 * column[name], 2) for column in columns],
        }
        for i, name in enumerate(shown)
    ]
    options = frame(series, y="% of the update")
    options["xAxis"] |= {"type": "category", "data": labels}
    options["yAxis"] |= {"max": 100, "scale": False}
    return options


def _spans(rounds: Sequence[RoundSummary], most: int) -> list[Sequence[RoundSummary]]:
    size = max(1, -(-len(rounds) // most))
    return [rounds[i : i + size] for i in range(0, len(rounds), size)]


def _mean_weights(span: Sequence[RoundSummary], names: Sequence[str]) -> Mapping[str, float]:
    means = {name: sum(r.weights.get(name, 0.0) for r in span) / len(span) for name in names}
    return {**means, "others": max(0.0, 1.0 - sum(means.values()))}


def _span_label(span: Sequence[RoundSummary]) -> str:
    first, last = span[0].number, span[-1].number
    return str(first) if first == last else f"{first}\u2013{last}"
