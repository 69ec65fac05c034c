"""What the commands of `tapestry node` show on a terminal while they work."""

from collections.abc import Callable

from tapestry.cli.bars import Bar
from tapestry_node.progress import Progress


def packing(shown: Bar) -> Callable[[str, int, int], None]:
    """Return what shows how far the text is read and packed."""
    return lambda doing, done, of: shown.show(doing, done, of, unit="bytes")


def following(shown: Bar) -> Callable[[Progress], None]:
    """Return what shows what a daemon does; it is drawn while that can be counted."""

    def show(now: Progress) -> None:
        if now.doing == "training":
            note = f"loss {now.loss:.3f}, {now.tokens_per_second:,.0f} tokens/s"
            what = f"round {now.round}: training"
            shown.show(what, now.step, now.steps, unit="steps", note=note)
        else:
            shown.show(now.doing, now.done, now.of, unit=now.unit)

    return show


def reading(shown: Bar) -> Callable[[int, int], None]:
    """Return what shows how far the egress ledger is verified."""
    return lambda done, of: shown.show("verifying the egress ledger", done, of, unit="bytes")
