"""Pieces of a page: the sentence at the top, cards, places for charts, words with a colour."""

from collections.abc import Mapping, Sequence

from tapestry.web.markup import Markup, joined, tag


def hero(tone: str, title: str, detail: str, tiles: Sequence[tuple[str, str, str]]) -> Markup:
    """The sentence, and a few numbers under it: name, value, remark."""
    shown = [
        tag("div", tag("dt", name), tag("dd", value), tag("p", remark), class_="tile")
        for name, value, remark in tiles
    ]
    return tag(
        "section",
        tag("h1", tag("span", class_="dot", aria_hidden="true"), tag("span", title)),
        tag("p", with_code(detail), class_="detail"),
        tag("dl", *shown, class_="tiles"),
        class_=f"hero {tone}",
        role="status",
    )


def bar(
    name: str, identity: str, sections: Mapping[str, str], last: Sequence[Markup] = ()
) -> Markup:
    """Return the line at the top: whose page it is, and where its sections are."""
    links = [tag("a", title, href=f"#{place}") for place, title in sections.items()]
    return tag(
        "header",
        tag("a", "Skip to content", href="#main", class_="skip"),
        tag("strong", name),
        tag("code", identity[:16], title=f"The federation's identity: {identity}"),
        tag("nav", *links, aria_label="Sections"),
        tag(
            "button",
            "\u25d0",
            type="button",
            onclick="tapestryTheme()",
            title="Light or dark",
            aria_label="Light or dark",
        ),
        *last,
        class_="bar",
    )


def card(name: str, title: str, content: Markup, *, note: str = "") -> Markup:
    """A section in a box of its own."""
    return tag("section", *heading(title, note), content, id=name, class_="card")


def chart(name: str, title: str, *, note: str = "") -> Markup:
    """The place where a chart is drawn."""
    place = tag("div", id=f"chart-{name}", class_="chart", role="img", aria_label=title)
    return tag("div", *heading(title, note), place, class_="card")


def heading(title: str, note: str = "") -> list[Markup]:
    """A title with a remark under it."""
    return [tag("h2", title), *([tag("p", with_code(note), class_="note")] if note else [])]


def chip(text: str, tone: str) -> Markup:
    """A word with the colour of its meaning."""
    return tag("span", text, class_=f"chip {tone}")


def with_code(text: str) -> Markup:
    """Set what stands between backquotes as code."""
    return joined(tag("code", part) if i % 2 else part for i, part in enumerate(text.split("`")))
