"""The local page's sections as HTML."""

from collections.abc import Sequence

from tapestry.web.markup import Markup, count, in_bytes, joined, moment, of, said, table, tag
from tapestry.web.parts import card, chip, hero
from tapestry_node.approving import facts
from tapestry_node.departed import Left
from tapestry_node.overview import Overview, PastRound
from tapestry_node.progress import in_words, lasting
from tapestry_node.screen import remark

_DASH = "\u2013"


def top(seen: Overview) -> Markup:
    """The sentence, and the numbers that tell most."""
    now = seen.now
    is_training = seen.is_running and now.doing == "training"
    score = now.bits_per_byte.get(str(seen.state.round))
    quality = "not measured yet" if score is None else f"{score:.4f} bits per byte"
    newest = _DASH if seen.state.round < 0 else str(seen.state.round)
    speed = count(now.tokens_per_second) if is_training else _DASH
    loss = f"{now.loss:.3f}" if is_training else _DASH
    left = f"{in_bytes(seen.left.bytes)} in all"
    tiles = [
        ("Loss", loss, f"step {now.step} of {now.steps}" if is_training else "not training"),
        ("Speed", speed, "tokens a second"),
        ("Checkpoint", newest, quality),
        ("Left today", in_bytes(seen.left.today_bytes), left),
    ]
    return hero(_tone(seen), _title(seen), _line(seen), tiles)


def _tone(seen: Overview) -> str:
    if seen.damaged or (seen.process is None and seen.now.failure):
        return "bad"
    if not seen.is_running or seen.now.silent_since or seen.waiting:
        return "warn"
    return "busy" if seen.now.doing == "training" or seen.now.of else "good"


def _title(seen: Overview) -> str:
    if not seen.is_running:
        return f"{seen.activity[0].upper()}{seen.activity[1:]}"
    words = in_words(seen.now)
    if seen.now.doing == "training":
        words = f"Round {seen.now.round}: step {seen.now.step} of {seen.now.steps}"
    return f"{words[:1].upper()}{words[1:]}"


def _line(seen: Overview) -> str:
    now = seen.now
    if not seen.is_running:
        return seen.membership.address
    if now.silent_since:
        return f"{seen.membership.address} is silent for {lasting(seen.time - now.silent_since)}"
    words = f"Connected to {seen.membership.address}" if now.connected_since else "Connecting"
    if now.doing == "training" and now.seconds_left:
        words += f"; about {lasting(now.seconds_left)} of this round's training are left"
    return words


def to_do(seen: Overview) -> Markup:
    """What somebody should do."""
    if not seen.to_do:
        return Markup()
    rows = [tag("li", one) for one in seen.to_do]
    return card("todo", "To do", tag("ul", *rows))


def approval(seen: Overview) -> Markup:
    """What waits for a person; approving it stays on the command line."""
    if not seen.waiting:
        return Markup()
    shown = []
    for one in seen.waiting:
        rows = [(name, said(words)) for name, words in facts(one)]
        shown.append(table(f"Round {one['round']}: what would leave", ("What", "Value"), rows))
    note = f"Nothing of it has left. Decide with `tapestry node approve {seen.folder}`."
    return card("approval", "Waits for approval", joined(shown), note=note)


def rounds(past: Sequence[PastRound]) -> Markup:
    """The newest rounds."""
    if not past:
        return tag("p", "No checkpoint has come yet.", class_="empty")
    rows = [
        (
            str(one.round),
            f"{one.weight:.3f}" if one.took_part else "",
            count(one.tokens) if one.took_part else "",
            "" if one.bits_per_byte is None else f"{one.bits_per_byte:.4f}",
            chip("receipt", "good") if one.has_receipt else Markup(),
            said(remark(one)) if remark(one) else Markup(),
        )
        for one in past
    ]
    columns = ("Checkpoint", "Weight", "Tokens", "Bits per byte", "Acknowledged", "Remark")
    return table("The newest rounds", columns, rows, kind="record")


def left(seen: Left) -> Markup:
    """What left by call, today and in all."""
    if seen.chain == "empty":
        return tag("p", "Nothing has left this node yet.", class_="empty")
    rows = []
    for call, pair in seen.by_call.items():
        today = seen.today.get(call, {"requests": 0, "bytes": 0})
        rows.append(
            (
                said(call),
                count(today["requests"]),
                in_bytes(today["bytes"]),
                count(pair["requests"]),
                in_bytes(pair["bytes"]),
            )
        )
    columns = ("Call", "Requests today", "Bytes today", "Requests in all", "Bytes in all")
    state = chip("chain whole", "good")
    if seen.chain == "broken":
        state = joined([chip("chain broken", "bad"), said(f" {seen.problem}")])
    blocked = f"; stopped: {of(seen.blocked, 'attempt')} of the trainer to reach a network"
    return joined(
        [
            tag(
                "p",
                state,
                f" {count(seen.requests)} requests; head ",
                tag("code", seen.head, class_="digest"),
                blocked if seen.blocked else "",
                class_="note",
            ),
            table("What left by call; days are UTC", columns, rows),
        ]
    )


def ledger(seen: Left) -> Markup:
    """The newest lines."""
    if not seen.newest:
        return tag("p", "It is empty.", class_="empty")
    rows = [
        (
            str(one.index + 1),
            moment(one.time),
            said(one.call.rsplit(".v1.", 1)[-1]),
            said(one.to),
            str(one.round) if one.round else "",
            tag("span", f"{one.bytes:,}", class_="number"),
            tag("code", one.digest[:16], title=one.digest),
        )
        for one in seen.newest
    ]
    columns = ("Line", "Time (UTC)", "Call", "To", "Round", "Bytes", "Digest")
    return table("The ledger's newest lines", columns, rows)


def policy(seen: Overview) -> Markup:
    """What this node refuses, whatever is planned."""
    if seen.policy is None:
        return tag("p", "It cannot be read.", class_="empty")
    rows = [(name, _value(value)) for name, value in seen.policy.rules.items()]
    changed = ". node.toml has been changed since: that holds from the node's next start on."
    digest = tag(
        "p",
        "Digest ",
        tag("code", seen.policy.digest, class_="digest"),
        changed if seen.policy.is_changed else "",
        class_="note",
    )
    return joined([digest, table("The policy", ("Setting", "Value"), rows)])


def machine(seen: Overview) -> Markup:
    """Process, certificate, disk."""
    now = seen.now
    ends_in = seen.certificate_until - seen.time
    rows: list[tuple[str, str]] = [
        ("Folder", said(seen.folder)),
        ("Process", str(seen.process) if seen.process else "none"),
        ("Running for", lasting(seen.time - now.running_since) if seen.is_running else _DASH),
        (
            "Connected for",
            lasting(seen.time - now.connected_since)
            if seen.is_running and now.connected_since
            else _DASH,
        ),
        (
            "Certificate",
            tag(
                "span",
                "until ",
                moment(seen.certificate_until),
                f", in {lasting(ends_in)}" if ends_in > 0 else ", which is past",
            ),
        ),
        ("Disk", f"{in_bytes(seen.disk_free_bytes)} free"),
        ("Model", in_bytes(seen.model_bytes) if seen.model_bytes else "none here yet"),
        ("Trainer", said(f"not shut off: {now.trainer}") if now.trainer else _shut_off(seen)),
    ]
    return table("The machine", ("What", "Value"), rows)


def _shut_off(seen: Overview) -> str:
    return "shut off from network and keys" if seen.is_running else _DASH


def _value(value: object) -> Markup:
    """Return a value of a table as text."""
    if isinstance(value, dict):
        return said(", ".join(f"{name} {part}" for name, part in value.items()) or "none")
    if isinstance(value, list | tuple):
        return said(", ".join(map(str, value)) or "none")
    if isinstance(value, bool):
        return said("yes" if value else "no")
    return said(f"{value:,}" if isinstance(value, int) else str(value))
