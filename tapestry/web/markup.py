"""HTML from values: whatever is not markup of ours is escaped, without exception."""

import html
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime


class Markup(str):
    """HTML that was made here."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | None) -> Markup:
    """Return an element; children that are no `Markup` are text, and are escaped.

    Attributes lose a trailing underscore and take hyphens for the others; None leaves one out.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{shown}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Markup:
    """Return markup and text, one after the other."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def said(text: str) -> Markup:
    """Return what somebody else wrote: in its own direction, whatever letters it has."""
    return tag("bdi", text)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = ""
) -> Markup:
    """Return a table that scrolls inside its box, and is a list of cards where there is no room.

    Args:
        caption: For who cannot see it.
        columns: Headings.
        rows: As many cells each; the first names the row.
        kind: Of the table, for its look.
    """
    head = tag("tr", *[tag("th", name, scope="col") for name in columns])
    body = joined(_row(columns, row) for row in rows)
    content = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    return tag(
        "div", content, class_=f"scroll {kind}".strip(), tabindex="0", role="group",
        aria_label=caption,
    )  # fmt: skip


def _row(columns: Sequence[str], cells: Sequence[str]) -> Markup:
    first = tag("th", cells[0], scope="row", data_label=columns[0])
    others = zip(columns[1:], cells[1:], strict=True)
    return tag("tr", first, *[tag("td", cell, data_label=name) for name, cell in others])


def moment(at: float) -> Markup:
    """Return a time as UTC."""
    when = datetime.fromtimestamp(at, UTC)
    text = f"{when:%Y-%m-%d %H:%M}"
    return tag("time", text, datetime=f"{when:%Y-%m-%dT%H:%M:%SZ}", title=f"{when:%H:%M:%S} UTC")


def ago(seconds: float) -> str:
    """Return how long ago something was, in coarse words that seldom change."""
    return "just now" if seconds < 15 else f"{lasting(seconds)} ago"


def lasting(seconds: float) -> str:
    """Return a duration in one unit."""
    if seconds < 60:
        return f"{max(1, int(seconds) // 5 * 5) if seconds >= 5 else max(1, round(seconds))} s"
    for unit, size in (("min", 60.0), ("h", 3600.0), ("days", 86400.0)):
        larger = {"min": 3600.0 * 2, "h": 86400.0 * 2, "days": float("inf")}[unit]
        if seconds < larger:
            return f"{int(seconds // size)} {unit}"
    raise AssertionError


def in_bytes(size: float) -> str:
    """Return a number of bytes with three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def count(number: float) -> str:
    """Return a whole number with thin groups."""
    return f"{number:,.0f}".replace(",", "\u202f")


def of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
