"""What the person at the terminal sees while the demonstration runs."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tapestry_coordinator.status import status_of
from tapestry_demo.federation import Institution, Processes, Scale, coordinator_home
from tapestry_demo.workers import Workers

_REFRESH_SECONDS = 0.5


def watch_rounds(
    console: Console,
    folder: Path,
    institutions: Sequence[Institution],
    scale: Scale,
    processes: Processes,
) -> None:
    """Show the rounds until every node is done.

    Raises:
        TapestryError: A process failed.
    """
    home = coordinator_home(folder)
    names = [institution.member_id for institution in institutions]
    told = -1
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not all(processes.is_done(name) for name in names):
            processes.require_alive("coordinator")
            status = status_of(home)
            rows = {i.member_id: _progress(i.home(folder)) for i in institutions}
            if console.is_terminal:
                live.update(_picture(status, rows, institutions, scale), refresh=True)
            elif status["newest_checkpoint"] != told and len(status["bits_per_byte"]) == len(names):
                told = status["newest_checkpoint"]
                console.print(_line(status, scale))
            time.sleep(_REFRESH_SECONDS)
    console.print(_line(status_of(home), scale))


def _picture(
    status: dict[str, Any],
    rows: dict[str, dict[str, Any]],
    institutions: Sequence[Institution],
    scale: Scale,
) -> Group:
    number = min(status["round"], scale.rounds)
    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("institution", "left"), ("does", "left"), ("step", "right"), ("loss", "right"),
        ("tokens/s", "right"), ("bytes sent", "right"), ("bits/byte", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for institution in institutions:
        row = rows[institution.member_id]
        measured = row.get("bits_per_byte") or {}
        newest = measured[max(measured, key=int)] if measured else None
        table.add_row(
            f"{institution.member_id} ({institution.language})",
            row.get("doing", "starting")[:36],
            f"{row.get('step', 0)}/{scale.inner_steps}",
            f"{row.get('loss', 0):.3f}",
            f"{row.get('tokens_per_second', 0):,.0f}",
            f"{row.get('bytes_sent', 0):,}",
            "" if newest is None else f"{newest:.3f}",
        )
    arrived = f"{len(status['arrived'])} of {len(institutions)} contributions are in"
    head = Text(f"round {number} of {scale.rounds}: {status['phase']}, {arrived}", style="bold")
    return Group(head, table)


def _line(status: dict[str, Any], scale: Scale) -> str:
    values = status["bits_per_byte"]
    measured = ", ".join(f"{member} {value:.3f}" for member, value in values.items())
    return f"checkpoint {status['newest_checkpoint']} of {scale.rounds}: bits per byte {measured}"


def _progress(home: Path) -> dict[str, Any]:
    """Return a node's `progress.json`, or nothing while there is none."""
    with suppress(OSError, ValueError):
        table: dict[str, Any] = json.loads((home / "progress.json").read_text(encoding="utf-8"))
        return table
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A process to run, and how to see how far it is."""

    name: str
    command: Sequence[str]
    steps: int = 0
    """Of all its progress files together."""
    progress: Sequence[tuple[Path, int]] = ()
    """Files that hold a step number, and what a step counts."""


def watch_jobs(
    console: Console, works: Sequence[Work], processes: Processes, workers: Workers
) -> None:
    """Run `works` two at a time and show how far they are.

    Raises:
        TapestryError: One failed.
    """
    waiting, active = list(works), list[str]()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("comparing", total=sum(work.steps for work in works))
        while waiting or active:
            while waiting and len(active) < 2:
                work = waiting.pop(0)
                processes.fork(work.name, workers, work.command)
                active.append(work.name)
            active = [name for name in active if not processes.is_done(name)]
            done = sum(_steps_done(f) * each for work in works for f, each in work.progress)
            progress.update(task, completed=done, description=f"comparing: {', '.join(active)}")
            time.sleep(_REFRESH_SECONDS / 2)


def _steps_done(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text(encoding="utf-8"))
    return 0
