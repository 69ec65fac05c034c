"""The report: `evaluation.json` for programs and `evaluation.html`, one file, for a board."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tapestry.data.language import language_name
from tapestry.storage.atomic import write_atomic
from tapestry.web.look import STYLE
from tapestry.web.markup import Markup, joined, said, table, tag
from tapestry_finetune.evaluation.evaluating import ArmRow, Evaluation, Shown
from tapestry_finetune.evaluation.floor import VerdictRow
from tapestry_finetune.evaluation.plots import plot_changes, plot_positions
from tapestry_finetune.evaluation.series import MEASURES

JSON_FILE = "evaluation.json"
HTML_FILE = "evaluation.html"

_ARMS = ("base", "base + prompt", "localized", "localized + prompt")
_TONES = {"improved": "good", "kept": "idle", "REGRESSED": "bad"}
_OWN_STYLE = """
.hero p + p { margin-top: .4rem; } .plot svg { width: 100%; height: auto; max-width: 52rem; }
.card .scroll { max-height: none; } .card h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
summary { cursor: pointer; margin: .75rem 0; color: var(--accent); }
.said > div { border-top: 1px solid var(--line); padding: .7rem 0; }
.said .asked { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
.said .both { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr));
  gap: .5rem 1.25rem; margin-top: .4rem; }
.said blockquote { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.said .who, small { color: var(--muted); font-size: .85rem; } small { display: block; }
dl.about { display: grid; margin: 0; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dl.about dd { margin: 0; overflow-wrap: anywhere; } dl.about dt { color: var(--muted); }
.of { overflow-wrap: normal; } .means li { margin: .3rem 0; max-width: 46rem; }
@media (max-width: 44rem) { .plot { overflow-x: auto; } .plot svg { min-width: 34rem; } }
"""
_MEANINGS = """
<li><b>Bits per byte</b>: how surprised the model is by text of that language that it has never
seen. Lower is better; half a percent is little, five percent is much. It says how well a model
knows a language, not whether what it says is true.</li>
<li><b>Right choices</b>: of several answers the right one is the likeliest, per byte, so that a
long answer has no disadvantage. It says what a model knows, not how it talks.</li>
<li><b>Prefers the charter's answer</b>: of a good and a bad answer to a case that was kept out of
training, the good one is the likelier. It does not say that the model would have written it.</li>
<li><b>The interval</b> says where the change would lie with other texts or questions of the same
kind, 19 times in 20. Few questions make it wide.</li>
<li><b>improved</b>: the whole interval is on the better side. <b>REGRESSED</b>: the loss is certain
and lies, or may lie, beyond the floor; for bits per byte and repeated text it is enough that it may
lie there. A language that did so is being forgotten: more <code>training.replay</code> in the
recipe gives much of it back at little cost to yours, and so do fewer steps. <b>kept</b>: everything
else; where too few questions were asked to be sure, the table says so.</li>
<li><b>Says and does</b>: the survey asks for opinions, the situations compare two answers to a
request. Both axes are plain means of our own questions: they show a direction, and cannot be laid
on the map of the World Values Survey. If every question of the survey stands near 0, the model
chose by an option's place and not by what it says, as small models do: it has no opinion to be
moved.</li>
"""


def write_report(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write both files into `folder`, which is made if it is not there; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    values = json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / JSON_FILE, values + "\n")
    write_atomic(folder / HTML_FILE, render_page(evaluation))
    return folder / JSON_FILE, folder / HTML_FILE


def render_page(evaluation: Evaluation) -> str:
    """Return the page; it asks for nothing beside itself."""
    name = str(evaluation.about.get("name", "localized model"))
    parts = [
        _hero(evaluation),
        _about(evaluation.about),
        _verdicts(evaluation.rows, evaluation.notes),
        _values(evaluation.arms),
        _answers(evaluation.answers),
        _positions(evaluation.positions),
        _others("How much of the suites stands in the training rows", evaluation.contamination),
        _others("lm-evaluation-harness", _flat(evaluation.harness)),
        _card("What the figures mean", tag("ul", Markup(_MEANINGS), class_="means")),
    ]
    head = tag(
        "head",
        Markup("<meta charset='utf-8'><meta name='color-scheme' content='light'>"),
        Markup("<meta name='viewport' content='width=device-width, initial-scale=1'>"),
        tag("title", f"Did it get better? {name}"),
        tag("style", Markup(STYLE + _OWN_STYLE)),
    )
    main = tag("main", *[tag("section", part) for part in parts if part], class_="page")
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', main), lang='en')}\n"


def _hero(evaluation: Evaluation) -> Markup:
    tone = "warn" if evaluation.beats_prompt is False else "good"
    tone = tone if evaluation.passed else "bad"
    head, *rest = evaluation.summary
    first, _, more = head.partition(": ")
    lines = [*([f"{more[:1].upper()}{more[1:]}"] if more else []), *rest]
    return tag(
        "div",
        tag("h1", tag("span", class_="dot"), tag("span", first)),
        *[tag("p", line, class_="detail") for line in lines],
        class_=f"hero {tone}",
    )


def _about(about: dict[str, Any]) -> Markup:
    rows = [
        tag("dt", key.replace("_", " ")) + tag("dd", str(value), dir="auto")
        for key, value in about.items()
        if value not in (None, "", [])
    ]
    return _card("What was measured", tag("dl", *map(Markup, rows), class_="about"))


def _verdicts(rows: Sequence[VerdictRow], notes: Sequence[str]) -> Markup:
    if not rows:
        return Markup()
    heads = ("figure", "of", "items", "base", "localized", "change", "95 %", "may lose", "verdict")
    body = [
        (
            MEASURES[row.measure].label,
            _of(row.slice),
            f"{row.items:,}",
            *[tag("span", one, class_="number") for one in figures_of(row)],
            tag(
                "div",
                tag("span", row.verdict, class_=f"chip {_TONES[row.verdict]}"),
                tag("small", row.note) if row.note else "",
            ),
        )
        for row in rows
    ]
    return _card(
        "Better or worse than the base",
        table("Verdicts", heads, body),
        *[tag("p", note, class_="note") for note in notes],
        tag("div", Markup(plot_changes(rows)), class_="plot"),
    )


def _of(slice_: str) -> Markup:
    """Return what a figure is of: a language by its name, with its code."""
    name = language_name(slice_)
    return tag("span", said(name if name == slice_ else f"{name} ({slice_})"), class_="of")


def figures_of(row: VerdictRow) -> tuple[str, str, str, str, str]:
    """Return base, localized, change, interval and tolerance of a row as people read them."""
    is_share = MEASURES[row.measure].is_share
    unit = "points" if is_share else "%"
    figures = [
        "none" if not math.isfinite(one) else f"{100 * one:.1f} %" if is_share else f"{one:.3f}"
        for one in (row.base, row.candidate)
    ]
    if not all(map(math.isfinite, (row.change, row.low, row.high))):
        return figures[0], figures[1], "none", "none", f"{100 * row.tolerance:g} {unit}"
    return (
        figures[0],
        figures[1],
        f"{100 * row.change:+.1f} {unit}",
        f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
        f"{100 * row.tolerance:g} {unit}",
    )


def _values(rows: Sequence[ArmRow]) -> Markup:
    if not rows:
        return Markup()
    arms = [arm for arm in _ARMS if any(arm in row.arms for row in rows)]
    body = [
        (
            MEASURES[row.measure].label,
            _of(row.slice),
            f"{row.items:,}",
            *[_share(row.arms.get(arm)) for arm in arms],
        )
        for row in rows
    ]
    note = "Below each figure its 95 % interval."
    if len(arms) > 2:
        note = (
            "The charter as a mere prompt costs nothing: training must beat it to be worth its "
            f"trouble. {note}"
        )
    heads = ("figure", "of", "items", *arms)
    return _card("Values", tag("p", note, class_="note"), table("Values", heads, body))


def _share(figure: tuple[float, float, float] | None) -> Markup:
    if figure is None or not all(map(math.isfinite, figure)):
        return Markup("&ndash;")
    at, low, high = (100 * one for one in figure)
    return tag("div", f"{at:.0f} %", tag("small", f"{low:.0f} to {high:.0f}"))


def _positions(positions: dict[str, Any]) -> Markup:
    if not positions:
        return Markup()
    parts: list[Markup] = [tag("div", Markup(plot_positions(positions)), class_="plot")]
    if "gap" in positions:
        parts.append(_gap(positions))
    for kind, title in (("survey", "What it says"), ("behaviour", "What it does")):
        if kind in positions:
            name = f"{title}: {positions[kind]['name']}"
            parts.append(tag("details", tag("summary", said(name)), _asked(positions[kind], name)))
    return _card("What it says, and what it does", *parts)


def _asked(of: dict[str, Any], name: str) -> Markup:
    arms = list(of["arms"])
    body = [
        (
            said(item["id"]),
            said(item["axis"]),
            *[_position(item["arms"][arm], item["options"]) for arm in arms],
        )
        for item in of["items"]
    ]
    means: list[tuple[str, ...]] = [
        (
            said(f"{axis['low']} to {axis['high']}"),
            "mean",
            *[tag("b", f"{of['arms'][arm][axis['id']]['at']:+.2f}") for arm in arms],
        )
        for axis in of["axes"]
    ]
    return table(name, ("question", "axis", *arms), [*body, *means])


def _position(item: dict[str, Any], options: Sequence[str]) -> Markup:
    wordings = item["wordings"]
    spread = f"{min(wordings):+.2f} to {max(wordings):+.2f}" if len(wordings) > 1 else ""
    likeliest = ""
    if item["shares"]:
        best = max(range(len(options)), key=lambda at: item["shares"][at])
        likeliest = f"{options[best]} ({100 * item['shares'][best]:.0f} %)"
    alike = item["similarity"]
    more = [spread, likeliest, "" if alike is None else f"like your people: {alike:.2f}"]
    small = [tag("small", said(one)) for one in more if one]
    return tag("div", f"{item['at']:+.2f}", *small)


def _gap(positions: dict[str, Any]) -> Markup:
    def shown(one: dict[str, float]) -> Markup:
        return tag(
            "div", f"{one['at']:+.2f}", tag("small", f"{one['low']:+.2f} to {one['high']:+.2f}")
        )

    names = {axis["id"]: f"{axis['low']} to {axis['high']}" for axis in positions["survey"]["axes"]}
    body = [
        (
            said(names[axis]),
            arm,
            *[shown(row[one]) for one in ("survey_shift", "behaviour_shift", "gap")],
        )
        for axis, arms in positions["gap"].items()
        for arm, row in arms.items()
    ]
    heads = ("axis", "against the base", "words moved", "deeds moved", "behaviour gap")
    return table("Words and deeds", heads, body)


def _answers(shown: Sequence[Shown]) -> Markup:
    if not shown:
        return Markup()

    def by(who: str, words: str) -> Markup:
        quoted = tag("blockquote", words.strip() or "\u2013", dir="auto")
        return tag("div", tag("p", who, class_="who"), quoted)

    body = [
        tag(
            "div",
            tag("p", one.prompt, class_="asked", dir="auto"),
            tag("div", by("base", one.base), by("localized", one.localized), class_="both"),
        )
        for one in shown
    ]
    return _card("Answers side by side", tag("div", *body, class_="said"))


def _others(title: str, rows: Sequence[dict[str, Any]]) -> Markup:
    if not rows:
        return Markup()
    heads = list(dict.fromkeys(key for row in rows for key in row))
    body = [[said(str(row.get(key, ""))) for key in heads] for row in rows]
    return _card(title, table(title, heads, body))


def _flat(harness: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the harness's results as rows."""
    return [
        {"task": task, "metric": metric, **{arm: f"{value:.4f}" for arm, value in arms.items()}}
        for task, metrics in harness.items()
        for metric, arms in metrics.items()
    ]


def _card(title: str, *body: str) -> Markup:
    return tag("div", tag("h2", title), joined(body), class_="card")
