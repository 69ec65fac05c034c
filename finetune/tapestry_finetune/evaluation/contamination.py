"""How much of what a model is measured on stands in what it has learnt from.

Whoever has read a question with its answer passes it: such a figure says nothing of the rest. Both
arms of an evaluation read the same suites, but only the localized one has read the training rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tapestry_finetune.evaluation.items import ChoiceItem, ExactItem, Item
from tapestry_finetune.evaluation.measuring import Material
from tapestry_finetune.rows.kinds import Row
from tapestry_finetune.rows.overlap import OnRows, items_of, overlaps

_NAMED = 3
"""Of the rows that were found, in the report."""


def contamination(
    material: Material, learnt: Sequence[Row], on_rows: OnRows | None = None
) -> list[dict[str, Any]]:
    """Compare the suites with training rows, by the letters that stand there in one piece.

    Args:
        material: What is measured on.
        learnt: What was learnt from.
        on_rows: Told how far it is.

    Returns:
        Of each suite: its name, its rows, how many of them are long enough to be compared, how
        many stand in the training rows too, and which come first (their number, from 1). Empty if
        nothing was learnt from.
    """
    if not learnt:
        return []
    suites = dict(_rows(material))
    asked = [
        (len(rows), [item for n, texts in enumerate(rows, 1) for item in items_of(f"{n}", texts)])
        for rows in suites.values()
    ]
    found: list[dict[str, Any]] = []
    for name, seen in zip(suites, overlaps(learnt, asked, on_rows), strict=True):
        numbers = sorted({int(leak.evaluation) for leak in seen.leaks})
        found.append(
            {
                "suite": name,
                "rows": seen.rows,
                "compared": seen.compared,
                "in the training rows": len(numbers),
                "first": ", ".join(map(str, numbers[:_NAMED])),
            }
        )
    return found


def contamination_said(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return what a board must know of it: a sentence for each suite that was read before."""
    return [
        f"Read before: {one['in the training rows']:,} of the {one['rows']:,} rows of "
        f"{one['suite']} stand in the training rows too (first {one['first']}); what was learnt "
        "by heart says nothing of the rest. Take them out of one of both."
        for one in found
        if one["in the training rows"]
    ]


def _rows(material: Material) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the suites whose figures are better for whoever has read them."""
    for tag, texts in material.texts.items():
        yield f"text {tag}", [[text] for text in texts]
    if material.chats:
        said = [[message["content"] for message in row.messages] for row in material.chats]
        yield "chats", said
    for suite in material.questions:
        yield f"suite {suite.name}", [_texts(item) for item in suite.items]


def _texts(item: Item) -> list[str]:
    if isinstance(item, ChoiceItem):
        return [item.prompt, *item.choices]
    return [item.prompt, *item.accept] if isinstance(item, ExactItem) else [item.text]
