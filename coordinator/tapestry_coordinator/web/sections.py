"""The page's sections as HTML: what happens now, languages, checkpoints, members, the record."""

from collections.abc import Mapping, Sequence
from typing import Any

from tapestry.web.markup import (
    Markup,
    ago,
    count,
    in_bytes,
    joined,
    moment,
    of,
    said,
    table,
    tag,
)
from tapestry.web.parts import chip
from tapestry_coordinator.web.history import History, MemberRow, Note, RoundSummary, Totals
from tapestry_coordinator.web.measured import Language
from tapestry_coordinator.web.verifying import Outcome

CHECKPOINTS_SHOWN = 10
NOTES_SHOWN = 100

_ORDER = ("training", "uploading", "waiting", "contributed", "declined", "absent", "unknown")
_TONES = {"contributed": "good", "training": "busy", "uploading": "busy", "declined": "warn"}


def tiles(
    live: Mapping[str, Any] | None, history: History, means: Mapping[int, float]
) -> list[tuple[str, str, str]]:
    """The numbers that tell most."""
    active = sum(member.status == "active" for member in history.members)
    newest = history.newest
    connected, speed, received = _sums(live)
    return [
        ("Connected", f"{connected} of {active}", "members"),
        ("Training speed", speed, "tokens a second, all together"),
        ("Received", received, "in this round"),
        (
            "Checkpoint",
            "\u2013" if newest is None else str(newest.number),
            _quality(means, history.gain()),
        ),
    ]


def _sums(live: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Return connected members, tokens a second and bytes; dashes while nobody knows."""
    if live is None:
        return "\u2013", "\u2013", "\u2013"
    members = live["members"].values()
    speed = sum(m["tokens_per_second"] for m in members if m["state"] == "training")
    received = sum(m["bytes_round"] for m in members)
    return str(sum(m["connected"] for m in members)), count(speed), in_bytes(received)


def _quality(means: Mapping[int, float], gain: float | None) -> str:
    """The newest measurement in words."""
    if not means:
        return "not measured yet"
    text = f"{means[max(means)]:.3f} bits per byte"
    if gain is not None:
        text += f", {abs(gain):.3f} {'better' if gain >= 0 else 'worse'} than before"
    return text


def live_members(live: Mapping[str, Any] | None, known: Sequence[MemberRow], now: float) -> Markup:
    """What each member does now."""
    doing: Mapping[str, Any] = {} if live is None else live["members"]
    lost = {"state": "unknown" if live is None else "absent"}
    active = {m.member_id for m in known if m.status == "active"}
    shown = {name: doing.get(name, lost) for name in active | set(doing)}
    if not shown:
        return tag("p", "Nobody yet.", class_="empty")
    seen = {m.member_id: m.last_seen_at for m in known}
    rows = [
        _live_row(name, member, max(seen.get(name, 0.0), member.get("last_seen", 0.0)), now)
        for name, member in sorted(shown.items(), key=lambda item: (_rank(item[1]), item[0]))
    ]
    columns = ("Member", "State", "Steps", "Loss", "Tokens/s", "Received", "Last heard")
    return table("What each member does now", columns, rows, kind="live")


def _live_row(name: str, member: Mapping[str, Any], heard: float, now: float) -> Sequence[str]:
    state = member["state"]
    return (
        name,
        chip(state, _TONES.get(state, "idle")),
        _progress(member),
        "" if member.get("loss") is None else f"{member['loss']:.3f}",
        count(member["tokens_per_second"]) if member.get("tokens_per_second") else "",
        in_bytes(member["bytes_round"]) if member.get("bytes_round") else "",
        "here" if member.get("connected") else (ago(now - heard) if heard else "never"),
    )


def _rank(member: Mapping[str, Any]) -> int:
    state = member["state"]
    return _ORDER.index(state) if state in _ORDER else len(_ORDER)


def _progress(member: Mapping[str, Any]) -> str:
    if not member.get("steps"):
        return ""
    step, steps = str(member["step"]), str(member["steps"])
    bar = tag("progress", max=steps, value=step, aria_label=f"step {step} of {steps}")
    return joined([bar, tag("span", f"{step} / {steps}", class_="number")])


def languages(found: Sequence[Language]) -> Markup:
    """Where each language stands, and since when it came how far."""
    if not found:
        text = "Members measure each checkpoint on their own held-out text; nobody has yet."
        return tag("p", text, class_="empty")
    rows = []
    for one in sorted(found, key=lambda language: language.name):
        rounds = sorted(one.by_round)
        now, first = one.by_round[rounds[-1]], one.by_round[rounds[0]]
        step = one.by_round[rounds[-2]] - now if len(rounds) > 1 else 0.0
        rows.append(
            (
                said(one.name or "unnamed"),
                str(one.members),
                f"{now:.4f}",
                _change(step),
                _change(first - now),
                str(rounds[-1]),
            )
        )
    columns = (
        "Language", "Members", "Bits per byte", "Last step", "Since the first", "Checkpoint",
    )  # fmt: skip
    return table("Bits per byte by language; lower is better", columns, rows)


def _change(gain: float) -> Markup:
    if abs(gain) < 0.00005:
        return tag("span", "0", class_="muted")
    word = "better" if gain > 0 else "worse"
    return tag("span", f"{abs(gain):.4f} {word}", class_="good" if gain > 0 else "bad")


def checkpoint_row(
    summary: RoundSummary, *, bits: float | None, outcome: Outcome | None, is_kept: bool, now: float
) -> Sequence[str]:
    """One checkpoint of the list."""
    link = tag("span", "not kept", class_="muted")
    if is_kept:
        link = tag(
            "a", "Download", href=f"/checkpoints/{summary.number}.tar", download="",
            aria_label=f"Download checkpoint {summary.number}",
        )  # fmt: skip
    return (
        "0 (genesis)" if summary.number == 0 else str(summary.number),
        moment(summary.created_at),
        _digest(summary.digest),
        _digest(summary.parent) if summary.parent else "",
        "" if bits is None else f"{bits:.4f}",
        str(len(summary.weights)) if summary.weights else "",
        in_bytes(summary.size_bytes),
        _verification(outcome, is_kept=is_kept, now=now),
        link,
    )


CHECKPOINT_COLUMNS = (
    "Checkpoint", "Published (UTC)", "Digest", "Made from", "Bits per byte", "Members", "Size",
    "Verification", "Files",
)  # fmt: skip


def _digest(digest: str) -> Markup:
    return tag("code", digest[:12], title=digest)


def _verification(outcome: Outcome | None, *, is_kept: bool, now: float) -> Markup:
    if outcome is None:
        return tag("span", "not verified yet" if is_kept else "", class_="muted")
    if outcome.error:
        return joined([chip("damaged", "bad"), tag("span", outcome.error, class_="reason")])
    return joined([chip("verified", "good"), tag("span", ago(now - outcome.at), class_="muted")])


def members(
    known: Sequence[MemberRow], totals: Totals, spoken: Mapping[str, str], *, now: float
) -> Markup:
    """Who belongs to the federation, and what each gave."""
    if not known:
        return tag("p", "Nobody yet.", class_="empty")
    rows = [
        (
            member.member_id,
            chip(member.status, "good" if member.status == "active" else "idle"),
            said(spoken.get(member.member_id, "")),
            str(totals.parts[member.member_id]),
            _share(totals.weights[member.member_id], totals.parts[member.member_id]),
            moment(member.joined_at),
            ago(now - member.last_seen_at),
        )
        for member in known
    ]
    columns = (
        "Member", "Membership", "Language", "Rounds", "Mean influence", "Joined (UTC)",
        "Last heard",
    )  # fmt: skip
    return table("Members of the federation", columns, rows)


def _share(total: float, rounds: int) -> str:
    return f"{100 * total / rounds:.1f} %" if rounds else ""


def record(notes: Sequence[Note], declined: Mapping[str, str], number: int | None) -> Markup:
    """Who was left out, stayed away or disagreed, and why; newest first."""
    rows: list[Sequence[str]] = [
        (str(number), "now", member_id, chip("declined", "warn"), said(reason))
        for member_id, reason in sorted(declined.items())
    ]
    tones = {"excluded": "bad", "dissent": "warn"}
    rows += [
        (
            str(note.round),
            moment(note.at),
            note.member_id,
            chip(note.kind, tones.get(note.kind, "idle")),
            said(note.reason),
        )
        for note in notes[:NOTES_SHOWN]
    ]
    if not rows:
        text = "Nobody was left out, stayed away or disagreed so far."
        return tag("p", text, class_="empty")
    columns = ("Round", "When (UTC)", "Member", "What", "Why")
    shown = table("Exclusions, absences and dissent", columns, rows, kind="record")
    if len(notes) <= NOTES_SHOWN:
        return shown
    more = f"The newest {NOTES_SHOWN} of {of(len(notes), 'entry', 'entries')}; manifests have all."
    return joined([shown, tag("p", more, class_="muted")])
