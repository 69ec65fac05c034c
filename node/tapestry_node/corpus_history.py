"""`corpus/history.jsonl`: which sources took part in which round, and which were forgotten.

A line for each contribution, written before it is spooled, and one for each source that was
forgotten. Each line holds the SHA-256 of the line before, so that a change of the past shows.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tapestry.data.usage import RoundUse
from tapestry.errors import UntrustedError

HISTORY_FILE = "history.jsonl"
_BEGIN = "0" * 64


def record_contribution(folder: Path, *, round_number: int, root: str, use: RoundUse) -> None:
    """Note what a contribution was trained on, durably.

    Args:
        folder: The node's folder `corpus`.
        round_number: Of the plan that it answers.
        root: Of the contribution's fragments, which its signed statement and receipt name.
        use: What of the text was trained on.
    """
    _append(folder, {"event": "contributed", "round": round_number, "root": root, **asdict(use)})


def record_forgotten(folder: Path, *, source: str, rounds: list[int]) -> None:
    """Note that a source was forgotten, and the rounds in which it had taken part."""
    _append(folder, {"event": "forgotten", "source": source, "rounds": rounds})


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the lines, the oldest first.

    Raises:
        UntrustedError: A line was changed, taken out, or put in; the message names it.
    """
    return [entry for entry, _line in _verified(folder / HISTORY_FILE)]


def forgotten(history: list[dict[str, Any]]) -> dict[str, str]:
    """Return the sources that were forgotten, each with the day."""
    return {
        str(entry["source"]): str(entry["time"])[:10]
        for entry in history
        if entry["event"] == "forgotten"
    }


def rounds_of(history: list[dict[str, Any]], source: str) -> list[int]:
    """Return the rounds in which a source took part."""
    return sorted(
        {
            int(entry["round"])
            for entry in history
            if entry["event"] == "contributed"
            and any(one["name"] == source for one in entry["sources"])
        }
    )


def made_of(history: list[dict[str, Any]], root: str) -> list[dict[str, Any]]:
    """Return the sources of the contribution whose fragments have this root; none: unknown."""
    sources: list[dict[str, Any]] = next(
        (one["sources"] for one in reversed(history) if one.get("root") == root), []
    )
    return sources


def _append(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / HISTORY_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # a crash may have left half a line
        before = _digest(whole[:-1].rsplit(b"\n", 1)[-1]) if whole else _BEGIN
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = json.dumps({"previous": before, "time": now, **entry}, ensure_ascii=False)
        file.seek(len(whole))
        file.truncate()
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _verified(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    previous = _BEGIN
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(line)
            is_next = entry["previous"] == previous
        except (ValueError, TypeError, KeyError):
            is_next, entry = False, {}
        if not is_next:
            raise UntrustedError(
                f"{path}:{number}: does not follow from the line before: one of the two was "
                "changed, or a line is missing; compare with a backup"
            )
        yield entry, line
        previous = _digest(line)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
