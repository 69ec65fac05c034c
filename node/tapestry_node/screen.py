"""`tapestry node status` on a terminal: one screen."""

from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tapestry.cli.bars import printable
from tapestry_node.overview import Overview, PastRound
from tapestry_node.progress import lasting

_ROUNDS = 5
_BAR_CELLS = 40
_WIDTH_OF_FILES = 200


def screen(seen: Overview) -> RenderableType:
    """Return the screen; whatever others wrote is shown as text, never as markup."""
    parts: list[RenderableType] = [_facts(seen)]
    if seen.to_do:  # before the tables: a low terminal cuts off what comes last
        parts += [Text(), _words("to do", style="bold yellow")]
        parts += [_words(f"  {one}") for one in seen.to_do]
    if seen.rounds:
        parts += [Text(), _rounds(seen.rounds[:_ROUNDS])]
    if seen.left.today:
        parts += [Text(), _today(seen)]
    return Group(*parts)


def show(seen: Overview) -> None:
    """Print the screen to standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_FILES)
    console.print(screen(seen))


def _facts(seen: Overview) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    known, now = seen.membership, seen.now
    table.add_row(
        "member", _words(f"{known.member_id} in {known.federation} ({known.genesis[:16]})")
    )
    table.add_row("doing", _words(seen.activity, style="bold" if seen.is_running else "yellow"))
    if (part := _part_done(seen)) is not None:
        table.add_row("", ProgressBar(total=max(1, part[1]), completed=part[0], width=_BAR_CELLS))
    if seen.is_running:
        long = lasting(seen.time - now.running_since)
        table.add_row("running", _words(f"for {long}, process {now.pid}"))
    table.add_row("coordinator", _words(f"{known.address}, {_line(seen)}"))
    table.add_row("checkpoint", _checkpoint(seen))
    if seen.receipt is not None:
        when = _time(seen.receipt.accepted_at)
        table.add_row("receipt", _words(f"for round {seen.receipt.round}, of {when}"))
    table.add_row("left today", _words(_left(seen)))
    table.add_row("certificate", _words(_certificate(seen)))
    table.add_row("disk", _words(f"{seen.disk_free_bytes / 1e9:,.1f} GB free"))
    if now.trainer and seen.is_running:
        table.add_row("trainer", _words(f"not shut off: {now.trainer}", style="yellow"))
    return table


def _line(seen: Overview) -> str:
    if not seen.is_running:
        return "not connected"
    if seen.now.connected_since:
        return f"connected for {lasting(seen.time - seen.now.connected_since)}"
    if seen.now.silent_since:
        return f"silent for {lasting(seen.time - seen.now.silent_since)}"
    return "connecting"


def _checkpoint(seen: Overview) -> Text:
    if seen.state.round < 0:
        return _words("none yet")
    score = seen.now.bits_per_byte.get(str(seen.state.round))
    told = "" if score is None else f", {score:.4f} bits per byte on your held-out text"
    return _words(f"{seen.state.round}{told}")


def _left(seen: Overview) -> str:
    left = seen.left
    if left.chain == "empty":
        return "nothing has left this node yet"
    words = f"{left.today_bytes:,} bytes of {left.bytes:,} in all; the chain is "
    words += "BROKEN" if left.chain == "broken" else f"whole, head {left.head[:16]}"
    if left.blocked:
        words += f"; stopped attempts of the trainer to reach a network: {left.blocked:,}"
    return words


def _certificate(seen: Overview) -> str:
    ends_in = seen.certificate_until - seen.time
    until = f"until {_time(seen.certificate_until)}"
    return f"{until}, in {lasting(ends_in)}" if ends_in > 0 else f"{until}: it has ended"


def _part_done(seen: Overview) -> tuple[int, int] | None:
    """Return how much of what the node does is done, of how much; None: nothing to be told."""
    if seen.is_running and seen.now.of:
        return seen.now.done, seen.now.of
    if seen.is_running and seen.now.doing == "training":
        return seen.now.step, seen.now.steps
    return None


def _rounds(rounds: tuple[PastRound, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("round", justify="right")
    table.add_column("weight", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("bits per byte", justify="right")
    table.add_column("receipt")
    table.add_column("remark", overflow="fold")
    for one in rounds:
        table.add_row(
            str(one.round),
            f"{one.weight:.3f}" if one.took_part else "",
            f"{one.tokens:,}" if one.took_part else "",
            "" if one.bits_per_byte is None else f"{one.bits_per_byte:.4f}",
            "yes" if one.has_receipt else "",
            _words(remark(one)),
        )
    return table


def remark(one: PastRound) -> str:
    """Return what there is to say of a round, in words."""
    if one.reverted:
        return f"reverted: {one.reverted}"
    if one.left_out:
        return f"left out: {one.left_out}"
    if one.round == 0:
        return "genesis"
    return "" if one.took_part else "not of the cohort"


def _today(seen: Overview) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("left today (UTC)")
    table.add_column("requests", justify="right")
    table.add_column("bytes", justify="right")
    for call, pair in seen.left.today.items():
        table.add_row(_words(call), f"{pair['requests']:,}", f"{pair['bytes']:,}")
    return table


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _words(text: str, style: str = "") -> Text:
    """Return a text that is shown as it is, whoever wrote it."""
    return Text(printable(text), style=style)
