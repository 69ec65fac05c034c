"""Positions by survey and by behaviour, the shifts between arms, and the gap of the two."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tapestry_finetune.evaluation.series import Floats
from tapestry_finetune.evaluation.survey import Behaviour, Standing, Survey

_BASE = "base"
_LEVELS = (0.025, 0.975)


def positions_of(
    values: Mapping[str, Mapping[str, Standing]],
    asked: Mapping[str, Survey | Behaviour | None],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return positions as JSON values.

    Args:
        values: Of each arm its standing by `survey` and by `behaviour`, those that were measured.
        asked: The questions of both.
        resamples: Of the questions, for the intervals.
        seed: Of the resampling.
    """
    found: dict[str, Any] = {}
    drawn: dict[str, dict[str, dict[str, Floats]]] = {}
    for offset, (kind, questions) in enumerate(asked.items()):
        if questions is None:
            continue
        standings = {arm: one[kind] for arm, one in values.items()}
        drawn[kind] = {
            axis.id: {
                arm: one.draws(axis.id, resamples=resamples, seed=seed + offset)
                for arm, one in standings.items()
            }
            for axis in questions.axis
        }
        found[kind] = {
            "name": questions.name,
            "axes": [axis.model_dump() for axis in questions.axis],
            "arms": {arm: _arm(one, drawn[kind], arm) for arm, one in standings.items()},
            "items": _items(standings, questions),
        }
    if "survey" in found and "behaviour" in found:
        found["gap"] = _gaps(found, drawn)
    return found


def _arm(standing: Standing, draws: Mapping[str, Mapping[str, Floats]], arm: str) -> dict[str, Any]:
    return {
        axis: {"at": standing.axis(axis), **_interval(of_axis[arm])}
        for axis, of_axis in draws.items()
    }


def _items(
    standings: Mapping[str, Standing], questions: Survey | Behaviour
) -> list[dict[str, Any]]:
    """Return every question with what each arm says to it."""
    options = (
        {one.id: one.options for one in questions.item} if isinstance(questions, Survey) else {}
    )
    first = next(iter(standings.values()))
    return [
        {
            "id": item,
            "axis": axis,
            "options": options.get(item, []),
            "arms": {
                arm: {
                    "at": float(one.positions[item].mean()),
                    "wordings": [float(at) for at in one.positions[item]],
                    "shares": one.options.get(item, []),
                    "similarity": one.similarity.get(item),
                }
                for arm, one in standings.items()
            },
        }
        for item, axis in first.axes.items()
    ]


def _gaps(found: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return for each axis and arm the shift of words, that of deeds, and their difference."""
    gaps: dict[str, Any] = {}
    for axis in drawn["survey"].keys() & drawn["behaviour"].keys():
        gaps[axis] = {}
        for arm in found["survey"]["arms"]:
            if arm == _BASE:
                continue
            shift = {
                kind: found[kind]["arms"][arm][axis]["at"] - found[kind]["arms"][_BASE][axis]["at"]
                for kind in ("survey", "behaviour")
            }
            draws = {
                kind: drawn[kind][axis][arm] - drawn[kind][axis][_BASE]
                for kind in ("survey", "behaviour")
            }
            gaps[axis][arm] = {
                "survey_shift": {"at": shift["survey"], **_interval(draws["survey"])},
                "behaviour_shift": {"at": shift["behaviour"], **_interval(draws["behaviour"])},
                "gap": {
                    "at": shift["survey"] - shift["behaviour"],
                    **_interval(draws["survey"] - draws["behaviour"]),
                },
            }
    return gaps


def _interval(draws: Floats) -> dict[str, float]:
    low, high = np.quantile(draws, _LEVELS)
    return {"low": float(low), "high": float(high)}


def positions_said(positions: Mapping[str, Any], arm: str = "localized") -> list[str]:
    """Return in a sentence for each axis how far words moved, and how far deeds."""
    lines = []
    for axis in positions.get("survey", {}).get("axes", []) if "gap" in positions else []:
        of_axis = positions["gap"].get(axis["id"])
        if of_axis is None:
            continue
        gap = of_axis[arm]
        said, done, between = (gap[one] for one in ("survey_shift", "behaviour_shift", "gap"))
        certain = between["low"] > 0 or between["high"] < 0
        lines.append(
            f"From {axis['low']} to {axis['high']}: {_signed(said)} in what the model says, "
            f"{_signed(done)} in what it does" + (": words and deeds part." if certain else ".")
        )
    return lines


def _signed(moved: Mapping[str, float]) -> str:
    return f"{round(moved['at'], 2) + 0.0:+.2f}"  # adding 0.0 makes -0.0 positive
