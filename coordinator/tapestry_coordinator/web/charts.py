"""Charts as ECharts takes them, thinned out: the eye sees no more, and the line carries less."""

from collections.abc import Mapping, Sequence
from typing import Any

from tapestry_coordinator.web.history import RoundSummary
from tapestry_coordinator.web.measured import Language

POINTS = 160
"""Rounds that a line shows at most."""
BARS = 60
"""Rounds, or spans of rounds, that influence shows at most."""
LANGUAGES = 10
MEMBERS = 10

_COLOURS = (
    "#3b6fd4", "#d9822b", "#2f9e7a", "#c2477a", "#7a5bd0",
    "#8a8f2a", "#1f9bb8", "#b5533c", "#5b7c99", "#a06cb8",
)  # fmt: skip
_OTHERS = "#9aa3af"
_TEXT = "tapestryColour('--muted')"
_LINE = "tapestryColour('--line')"


def quality(languages: Sequence[Language]) -> dict[str, Any]:
    """Bits per byte of each language over rounds."""
    shown = sorted(languages[:LANGUAGES], key=lambda language: language.name)
    series = [
        _line(one.name, list(one.by_round.items()), _COLOURS[i]) for i, one in enumerate(shown)
    ]
    return _frame(series, y="bits per byte")


def loss(rounds: Sequence[RoundSummary]) -> dict[str, Any]:
    """The members' training loss over rounds."""
    points = [(r.number, r.loss) for r in rounds if r.loss is not None]
    return _frame([_line("training loss", points, _COLOURS[0])], y="nats per token")


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
            "itemStyle": {"color": _OTHERS if name == "others" else _COLOURS[i % len(_COLOURS)]},
            "data": [round(100 * column[name], 2) for column in columns],
        }
        for i, name in enumerate(shown)
    ]
    options = _frame(series, y="% of the update")
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


def _line(name: str, points: Sequence[tuple[int, float]], colour: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "line",
        "showSymbol": len(points) == 1,
        "symbolSize": 7,
        "lineStyle": {"width": 2},
        "itemStyle": {"color": colour},
        "data": [[number, round(value, 4)] for number, value in thinned(points, POINTS)],
    }


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """Return at most `most` of the points, evenly apart, with the first and the last."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def _frame(series: list[dict[str, Any]], *, y: str) -> dict[str, Any]:
    """Axes, legend and tooltip; colours follow the page's light or dark."""
    axis = {
        "axisLabel": {":color": _TEXT},
        "axisLine": {"lineStyle": {":color": _LINE}},
        "axisTick": {"show": False},
    }
    return {
        "animation": False,
        "aria": {"enabled": True},
        "textStyle": {"fontFamily": "inherit"},
        "grid": {"left": 8, "right": 14, "top": 34, "bottom": 64, "containLabel": True},
        "legend": {
            "type": "scroll",
            "bottom": 0,
            "icon": "roundRect",
            "itemWidth": 12,
            "itemHeight": 8,
            "textStyle": {":color": _TEXT},
            "pageTextStyle": {":color": _TEXT},
            "show": len(series) > 1,
        },
        "tooltip": {
            "trigger": "axis",
            "renderMode": "richText",
            "confine": True,
            ":backgroundColor": "tapestryColour('--card')",
            ":borderColor": _LINE,
            "textStyle": {":color": "tapestryColour('--text')"},
        },
        "xAxis": {
            **axis,
            "type": "value",
            "name": "round",
            "nameLocation": "middle",
            "nameGap": 26,
            "nameTextStyle": {":color": _TEXT},
            "minInterval": 1,
            "min": "dataMin",
            "max": "dataMax",
            "splitLine": {"show": False},
        },
        "yAxis": {
            **axis,
            "type": "value",
            "name": y,
            "nameLocation": "end",
            "nameTextStyle": {":color": _TEXT, "align": "left", "padding": [0, 0, 4, -24]},
            "scale": True,
            "splitLine": {"lineStyle": {":color": _LINE}},
        },
        "series": series,
    }
