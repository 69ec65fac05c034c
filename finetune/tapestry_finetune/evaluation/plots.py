"""The report's plots, as SVG that stands in the page: text stays text, in any script."""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from tapestry_finetune.evaluation.floor import VerdictRow
from tapestry_finetune.evaluation.series import MEASURES

_COLOURS = {"improved": "#17704f", "kept": "#5a6675", "REGRESSED": "#b3261e"}
_ARM_COLOURS = {
    "base": "#5a6675",
    "base + prompt": "#8a5a00",
    "localized": "#2857b8",
    "localized + prompt": "#17704f",
}
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.hashsalt": "tapestry",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot_changes(rows: Sequence[VerdictRow]) -> str:
    """Return each figure's gain with its interval, and how far it might have fallen."""
    rows = [row for row in rows if all(map(math.isfinite, (row.change, row.low, row.high)))]
    if not rows:
        return ""
    texts = [row for row in rows if not MEASURES[row.measure].is_share]
    shares = [row for row in rows if MEASURES[row.measure].is_share]
    groups = [
        (of, unit)
        for of, unit in ((texts, "bits saved, % of the base's"), (shares, "points gained"))
        if of
    ]

    def draw(figure: Figure) -> None:
        heights = [len(of) + 1 for of, _unit in groups]
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
        for ax, (of, unit) in zip(axes[:, 0], groups, strict=True):
            _gains(ax, of, unit)

    return _drawn(draw, height=0.32 * len(rows) + 0.9 * len(groups) + 0.2)


def _gains(axes: Any, rows: Sequence[VerdictRow], unit: str) -> None:  # noqa: ANN401
    for place, row in enumerate(reversed(rows)):
        sign = 100 if MEASURES[row.measure].more_is_better else -100
        low, high = sorted((sign * row.low, sign * row.high))
        colour = _COLOURS[row.verdict]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.5, alpha=0.55)
        axes.plot([sign * row.change], [place], "o", color=colour)
        axes.plot([-100 * row.tolerance] * 2, [place - 0.35, place + 0.35], color="#b3261e")
    axes.axvline(0, color="#9aa6b5", linewidth=0.8)
    labels = [f"{_short(row.measure)}: {row.slice}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel(f"{unit}; the red mark is the floor")
    _as_words(axes)


def plot_positions(positions: Mapping[str, Any]) -> str:
    """Return where every arm stands on the first two axes; ellipses are the questions' noise."""
    kinds = [kind for kind in ("survey", "behaviour") if kind in positions]
    axes_of = positions[kinds[0]]["axes"][:2]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for kind in kinds:
            for arm, at in positions[kind]["arms"].items():
                x, y = (at[axis["id"]] for axis in axes_of)
                colour = _ARM_COLOURS.get(arm, "#5a6675")
                width, height = (one["high"] - one["low"] for one in (x, y))
                axes.add_patch(Ellipse((x["at"], y["at"]), width, height, color=colour, alpha=0.07))
                face = colour if kind == "survey" else "white"
                axes.plot(
                    [x["at"]],
                    [y["at"]],
                    "o" if kind == "survey" else "s",
                    markerfacecolor=face,
                    markeredgecolor=colour,
                    label=f"{'says' if kind == 'survey' else 'does'}: {arm}",
                )
        far = [
            abs(end)
            for kind in kinds
            for at in positions[kind]["arms"].values()
            for axis in axes_of
            for end in (at[axis["id"]]["low"], at[axis["id"]]["high"])
        ]
        limit = min(1.05, max(0.25, 1.15 * max(far)))
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
        axes.set_xlabel(f"{axes_of[0]['low']}  \u2190  \u2192  {axes_of[0]['high']}")
        axes.set_ylabel(f"{axes_of[1]['low']}  \u2190  \u2192  {axes_of[1]['high']}")
        axes.axhline(0, color="#d5dae0", linewidth=0.8)
        axes.axvline(0, color="#d5dae0", linewidth=0.8)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        _as_words(axes)

    return _drawn(draw, height=4.2) if len(axes_of) == 2 else ""


def _short(measure: str) -> str:
    return MEASURES[measure].label.removesuffix(" of held-out text")


def _as_words(axes: Any) -> None:  # noqa: ANN401
    """Take names for words, not for formulas."""
    for text in (*axes.get_yticklabels(), *axes.get_xticklabels(), axes.xaxis.label):
        text.set_parse_math(parse_math=False)


def _drawn(draw: Callable[[Figure], None], *, height: float) -> str:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a script that the measuring font lacks; a browser has it
        figure = Figure(figsize=(8, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return _METADATA.sub("", text[text.index("<svg") :])
