"""What the figures of `leakage` mean, and what they do not, in words."""

from typing import Any

_UNSEEN_BITS = 1.44
"""Mean exposure of a canary that the model never saw: log2(e)."""


def words(figures: dict[str, Any]) -> list[str]:
    """Return paragraphs for a person."""
    said = [
        (
            f"the contribution to round {figures['round']} ({figures['steps']} steps, "
            f"{figures['codec']}): {figures['source']}"
        ),
        *_rows(figures["embedding_rows"]),
        *_canaries(figures["canaries"]),
        *_verbatim(figures["verbatim"]),
        *_inversion(figures["inversion"]),
        (
            "These are lower bounds: better attacks exist or will. Small figures do not prove that "
            "nothing can be learned from a vector, above all not whether a given text was in the "
            "corpus."
        ),
    ]
    if figures["not_kept_from"]:
        said.append(f"the measuring process was not shut off: {figures['not_kept_from']}")
    return said


def for_others(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures without what names words of the text: which tokens were picked."""
    rows = figures["embedding_rows"]
    if rows is not None:
        rows = {name: value for name, value in rows.items() if name != "picked_ids"}
    return {**figures, "embedding_rows": rows}


def _rows(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return ["embedding rows: none are sent; they say nothing about the vocabulary"]
    tied = "tied to the output: every row moves" if row["is_tied"] else "not tied to the output"
    return [
        (
            f"embedding rows ({tied}): from {row['way']}, somebody who has the vector picks "
            f"{row['picked']:,} of {row['rows']:,} tokens as yours, {row['precision']:.0%} of them "
            f"rightly ({row['chance']:.0%} by chance), and finds {row['recall']:.0%} of your "
            f"{row['vocabulary']:,}; a token of yours ranks above another in {row['ranking']:.0%} "
            "of pairs (50 % tells nothing). It is about which words occur, not who said what with "
            "them; a rare name that is a token of its own shows"
        )
    ]


def _canaries(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["canaries: none are planted (tapestry node canaries plant 64, and a round later)"]
    said = []
    there = found["found_in_text"]
    if there is not None and there < found["planted"]:
        said.append(
            f"canaries: only {there} of {found['planted']} stand in the text that is trained on; "
            "the figures below are of all"
        )
    for name in ("base", "contribution", "consensus"):
        if name in found:
            one = found[name]
            said.append(
                f"canaries, {name}: {one['mean']:.2f} bits of exposure on average, at most "
                f"{one['largest']:.2f} of {one['most_measurable']:.0f} measurable; "
                f"{one['first_of_all']} of {found['planted']} likelier than all others of their "
                "form"
            )
    said.append(
        f"Text that was never seen has {_UNSEEN_BITS} bits on average. More means that the model "
        f"remembers random text seen {found['repeats']} time(s) a pass; text that says something "
        "can be remembered sooner"
    )
    return said


def _verbatim(found: dict[str, dict[str, Any]]) -> list[str]:
    base, own = found["base"], found["contribution"]
    half = base["prefix_tokens"]
    short = "" if half >= 50 else f" (your documents are short: {half} tokens, not 50)"
    return [
        (
            f"verbatim: given {half} tokens of your text, the model continues the next {half} "
            f"exactly in {own['whole']:.1%} of {own['samples']} samples, before it "
            f"{base['whole']:.1%}; single tokens {own['tokens']:.1%}, before "
            f"{base['tokens']:.1%}{short}. What the base says as well was known before; zero does "
            "not mean that nothing can be drawn out with other words"
        )
    ]


def _inversion(found: dict[str, Any]) -> list[str]:
    return [*_shown_by_rows(found), *_rebuilt(found)]


def _shown_by_rows(found: dict[str, Any]) -> list[str]:
    if found["one_gradient"] is None:
        return ["inversion, rows: no embedding is sent, so tokens were not looked for in its rows"]
    steps = ", ".join(f"{share:.0%} after {h}" for h, share in found["by_steps"].items())
    return [
        (
            f"inversion, rows: of the {found['distinct_tokens']} distinct tokens in a batch of "
            f"{found['sequences']} x {found['sequence_tokens']} (seed {found['seed']}), the rows "
            f"in one plain gradient show {found['one_gradient']:.0%} ({found['chance']:.0%} by "
            f"chance); steps of your optimizer on further text: {steps}; your round has "
            f"{found['steps_of_the_round']}. This is a bag of tokens, without their order"
        )
    ]


def _rebuilt(found: dict[str, Any]) -> list[str]:
    figures = found["rebuilt"]
    if figures is None:
        return [
            (
                "inversion, text: not tried: the matrices that read first in the model's first two "
                "blocks are not sent, or it has no such blocks"
            )
        ]
    names = {
        "one_gradient": "its plain gradient",
        "one_step": "one step of your optimizer upon it, encoded",
        "steps": f"{found['small_steps']} steps, each on a batch of that size, encoded",
        "contribution": "the contribution",
        "guessing": "no vector, guessing by what the model writes by itself",
    }
    rows = [
        (
            f"inversion, text, {words}: {one['tokens']:.0%} of the tokens, {one['in_place']:.0%} "
            f"in their place, {one['sequences']:.0%} of the sequences exactly; of the "
            f"{found['sequences']} made of it {one['standing']} stand somewhere in your text"
        )
        for name, words in names.items()
        if (one := figures.get(name)) is not None
    ]
    own, guessed = figures["contribution"], figures["guessing"]
    is_read = own["sequences"] > guessed["sequences"] or own["standing"] > guessed["standing"]
    verdict = (
        "TEXT OF YOURS CAN BE READ OFF THE CONTRIBUTION: send none that sums up so little "
        "(min_inner_steps in the node's policy)"
        if is_read
        else (
            "This attack read no sequence of yours off the contribution, and named "
            f"{own['tokens']:.0%} of the tokens where guessing names {guessed['tokens']:.0%}"
        )
    )
    return [
        *rows,
        (
            "The attack (the span check of DAGER, arXiv 2405.15586) is exact on one gradient of a "
            "batch that has fewer tokens than the model has width: whoever gets such a gradient "
            "has the text. Of a vector that sums up more it takes the leading directions, and a "
            "share near that of guessing says that it found nothing in them. "
            f"{verdict}. That is no bound for other attacks: somebody who has a text in mind can "
            "compare it with the vector"
        ),
    ]
