"""The report: `evaluation.json` for programs and `evaluation.html`, one file, for a board."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tapestry.storage.atomic import write_atomic
from tapestry.web.look import STYLE
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
.card .scroll { max-height: none; } .said { display: grid; gap: .9rem 1.25rem; }
.said > div { border-top: 1px solid var(--line); padding-top: .7rem; }
.said .asked { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
.said .both { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr));
  gap: .5rem 1.25rem; margin-top: .4rem; }
.said blockquote { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.said .who { color: var(--muted); font-size: .85rem; } dl.about { display: grid; margin: 0;
  grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dl.about dd { margin: 0;
  overflow-wrap: anywhere; } dl.about dt { color: var(--muted); }
.chip.good { background: var(--good-back); color: var(--good); }
.chip.idle { background: var(--idle-back); color: var(--idle); }
.chip.bad { background: var(--bad-back); color: var(--bad); }
.means li { margin: .3rem 0; max-width: 46rem; } .means { padding-inline-start: 1.2rem; }
@media (prefers-color-scheme: dark) { .plot svg { background: #fff; border-radius: 8px; } }
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
lie there. <b>kept</b>: everything else; where too few questions were asked to be sure, the table
says so.</li>
<li><b>Says and does</b>: the survey asks for opinions, the situations compare two answers to a
request. Both axes are plain means of our own questions: they show a direction, and cannot be laid
on the map of the World Values Survey.</li>
"""


def write_report(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write both files into `folder`, which is made if it is not there; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table = json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / JSON_FILE, table + "\n")
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
        _positions(evaluation.positions),
        _answers(evaluation.answers),
        _others("How much of the suites stands in the training files", evaluation.contamination),
        _others("lm-evaluation-harness", _flat(evaluation.harness)),
        _card("What the figures mean", f"<ul class='means'>{_MEANINGS}</ul>"),
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light'>"
        f"<title>Did it get better? {escape(name)}</title>"
        f"<style>{STYLE}{_OWN_STYLE}</style></head><body><main class='page'>"
        + "".join(f"<section>{part}</section>" for part in parts if part)
        + "</main></body></html>\n"
    )


def _hero(evaluation: Evaluation) -> str:
    tone = "good" if evaluation.passed else "bad"
    head, *rest = evaluation.summary
    more = "".join(f"<p class='detail'>{escape(line)}</p>" for line in rest)
    return (
        f"<div class='hero {tone}'><h1><span class='dot'></span><span>{escape(head)}</span></h1>"
        f"{more}</div>"
    )


def _about(about: dict[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd dir='auto'>{escape(str(value))}</dd>"
        for key, value in about.items()
        if value not in (None, "", [])
    )
    return _card("What was measured", f"<dl class='about'>{rows}</dl>") if rows else ""


def _verdicts(rows: Sequence[VerdictRow], notes: Sequence[str]) -> str:
    if not rows:
        return ""
    heads = ("figure", "of", "items", "base", "localized", "change", "95 %", "may lose", "verdict")
    body = "".join(
        "<tr>"
        f"<th scope='row'>{escape(MEASURES[row.measure].label)}</th>"
        f"<td dir='auto'>{escape(row.slice)}</td><td class='number'>{row.items:,}</td>"
        + "".join(f"<td class='number'>{one}</td>" for one in figures_of(row))
        + f"<td><span class='chip {_TONES[row.verdict]}'>{row.verdict}</span>"
        + (f"<p class='note'>{escape(row.note)}</p>" if row.note else "")
        + "</td></tr>"
        for row in rows
    )
    said = "".join(f"<p class='note'>{escape(note)}</p>" for note in notes)
    table = _table("Verdicts", heads, body)
    plot = f"<div class='plot'>{plot_changes(rows)}</div>"
    return _card("Better or worse than the base", f"{table}{said}{plot}")


def figures_of(row: VerdictRow) -> tuple[str, str, str, str, str]:
    """Return base, localized, change, interval and tolerance of a row as people read them."""
    if MEASURES[row.measure].is_share:
        return (
            f"{100 * row.base:.1f} %",
            f"{100 * row.candidate:.1f} %",
            f"{100 * row.change:+.1f} points",
            f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
            f"{100 * row.tolerance:g} points",
        )
    return (
        f"{row.base:.3f}",
        f"{row.candidate:.3f}",
        f"{100 * row.change:+.1f} %",
        f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
        f"{100 * row.tolerance:g} %",
    )


def _values(rows: Sequence[ArmRow]) -> str:
    if not rows:
        return ""
    arms = [arm for arm in _ARMS if any(arm in row.arms for row in rows)]
    body = "".join(
        f"<tr><th scope='row'>{escape(MEASURES[row.measure].label)}</th>"
        f"<td dir='auto'>{escape(row.slice)}</td><td class='number'>{row.items:,}</td>"
        + "".join(f"<td class='number'>{_share(row.arms.get(arm))}</td>" for arm in arms)
        + "</tr>"
        for row in rows
    )
    note = (
        "<p class='note'>The charter as a mere prompt costs nothing: training must beat it to be "
        "worth its trouble. In small print the 95 % interval.</p>"
        if len(arms) > 2
        else ""
    )
    return _card("Values", note + _table("Values", ("figure", "of", "items", *arms), body))


def _share(figure: tuple[float, float, float] | None) -> str:
    if figure is None:
        return "&ndash;"
    at, low, high = (100 * one for one in figure)
    return f"{at:.0f} %<br><span class='muted'>{low:.0f}&ndash;{high:.0f}</span>"


def _positions(positions: dict[str, Any]) -> str:
    if not positions:
        return ""
    parts = [f"<div class='plot'>{plot_positions(positions)}</div>"]
    for kind, title in (("survey", "What it says"), ("behaviour", "What it does")):
        if kind in positions:
            parts.append(_asked(positions[kind], title))
    if "gap" in positions:
        parts.append(_gap(positions["gap"]))
    return _card("What it says, and what it does", "".join(parts))


def _asked(of: dict[str, Any], title: str) -> str:
    arms = list(of["arms"])
    body = "".join(
        f"<tr><th scope='row' dir='auto'>{escape(item['id'])}</th>"
        f"<td dir='auto'>{escape(item['axis'])}</td>"
        + "".join(_position(item["arms"][arm], item["options"]) for arm in arms)
        + "</tr>"
        for item in of["items"]
    )
    body += "".join(
        f"<tr><th scope='row' dir='auto'>{escape(axis['low'])} to {escape(axis['high'])}</th>"
        "<td>mean</td>"
        + "".join(
            f"<td class='number'><b>{of['arms'][arm][axis['id']]['at']:+.2f}</b></td>"
            for arm in arms
        )
        + "</tr>"
        for axis in of["axes"]
    )
    name = f"{title}: {of['name']}"
    return f"<h3 dir='auto'>{escape(name)}</h3>" + _table(name, ("question", "axis", *arms), body)


def _position(item: dict[str, Any], options: Sequence[str]) -> str:
    wordings = item["wordings"]
    spread = f"{min(wordings):+.2f} to {max(wordings):+.2f}" if len(wordings) > 1 else ""
    likeliest = ""
    if item["shares"]:
        best = max(range(len(options)), key=lambda at: item["shares"][at])
        likeliest = f"{options[best]} ({100 * item['shares'][best]:.0f} %)"
    alike = item["similarity"]
    more = [spread, likeliest, "" if alike is None else f"like your people: {alike:.2f}"]
    small = "".join(f"<br><span class='muted'>{escape(one)}</span>" for one in more if one)
    return f"<td dir='auto'>{item['at']:+.2f}{small}</td>"


def _gap(gaps: dict[str, Any]) -> str:
    def shown(one: dict[str, float]) -> str:
        return (
            f"<td class='number'>{one['at']:+.2f}<br><span class='muted'>"
            f"{one['low']:+.2f} to {one['high']:+.2f}</span></td>"
        )

    body = "".join(
        f"<tr><th scope='row'>{escape(axis)}</th><td>{escape(arm)}</td>"
        + "".join(shown(row[one]) for one in ("survey_shift", "behaviour_shift", "gap"))
        + "</tr>"
        for axis, arms in gaps.items()
        for arm, row in arms.items()
    )
    heads = ("axis", "against the base", "words moved", "deeds moved", "behaviour gap")
    return "<h3>Words and deeds</h3>" + _table("Words and deeds", heads, body)


def _answers(shown: Sequence[Shown]) -> str:
    if not shown:
        return ""
    body = "".join(
        f"<div><p class='asked' dir='auto'>{escape(one.prompt)}</p><div class='both'>"
        + "".join(
            f"<div><p class='who'>{who}</p><blockquote dir='auto'>{escape(said) or '&ndash;'}"
            "</blockquote></div>"
            for who, said in (("base", one.base), ("localized", one.localized))
        )
        + "</div></div>"
        for one in shown
    )
    return _card("Answers side by side", f"<div class='said'>{body}</div>")


def _others(title: str, rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(row.get(key, '')))}</td>" for key in heads) + "</tr>"
        for row in rows
    )
    return _card(title, _table(title, heads, body))


def _flat(harness: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the harness's results as rows."""
    return [
        {"task": task, "metric": metric, **{arm: f"{value:.4f}" for arm, value in arms.items()}}
        for task, metrics in harness.items()
        for metric, arms in metrics.items()
    ]


def _table(caption: str, heads: Sequence[str], body: str) -> str:
    cells = "".join(f"<th scope='col'>{escape(head)}</th>" for head in heads)
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(caption)}'><table>"
        f"<caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _card(title: str, body: str) -> str:
    return f"<div class='card'><h2>{escape(title)}</h2>{body}</div>"
