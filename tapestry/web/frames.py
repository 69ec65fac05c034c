"""Charts as ECharts takes them, thinned out: the eye sees no more, and the line carries less."""

from collections.abc import Sequence
from typing import Any

POINTS = 160
"""That a line shows at most."""

COLOURS = (
    "#3b6fd4", "#d9822b", "#2f9e7a", "#c2477a", "#7a5bd0",
    "#8a8f2a", "#1f9bb8", "#b5533c", "#5b7c99", "#a06cb8",
)  # fmt: skip
_TEXT = "tapestryColour('--muted')"
_LINE = "tapestryColour('--line')"


def line(name: str, points: Sequence[tuple[int, float]], colour: str) -> dict[str, Any]:
    """One line of a chart."""
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


def frame(series: list[dict[str, Any]], *, y: str, x: str = "round") -> dict[str, Any]:
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
            "name": x,
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
