"""The local page itself: what is where, and what is said about it."""

from tapestry.web.markup import Markup, joined, tag
from tapestry.web.parts import bar, card, chart
from tapestry.web.renewing import Renewing
from tapestry_node.web.board import Board

_SECTIONS = {
    "training": "Training",
    "rounds": "Rounds",
    "left": "What left",
    "ledger": "Ledger",
    "policy": "Policy",
    "machine": "Machine",
}


def build(board: Board) -> None:
    """Lay everything out for a visitor, and begin to renew it."""
    renewing = Renewing(lambda: board.parts, lambda: (board.charts_version, board.options))
    known = board.seen.membership
    top = bar(f"{known.member_id} in {known.federation}", known.genesis, _SECTIONS)
    renewing.build(joined([top, _main(renewing)]))


def _main(renewing: Renewing) -> Markup:
    part = renewing.part
    content = [
        part("hero"),
        part("todo"),
        part("approval"),
        tag(
            "section",
            chart("loss", "Training loss", note="Of each inner step of the newest round here."),
            chart(
                "speed",
                "Speed",
                note="Tokens a second in the same round, pauses to keep it included.",
            ),
            id="training",
            class_="two",
        ),
        chart(
            "quality",
            "Quality",
            note="Each checkpoint on your own held-out text. Lower is better.",
        ),
        card("rounds", "Rounds", part("rounds"), note="As the federation's manifests tell them."),
        card(
            "left",
            "What left",
            part("left"),
            note="Every request is written to the egress ledger before it is sent. "
            "`tapestry node audit` compares with what the kernel counted.",
        ),
        card("ledger", "The ledger's newest lines", part("ledger")),
        card(
            "policy",
            "Policy in force",
            part("policy"),
            note="From `node.toml`, which is read at every start of the node.",
        ),
        card("machine", "Machine", part("machine")),
        tag("footer", "Tapestry \u00b7 this page only reads; it changes nothing."),
    ]
    return tag("main", *content, id="main", class_="page")
