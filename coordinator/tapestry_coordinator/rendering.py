"""The tables of `views.py` for people."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tapestry_coordinator.status import readable_time


def show(view: str, table: dict[str, Any]) -> None:
    """Print a table to the terminal, as wide as that is."""
    console = Console(highlight=False, soft_wrap=view == "status")
    console.print(_RENDERERS[view](table))


def _status(table: dict[str, Any]) -> Text:
    lines = [
        f"federation {table['federation']}  identity {table['identity'][:16]}",
        _round_line(table),
    ]
    if table.get("paused"):
        lines.append(f"  {pause_line(table)}")
    if table["cohort"]:
        lines.append(f"  contributed: {', '.join(table['arrived']) or 'nobody yet'}")
        answered = {*table["arrived"], *table["declined"], *table["inactive"], *table["excluded"]}
        waiting = sorted(set(table["cohort"]) - answered)
        lines.append(f"  waiting for: {', '.join(waiting) or _nobody(table)}")
        if table["inactive"]:
            lines.append(f"  not waited for: {', '.join(table['inactive'])} (inactive)")
        lines += [f"  {m} is late: {s} rounds" for m, s in table["late"].items()]
        lines += [f"  declined: {m}: {reason}" for m, reason in table["declined"].items()]
        lines += [f"  excluded: {m}: {reason}" for m, reason in table["excluded"].items()]
        lines.append(f"  deadline: {table['deadline']}")
    if table["candidate"]:
        lines.append(f"candidate {table['candidate'][:16]}, measured before it is published:")
        lines += [f"  {m}: {said or 'no worse'}" for m, said in table["measured"].items()]
        if table["phase"] == "held":
            number = table["round"]
            lines.append(f"  decide: tapestry coordinator release {number} | revert {number}")
    lines.append(f"newest checkpoint: {table['newest_checkpoint']} in {table['checkpoint_folder']}")
    lines += [f"  {m}: {bpb:.4f} bits per byte" for m, bpb in table["bits_per_byte"].items()]
    if table["ends"]:
        own, root = (readable_time(table["ends"][name]) for name in ("certificate", "root"))
        lines.append(f"certificate until {own}, renewed before; the federation's root until {root}")
    return Text("\n".join(lines))


def _nobody(table: dict[str, Any]) -> str:
    """Return why a round goes on that all have answered: for the operator, who can do something."""
    missing = table["quorum"] - len(table["arrived"])
    if table["phase"] != "open" or missing <= 0:
        return "nobody"
    return (
        f"nobody, and {missing} of the quorum of {table['quorum']} are missing: planned again "
        "after the deadline; ask those who declined"
    )


def _round_line(table: dict[str, Any]) -> str:
    total = table["total"]
    if table["phase"] == "finished":
        return f"finished: {total} rounds; raise [rounds] total to go on"
    of = f" of {total}" if total else ""
    return f"round {table['round']}{of}: {table['phase']}"


def pause_line(table: dict[str, Any]) -> str:
    """Return whether rounds are paused, in a sentence."""
    pause = table["paused"]
    if pause is None:
        return "rounds open as soon as enough members are here"
    reason = f": {pause['reason']}" if pause["reason"] else ""
    return f"paused since {readable_time(pause['since'])} by {pause['who']}{reason}"


def _members(table: dict[str, Any]) -> Table | str:
    if not table["members"]:
        return "no members yet: `tapestry coordinator invite MEMBER`"
    shown = _table("member", "role", "status", "joined", "last seen", "missed", "tokens/s")
    for m in table["members"]:
        times = [readable_time(m[name]) for name in ("joined_at", "last_seen_at")]
        missed, speed = str(m["missed_rounds"] or "-"), m["tokens_per_second"]
        pace = f"{speed:,.0f}" if speed else "-"
        shown.add_row(_text(m["member_id"]), m["role"], m["status"], *times, missed, pace)
    return shown


def _exclusions(table: dict[str, Any]) -> Text:
    lines = []
    for row in table["exclusions"]:
        when = readable_time(row["at"])
        lines.append(f"{row['id']:>4}  round {row['round']}  {row['member_id']}  {when}")
        lines.append(f"      {row['kind']}: {row['reason']}")
        if row["answer"]:
            lines.append(f"      {row['member_id']} answers: {row['answer']}")
    return Text("\n".join(lines) or "nothing was left out")


def _invitations(table: dict[str, Any]) -> Table | str:
    if not table["invitations"]:
        return "no invitations yet: `tapestry coordinator invite MEMBER`"
    shown = _table("member", "role", "state", "made", "expires")
    for row in table["invitations"]:
        times = [readable_time(row[name]) for name in ("created_at", "expires_at")]
        shown.add_row(_text(row["member_id"]), row["role"], row["state"], *times)
    return shown


def _rounds(table: dict[str, Any]) -> Table | str:
    if not table["rounds"]:
        return "no round has opened yet"
    shown = _table("round", "", "opened", "seconds", "in", "bytes", "absent")
    for row in table["rounds"]:
        again = f", attempt {row['attempts']}" if row["attempts"] > 1 else ""
        out = {**row["absent"], **row["excluded"]}
        absent = [f"{m}: {reason}" for m, reason in sorted(out.items())]
        shown.add_row(
            str(row["round"]),
            f"{row['phase']}{again}",
            readable_time(row["opened_at"]),
            f"{row['seconds']:,.1f}",
            f"{len(row['contributions'])} of {len(row['cohort'])}",
            f"{row['bytes']:,}",
            _text("\n".join(absent) or "-"),
        )
    return shown


def _log(table: dict[str, Any]) -> Table | str:
    if not table["actions"]:
        return "no operator has done anything yet"
    shown = _table("when", "who", "what", "detail")
    for row in table["actions"]:
        shown.add_row(
            readable_time(row["at"]), _text(row["who"]), row["what"], _text(row["detail"])
        )
    return shown


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False)


def _text(text: str) -> Text:
    """Return text from outside, in which nothing is markup."""
    return Text(text)


_RENDERERS = {
    "status": _status,
    "members": _members,
    "invitations": _invitations,
    "rounds": _rounds,
    "exclusions": _exclusions,
    "log": _log,
}
