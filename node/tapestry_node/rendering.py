"""The audit as a page for people: one file, nothing from elsewhere."""

import html
import io
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tapestry.errors import UntrustedError
from tapestry.wire.egress import read_ledger
from tapestry_node.calls import CARRIES

_MOST_POINTS = 2000
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1c1c1c;background:#fff}
table{border-collapse:collapse;margin:1rem 0;width:100%}
th,td{text-align:left;padding:.3rem .8rem;border-bottom:1px solid #ccc}
td{overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal}
code{overflow-wrap:anywhere}.bad{color:#a40000;font-weight:600}.good{color:#0a5c2b}
figure{margin:1.5rem 0}figure svg{max-width:100%;height:auto;background:#fff}
@media(max-width:40rem){body{margin:1rem auto;font-size:14px}th,td{padding:.3rem .3rem}}
@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#16181b}
.bad{color:#ff8f8f}.good{color:#7ed6a0}th,td{border-color:#444}}
"""


def page(report: dict[str, Any], ledger: Path) -> str:
    """Return the page; what other parties wrote stands in it as text."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>What left {_text(report['member_id'])}</title><style>{_STYLE}</style></head>",
        f"<body><h1>What left {_text(report['member_id'])}</h1>",
        _summary(report),
        _findings(report),
        *(_figure(caption, svg) for caption, svg in _plots(report, ledger)),
        *_tables(report),
        *_leakage(report.get("leakage")),
        _limits(),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _text(value: object) -> str:
    return html.escape(str(value))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _summary(report: dict[str, Any]) -> str:
    rows = [
        ("Federation", f"{report['federation']} (genesis {report['genesis']})"),
        ("Member", report["member_id"]),
        ("Written", _when(report["created_at"])),
        ("Covers", f"{_when(report['from'])} to {_when(report['until'])}"),
        ("Left", f"{report['requests']:,} requests, {report['bytes']:,} bytes of messages"),
        ("Ledger", f"{report['chain']}; head {report['head']}"),
    ]
    cells = "".join(f"<tr><th>{k}</th><td><code>{_text(v)}</code></td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"


def _findings(report: dict[str, Any]) -> str:
    problems = [f'<p class="bad">{_text(one)}</p>' for one in report["problems"]]
    if not problems:
        problems = ['<p class="good">The record is whole, and nothing contradicts it.</p>']
    says = report["kernel"]["says"]
    return f"<h2>Findings</h2>{''.join(problems)}<p>Beside the ledger: {_text(says)}.</p>"


def _tables(report: dict[str, Any]) -> Iterable[str]:
    calls = sorted(report["by_call"].items(), key=lambda item: -item[1]["bytes"])
    words = [([call, CARRIES.get(call, "")], value) for call, value in calls]
    yield _table("By call", ["call", "what it carries"], words)
    rounds = [([n, call], v) for n, by in report["by_round"].items() for call, v in by.items()]
    yield _table("By round", ["round (0: none)", "call"], rounds)
    yield _table("To whom", ["host and port"], [([to], v) for to, v in report["to"].items()])
    allowed = [
        ([d or "none yet", "kept" if v["rules"] else "not kept"], v)
        for d, v in report["policies"].items()
    ]
    yield _table("Under which policy", ["digest", "its rules"], allowed)
    if report["approvals"]:
        rows = [([a["by"], ", ".join(map(str, a["rounds"]))], a) for a in report["approvals"]]
        yield _table("Approved by a person", ["who", "rounds"], rows)
    blocked = [[_when(b["time"]), b["call"], b["to"], str(b["line"])] for b in report["blocked"]]
    yield _plain(
        "What the trainer tried and did not get out", ["when", "call", "to", "line"], blocked
    )
    receipts = [
        [str(r["round"]), "; ".join(r["shown"]), r["problem"] or "; ".join(r["not_shown"])]
        for r in report["receipts"]
    ]
    yield _plain("Acknowledged by the coordinator", ["round", "shown", "not shown"], receipts)


def _table(title: str, heads: list[str], rows: list[tuple[list[Any], dict[str, Any]]]) -> str:
    head = "".join(f"<th>{h}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + f'<td class="n">{value["requests"]:,}</td><td class="n">{value["bytes"]:,}</td></tr>'
        for cells, value in rows
    )  # fmt: skip
    tail = '<th class="n">requests</th><th class="n">bytes</th>'
    return f"<h2>{title}</h2><table><tr>{head}{tail}</tr>{body}</table>"


def _plain(title: str, heads: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return f"<h2>{title}</h2><p>Nothing.</p>"
    head = "".join(f"<th>{h}</th>" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<h2>{title}</h2><table><tr>{head}</tr>{body}</table>"


def _leakage(figures: dict[str, Any] | None) -> Iterable[str]:
    """Yield what the institution says about its last contribution, if it chose to."""
    if figures is None:
        return
    yield (
        "<h2>What the last contribution gives away</h2><p>Measured by the institution on its own "
        "text, which it keeps: nobody else can measure it again. Figures only, no text.</p>"
    )
    yield "".join(f"<p>{_text(one)}</p>" for one in figures["words"])


def _limits() -> str:
    return (
        "<h2>What this does not show</h2><p>That no other program of this machine sent anything: "
        "the ledger and the kernel's count are those of the node's own processes. What a vector "
        "says about the text is another question, which <code>tapestry node audit --leakage</code> "
        "measures, by trying to get text back from it among others; the institution decides "
        "whether its figures stand in the report. Look-ups of names (DNS) are not counted. Verify "
        "this folder with "
        "<code>tapestry node verify-report FOLDER</code>.</p>"
    )


def _figure(caption: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _plots(report: dict[str, Any], ledger: Path) -> Iterable[tuple[str, str]]:
    """Yield captions and drawings of what left."""
    rounds = {
        n: sum(v["bytes"] for v in by.values()) for n, by in report["by_round"].items() if n != "0"
    }
    if rounds:
        yield "Bytes of messages by round.", _bars(rounds, "round")
    calls = {c.rsplit("/", 1)[-1]: v["bytes"] for c, v in report["by_call"].items()}
    if calls:
        yield "Bytes of messages by call (logarithmic).", _bars(calls, "", is_log=True)
    times, sizes = _cumulated(ledger)
    if len(times) > 1:
        yield "Bytes of messages, added up over time.", _line(times, sizes)


def _cumulated(ledger: Path) -> tuple[list[float], list[int]]:
    """Return times and bytes until then, thinned to what a drawing can show."""
    times, sizes, total = [], [], 0
    try:
        for one in read_ledger(ledger):
            total += one.bytes
            times.append(one.time)
            sizes.append(total)
    except UntrustedError:
        pass  # up to there
    every = max(1, len(times) // _MOST_POINTS)
    return [*times[:-1:every], *times[-1:]], [*sizes[:-1:every], *sizes[-1:]]


def _bars(values: dict[str, int], label: str, *, is_log: bool = False) -> str:
    def draw(axes: Any) -> None:  # noqa: ANN401
        axes.bar(list(values), list(values.values()), color="#2b6cb0")
        axes.set_xlabel(label)
        axes.tick_params(axis="x", rotation=30 if is_log else 0)
        if is_log:
            axes.set_yscale("log")
        _in_bytes(axes)

    return _drawn(draw)


def _line(times: list[float], sizes: list[int]) -> str:
    def draw(axes: Any) -> None:  # noqa: ANN401
        axes.step([datetime.fromtimestamp(t, UTC) for t in times], sizes, where="post")
        _in_bytes(axes)
        axes.tick_params(axis="x", rotation=30)

    return _drawn(draw)


def _in_bytes(axes: Any) -> None:  # noqa: ANN401
    """Let the upright axis say kB and MB."""
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))


def _drawn(draw: Any) -> str:  # noqa: ANN401
    import matplotlib as mpl  # noqa: PLC0415 - takes a second to import, and few calls plot
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 3), layout="constrained")
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "tapestry", "svg.fonttype": "path"}):
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return _METADATA.sub("", text[text.index("<svg") :])
