"""The audit: is the record whole, what left by round and by call, under which rules, who says so.

It reads files only, so that it gives the same result on a node's folder and on an exported report.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapestry.checkpoints.folder import read_envelope
from tapestry.checkpoints.statements import Contribution, Receipt, payload_digest
from tapestry.errors import UntrustedError
from tapestry.params.fragments import DIGEST_BYTES, fragments_root
from tapestry.wire.egress import BLOCKED, FIRST, Departure, ledger_head, read_ledger
from tapestry.wire.kernel import Seen, read_kernel
from tapestry.wire.messages import commit_digest
from tapestry_node.keeping import CONTRIBUTION_SUFFIX, read_policy

_DIGEST = re.compile("[0-9a-f]{64}")
_APPROVED = " approved by "
_PUT, _COMMIT = "/PutFragment", "/Commit"

CONNECTION_BYTES = 4096
"""Handshake, certificates and settings of a connection, at most; about 1,000 were measured."""
REQUEST_BYTES = 384
"""Headers and framing of a request, at most; later ones on a connection take a quarter of it."""
SENT_SHARE = 0.004
"""Twice what TLS records and HTTP/2 frames add: 31 bytes to 16 KiB."""
RECEIVED_SHARE = 0.0005
"""Window updates, of what is received; there is one for some MiB."""
HOUR_BYTES = 16_384
"""Pings of an idle line: 180 of 39 bytes in an hour, and answers to those of the other side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Where the files of an audit lie, and the keys that they are signed with."""

    ledger: Path
    kernel: Path
    policies: Path
    receipts: Path
    coordinator_key: bytes
    member_key: bytes


@dataclass(slots=True)
class _Sums:
    """What is added up while the ledger is read once."""

    requests: int = 0
    size: int = 0
    first: float = 0.0
    last: float = 0.0
    by_call: Counter[str] = field(default_factory=Counter)
    bytes_by_call: Counter[str] = field(default_factory=Counter)
    rounds: dict[int, dict[str, list[int]]] = field(default_factory=dict)
    to: dict[str, list[int]] = field(default_factory=dict)
    allowed: dict[str, list[int]] = field(default_factory=dict)
    approved_rounds: dict[str, set[int]] = field(default_factory=dict)
    blocked: list[dict[str, Any]] = field(default_factory=list)
    heads: dict[int, str] = field(default_factory=dict)
    """Head of the ledger when it had so many lines, where somebody asks."""
    fragments: dict[int, bytearray] = field(default_factory=dict)
    """Digests by round, one after the other, as they were sent."""
    commits: set[str] = field(default_factory=set)

    def add(self, one: Departure, *, wanted: set[int]) -> None:
        """Add a line."""
        if one.index in wanted:
            self.heads[one.index] = one.previous
        self.first = self.first or one.time
        self.last = one.time
        if one.call.startswith(BLOCKED):
            self.blocked.append(
                {"line": one.index + 1, "time": one.time, "call": one.call, "to": one.to}
            )
            return
        call = one.call.rsplit(".", 1)[-1]
        self.requests += 1
        self.size += one.bytes
        self.by_call[call] += 1
        self.bytes_by_call[call] += one.bytes
        _count(self.rounds.setdefault(one.round, {}), call, one.bytes)
        _count(self.to, one.to, one.bytes)
        _count(self.allowed, one.allowed_by, one.bytes)
        if _APPROVED in one.allowed_by:
            self.approved_rounds.setdefault(one.allowed_by, set()).add(one.round)
        if call.endswith(_PUT):
            self.fragments.setdefault(one.round, bytearray()).extend(bytes.fromhex(one.digest))
        elif call.endswith(_COMMIT):
            self.commits.add(one.digest)


def audit(
    evidence: Evidence,
    *,
    head: str | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[str, Any]:
    """Return what the files show; `problems` lists everything that should not be so.

    Args:
        evidence: What is looked at.
        head: A head of the ledger that an earlier audit printed.
        on_progress: Told how many bytes of the ledger were read, of how many.
    """
    problems: list[str] = []
    seen, kernel_problem = _read_kernel(evidence.kernel)
    sums, broken = _Sums(), ""
    wanted = {one.ledger_lines for one in seen}
    try:
        for departure in read_ledger(evidence.ledger, head=head, on_progress=on_progress):
            sums.add(departure, wanted=wanted)
    except UntrustedError as error:
        broken = str(error)
        problems.append(broken)
    last = FIRST if broken else ledger_head(evidence.ledger)
    lines = sums.requests + len(sums.blocked)
    sums.heads[lines] = last
    policies = _policies(evidence.policies, sums)
    kernel = _compared(seen, sums, kernel_problem, is_whole=not broken)
    receipts = list(_receipts(evidence, sums)) if not broken else []
    problems += [p["problem"] for p in policies.values() if p["problem"]]
    problems += [kernel["says"]] if kernel["is_problem"] else []
    problems += [r["problem"] for r in receipts if r["problem"]]
    return {
        "ledger": str(evidence.ledger),
        "chain": "broken" if broken else "whole",
        "broken_line": lines + 1 if broken and "no line has" not in broken else None,
        "head": last,
        "requests": sums.requests,
        "bytes": sums.size,
        "from": sums.first,
        "until": sums.last,
        "by_call": {
            c: {"requests": sums.by_call[c], "bytes": sums.bytes_by_call[c]}
            for c in sorted(sums.by_call)
        },
        "by_round": {
            str(number): {call: _pair(pair) for call, pair in sorted(calls.items())}
            for number, calls in sorted(sums.rounds.items())
        },
        "to": {to: _pair(pair) for to, pair in sorted(sums.to.items())},
        "blocked": sums.blocked,
        "policies": policies,
        "approvals": _approvals(sums),
        "kernel": kernel,
        "receipts": receipts,
        "problems": problems,
    }


def _count(table: dict[Any, list[int]], key: object, size: int) -> None:
    pair = table.setdefault(key, [0, 0])
    pair[0] += 1
    pair[1] += size


def _pair(pair: list[int]) -> dict[str, int]:
    return {"requests": pair[0], "bytes": pair[1]}


def _policies(folder: Path, sums: _Sums) -> dict[str, dict[str, Any]]:
    """Return what left by the digest of the policy that allowed it."""
    found: dict[str, dict[str, Any]] = {}
    for allowed_by, (requests, size) in sorted(sums.allowed.items()):
        digest = allowed_by.split(_APPROVED)[0]
        entry = found.setdefault(digest, {"requests": 0, "bytes": 0, "rules": None, "problem": ""})
        entry["requests"] += requests
        entry["bytes"] += size
    for digest, entry in found.items():
        path = folder / f"{digest}.toml"
        if _DIGEST.fullmatch(digest) and path.is_file():
            try:
                entry["rules"] = read_policy(path)
            except UntrustedError as error:
                entry["problem"] = str(error)
    return found


def _approvals(sums: _Sums) -> list[dict[str, Any]]:
    """Return which person let what leave."""
    return [
        {
            "by": allowed_by.split(_APPROVED, 1)[1],
            "policy": allowed_by.split(_APPROVED)[0],
            "rounds": sorted(rounds - {0}),
            **_pair(sums.allowed[allowed_by]),
        }
        for allowed_by, rounds in sorted(sums.approved_rounds.items())
    ]


# The kernel


def _read_kernel(path: Path) -> tuple[list[Seen], str]:
    found: list[Seen] = []
    try:
        found.extend(read_kernel(path))
    except FileNotFoundError:
        return [], ""
    except UntrustedError as error:
        return found, str(error)
    return found, ""


def allowance(one: Seen, *, seconds: float) -> int:
    """Return by how much the kernel's count may exceed the messages: TLS, HTTP/2, pings."""
    return int(
        CONNECTION_BYTES * one.connections
        + REQUEST_BYTES * one.requests
        + SENT_SHARE * one.messages
        + RECEIVED_SHARE * one.received
        + HOUR_BYTES * (seconds / 3600 + 0.25)
    )


def _compared(seen: list[Seen], sums: _Sums, problem: str, *, is_whole: bool) -> dict[str, Any]:
    """Compare what each process sent by the kernel's count with what it wrote into the ledger."""
    sessions: dict[str, list[Seen]] = {}
    for one in seen:
        sessions.setdefault(one.session, []).append(one)
    rows = [_session(lines) for lines in sessions.values()]
    cut = [o for o in seen if is_whole and sums.heads.get(o.ledger_lines) != o.ledger_head]
    more = [row for row in rows if row["finding"] == "more"]
    covered = sum(row["messages"] for row in rows if row["finding"] != "not available here")
    says, is_problem = "", True
    if problem:
        says = problem
    elif cut:
        says = (
            f"the ledger of {cut[0].ledger_lines:,} lines that the kernel's record names in its "
            f"line {cut[0].index + 1} is not this one: it was cut off or written anew"
        )
    elif more:
        says = (
            f"the kernel says that {more[0]['excess']:,} bytes more left than the ledger lists, "
            f"and TLS and HTTP/2 explain at most {more[0]['allowance']:,} (process "
            f"{more[0]['session']})"
        )
    else:
        is_problem, says = False, _kernel_words(rows, covered, sums.size)
    return {
        "says": says,
        "is_problem": is_problem,
        "covered_bytes": covered,
        "sessions": rows,
    }


def _kernel_words(rows: list[dict[str, Any]], covered: int, size: int) -> str:
    counted = [row for row in rows if row["finding"] != "not available here"]
    if not counted:
        return "not available here: no process of this node could ask its kernel"
    sent = sum(row["sent"] for row in counted)
    words = (
        f"the kernel says {sent:,} bytes left, for {covered:,} bytes of messages: within what TLS "
        "and HTTP/2 explain"
    )
    less = sum(-row["excess"] for row in counted if row["excess"] < 0)
    if less:
        words += f"; {less:,} bytes that the ledger lists had not left when it was last looked"
    if covered < size:
        words += f"; {size - covered:,} bytes of messages were sent while nobody counted"
    return words


def _session(lines: list[Seen]) -> dict[str, Any]:
    first, last = lines[0], lines[-1]
    allowed = allowance(last, seconds=last.time - first.time)
    excess = last.sent - last.messages
    finding = "more" if excess > allowed else "less" if excess < 0 else "agrees"
    if any(one.event == "unavailable" for one in lines):
        finding = "not available here"
    return {
        "session": last.session,
        "from": first.time,
        "until": last.time,
        "is_closed": last.event == "end",
        "connections": last.connections,
        "requests": last.requests,
        "messages": last.messages,
        "sent": last.sent,
        "received": last.received,
        "served": last.served,
        "sent_to": last.sent_to,
        "excess": excess,
        "allowance": allowed,
        "finding": finding,
    }


# Receipts


def _receipts(evidence: Evidence, sums: _Sums) -> Iterator[dict[str, Any]]:
    """Yield what each receipt shows about the ledger."""
    for path in sorted(evidence.receipts.glob("round-*.json")):
        if path.stem.endswith(CONTRIBUTION_SUFFIX):
            continue
        row = {"receipt": path.name, "round": 0, "shown": [], "not_shown": [], "problem": ""}
        try:
            _look_at(path, evidence, sums, row)
        except UntrustedError as error:
            row["problem"] = str(error)
        yield row


def _look_at(path: Path, evidence: Evidence, sums: _Sums, row: dict[str, Any]) -> None:
    what = f"receipt {path.name}"
    receipt = Receipt.opened(
        read_envelope(path, what=what), public_key=evidence.coordinator_key, what=what
    )
    row["round"], shown, missing = receipt.round, row["shown"], row["not_shown"]
    shown.append("signed by the coordinator")
    beside = path.with_name(f"{path.stem}{CONTRIBUTION_SUFFIX}.json")
    if not beside.is_file():
        missing.append("the contribution that it is for was not kept")
        return
    what = f"contribution {beside.name}"
    envelope = read_envelope(beside, what=what)
    made = Contribution.opened(envelope, public_key=evidence.member_key, what=what)
    if payload_digest(envelope) != receipt.contribution or made.root != receipt.root:
        raise UntrustedError(f"{what}: is not the one that {path.name} acknowledges")
    shown.append("for a contribution signed by this node")
    if commit_digest(envelope) in sums.commits:
        shown.append("whose commit is a line of the ledger")
    else:
        raise UntrustedError(
            f"{what}: no line of the ledger has it, though the coordinator received it"
        )
    sent = bytes(sums.fragments.get(made.round, b""))
    if _leads_to(sent, made.fragments, bytes.fromhex(made.root)):
        shown.append("whose fragments are lines of the ledger")
    else:
        missing.append("which of the round's fragments in the ledger are its own")


def _leads_to(joined: bytes, count: int, root: bytes) -> bool:
    """Whether digests that were sent are those under a root, resent and older ones aside."""
    digests = [joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)]
    once = list(dict.fromkeys(digests))
    candidates = (digests, once, digests[-count:], once[-count:])
    return any(len(c) == count and fragments_root(c) == root for c in candidates)
