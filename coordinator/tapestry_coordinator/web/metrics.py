"""Numbers for Prometheus, and whether all is well for whoever watches over services."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tapestry.web.markup import lasting
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.web.board import Board
from tapestry_coordinator.web.story import FRESH_SECONDS, certificate_left


class Metrics(Collector):
    """The board's numbers, read when somebody asks."""

    def __init__(self, board: Board) -> None:
        """Of `board`."""
        self._board = board
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Return them in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        board, now = self._board, self._board.clock()
        healthy = GaugeMetricFamily("tapestry_up", "1 if the coordinator is alive and in order.")
        healthy.add_metric([], float(not problem_of(board)))
        yield healthy
        info = InfoMetricFamily("tapestry_federation", "Which federation this is.")
        info.add_metric([], {"name": board.federation, "identity": board.identity})
        yield info
        active = sum(member.status == "active" for member in board.history.members)
        yield _gauge("tapestry_members", "Members of the federation.", active)
        read = len(board.history.rounds) - 1
        yield _gauge("tapestry_history_rounds_read", "Rounds that the page has read.", read)
        newest = board.history.newest
        if newest is not None:
            yield _gauge("tapestry_checkpoint", "Newest checkpoint's round.", newest.number)
            age = now - newest.created_at
            yield _gauge("tapestry_checkpoint_age_seconds", "Since it was made.", age)
        if board.live is not None:
            yield from _live(dict(board.live), now)


def _live(live: dict[str, Any], now: float) -> Iterator[Metric]:
    yield _gauge("tapestry_heartbeat_age_seconds", "Of the coordinator.", now - live["time"])
    yield _gauge("tapestry_round", "The round that goes on or is waited for.", live["round"])
    phases = GaugeMetricFamily("tapestry_phase", "1 for the round's phase.", labels=["phase"])
    for phase in Phase:
        phases.add_metric([phase.value], float(live["phase"] == phase))
    yield phases
    members = live["members"].values()
    connected = sum(m["connected"] for m in members)
    yield _gauge("tapestry_members_connected", "Members that are here.", connected)
    yield _gauge("tapestry_cohort", "Members that the round asks.", len(live["cohort"]))
    yield _gauge("tapestry_contributions", "In the round so far.", len(live["arrived"]))
    yield _gauge("tapestry_declines", "In the round so far.", len(live["declined"]))
    left = GaugeMetricFamily(
        "tapestry_certificate_left_seconds",
        "Until the coordinator's certificate, or the federation's root, ends.",
        labels=["of"],
    )
    for name, ends in live.get("ends", {}).items():
        left.add_metric([name], ends - now)
    yield left
    speed = sum(m["tokens_per_second"] for m in members if m["state"] == "training")
    yield _gauge("tapestry_tokens_per_second", "Of all members that train.", speed)
    in_flight = live["uploads_in_flight"]
    yield _gauge("tapestry_uploads_in_flight", "Contributions that are arriving.", in_flight)
    if live["aggregation_seconds"] is not None:
        seconds = live["aggregation_seconds"]
        yield _gauge("tapestry_aggregation_seconds", "What the last aggregation took.", seconds)
    received = CounterMetricFamily(
        "tapestry_received_bytes", "Of contributions, since the coordinator started."
    )
    received.add_metric([], live["bytes_received"], created=live["started_at"])
    yield received
    refused = CounterMetricFamily(
        "tapestry_refused_calls", "Since the coordinator started.", labels=["status"]
    )
    for status, count in sorted(live["refused"].items()):
        refused.add_metric([status], count, created=live["started_at"])
    yield refused


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, about)
    gauge.add_metric([], float(value))
    return gauge


def problem_of(board: Board) -> str:
    """Return what is wrong, in a sentence; empty if nothing is."""
    if board.database_error:
        return f"the database does not answer: {board.database_error}"
    if board.live is None:
        return "the coordinator is not running"
    silence = board.clock() - board.live["time"]
    if silence > FRESH_SECONDS:
        return f"the coordinator has been silent for {silence:.0f} s"
    left = certificate_left(board.live, board.clock())
    if left is not None:
        return f"the coordinator's certificate ends in {lasting(left)}, and was not renewed"
    return ""


def health_of(board: Board) -> dict[str, Any]:
    """Return what /healthz tells."""
    problem = problem_of(board)
    live = board.live or {}
    return {
        "healthy": not problem,
        "reason": problem,
        "phase": live.get("phase"),
        "round": live.get("round"),
        "version": live.get("version"),
    }
