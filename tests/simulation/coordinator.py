"""A coordinator's process as the simulator runs it: the real desk, registry and services.

It dies at the product's own failpoints, and a new one takes up from what the plant holds.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from tapestry.checkpoints.manifest import Manifest
from tapestry.errors import TapestryError, UnavailableError
from tapestry.v1 import rounds_pb2, transfer_pb2
from tapestry.wire.bulk import PutFragment
from tapestry.wire.statuses import errors_from_status
from tapestry_coordinator import failpoints
from tapestry_coordinator.announcing import Announcement
from tapestry_coordinator.callers import identify
from tapestry_coordinator.clock import SteadyClock
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.exclusions import record_weightless
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.rounds import folded
from tapestry_coordinator.rounds_service import RoundsService
from tapestry_coordinator.transfer_service import TransferService
from tests.simulation.calls import Context, Stream
from tests.simulation.history import History, Outage
from tests.simulation.plants import Plant
from tests.simulation.terms import Terms
from tests.simulation.world import Faults, World

_RETRY_SECONDS = 15.0
_TICK_SECONDS = 4.0

T = TypeVar("T")


class CrashError(BaseException):
    """The process is gone."""


class Process:
    """One life of the coordinator."""

    def __init__(self, plant: Plant, terms: Terms, world: World) -> None:
        self.plant = plant
        plant.registry.forget()
        self.store = plant.store()
        plant.recover(self.store)
        self._make_up()
        home = plant.small.home
        settings = home.load_settings().model_copy(update={"rounds": terms.rounds})
        self.clock = SteadyClock(
            world.calendar, world.clock, not_before=plant.registry.newest_event_at()
        )
        self.desk = Desk(
            home,
            settings,
            plant.registry,
            plant.small.key,
            clock=self.clock,
            calendar=world.calendar,
        )
        layout = plant.small.layout
        self.transfer: Any = TransferService(self.desk, self.store, layout)  # type: ignore[abstract]
        self.rounds = RoundsService(self.desk, cast("Any", None))
        self.streams: list[Stream] = []
        self.unsettled: int | None = None

    def _make_up(self) -> None:
        """Have the candidate that members measure, as `CoordinatorServer` does."""
        registry = self.plant.registry
        newest = registry.newest_round() or 0
        self.note_weightless(registry.lineage()[newest].payload)
        state = folded(newest + 1, registry.round_events(newest + 1))
        is_undecided = state.phase in (Phase.MEASURING, Phase.HELD)
        if is_undecided and registry.ruling(state.number) is None:
            self.plant.propose(ClosedRound.recorded(registry, state), self.store)

    def note_weightless(self, manifest: bytes) -> None:
        """Put on record who had no weight."""
        record_weightless(self.plant.registry, Manifest.parsed(manifest, what="manifest"))


class Coordinator:
    """Processes of one federation, one after the other."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        plant: Plant,
        terms: Terms,
        history: History,
        *,
        repair_seconds: float,
    ) -> None:
        self.world, self.faults, self.plant, self.history = world, faults, plant, history
        self._terms = terms
        self._repair_seconds = repair_seconds
        self._streams = 0
        self._down_since = world.now
        self._is_aggregating = False
        self._ticks = 0
        self.crashes: dict[str, int] = {}
        """How many by moment."""
        self.process: Process | None = None

    # Lives

    def start(self) -> None:
        """Start a process; it may die before it serves."""
        if self.process is not None:
            return
        try:
            process = Process(self.plant, self._terms, self.world)
        except CrashError:
            self.world.after(self._repair(), self.start)
            return
        except TapestryError as error:  # such as the database: whoever supervises starts it again
            self._note_outage(str(error), _RETRY_SECONDS)
            self.world.after(_RETRY_SECONDS, self.start)
            return
        self.history.outages.append(Outage(self._down_since, process.clock(), "down"))
        self.history.lives.append(len(self.history.moments))
        self.process = process
        self._is_aggregating = False
        self._tick(process)

    def at_moment(self, moment: str) -> None:
        """Die, or be refused by the database, at one of the product's failpoints."""
        if moment == "event-uncommitted" and self.world.chance(self.faults.database):
            raise UnavailableError("the coordinator's database cannot be used now: disk I/O error")
        if self.world.chance(self.faults.crash):
            self.crashes[moment] = self.crashes.get(moment, 0) + 1
            raise CrashError(moment)
        if moment == "event-uncommitted":
            self.history.moments.append(self.world.now)

    def steady(self) -> float:
        """The time by which rounds go; while nobody is there, when that was seen last."""
        return self._down_since if self.process is None else self.process.clock()

    def die(self) -> None:
        """End the process that runs, between two events or in one."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.store.close()
        self._down_since = process.clock()
        if self._terms.fails_over:
            self.plant.fail_over()
        self.history.logs.append(self.plant.registry.event_rows())
        self.history.ledgers.append(self.plant.registry.ledger_rows())
        for stream in process.streams:
            self.world.after(self.world.between(0.0, 5.0), stream.broken)
        self.world.after(self._repair(), self.start)

    def _repair(self) -> float:
        return self.world.between(0.0, self._repair_seconds) if self._repair_seconds else 0.0

    def do(self, action: Callable[[Process], T]) -> T:
        """Let the process do something for a caller.

        Raises:
            TapestryError: It refuses, or nobody answers.
        """
        if self.process is None:
            raise UnavailableError("nobody answers")
        try:
            return action(self.process)
        except CrashError as error:
            self.die()
            raise UnavailableError("the line broke") from error
        finally:
            self.push()

    # Its own threads

    def _tick(self, process: Process) -> None:
        """Let time go by, as `CoordinatorServer` does."""
        if process is not self.process:
            return
        seconds = _TICK_SECONDS
        self._ticks += 1
        is_due = self._ticks % 2 == 0
        try:
            self.do(lambda p: p.desk.pass_time(look=is_due))
        except TapestryError as error:
            seconds = _RETRY_SECONDS
            self._note_outage(str(error), seconds)
        self._aggregate_if_closed()
        self.world.after(seconds, lambda: self._tick(process))

    def _aggregate_if_closed(self) -> None:
        process = self.process
        if process is None or self._is_aggregating:
            return
        if process.desk.state.phase in (Phase.AGGREGATING, Phase.RELEASING):
            self._is_aggregating = True
            self.world.after(self.world.between(0.1, 3.0), lambda: self._aggregate(process))

    def _aggregate(self, process: Process) -> None:
        """Publish the closed round, in the order of `CoordinatorServer._aggregate`."""
        if process is not self.process:
            return
        try:
            self.do(self._publish)
        except TapestryError as error:
            if process is self.process:
                self._note_outage(str(error), _RETRY_SECONDS)
                self.world.after(_RETRY_SECONDS, lambda: self._aggregate(process))
        else:
            self._is_aggregating = False

    def _publish(self, process: Process) -> None:
        if process.unsettled is not None:
            self._settle(process)
        state = process.desk.state
        failpoints.reach("round-closed")
        closed = ClosedRound.recorded(self.plant.registry, state)
        gate = closed.policy.no_harm
        if state.phase is Phase.AGGREGATING and gate.action != "publish":
            process.desk.propose(self.plant.propose(closed, process.store), gate)
            return
        envelope = self.plant.publish(closed, process.store)
        if closed.reverted:
            self.plant.registry.forget_evaluations(state.number)
        process.desk.publish(envelope)
        failpoints.reach("checkpoint-recorded")
        process.note_weightless(envelope.payload)
        process.unsettled = state.number
        self.world.after(self.world.between(0.0, 10.0), lambda: self._settle_later(process))

    def _settle_later(self, process: Process) -> None:
        if process is self.process and process.unsettled is not None:
            try:
                self.do(self._settle)
            except TapestryError:
                return  # died

    def _settle(self, process: Process) -> None:
        number, process.unsettled = process.unsettled, None
        self.plant.settle(number or 0, process.store)

    def _note_outage(self, cause: str, seconds: float) -> None:
        now = self.steady()
        self.history.outages.append(Outage(now, now + seconds, cause))

    # Streams

    def watch(
        self, member_id: str, certificate: bytes, hear: Any, broken: Callable[[], None]
    ) -> Stream:
        """Open a member's stream.

        Raises:
            TapestryError: Nobody answers, or it is no member.
        """

        def perform(process: Process) -> Stream:
            identify(cast("Any", Context(certificate)), process.desk)
            self._streams += 1
            stream = Stream(self._streams, member_id, certificate, hear, broken)
            stream.is_newest = stream.present.enter_context(process.desk.present(member_id))
            process.streams.append(stream)
            return stream

        return self.do(perform)

    def push(self) -> None:
        """Send what changed to all who listen, each message after the one before."""
        process = self.process
        if process is None:
            return
        for stream in list(process.streams):
            if not stream.is_newest():
                self.hang_up(stream)
                continue
            try:
                told = process.desk.announcement(
                    stream.member_id, after=stream.version, timeout_seconds=0
                )
                if told is not None:
                    identify(cast("Any", Context(stream.certificate)), process.desk)
            except TapestryError:
                self.hang_up(stream)
                continue
            if told is None:
                continue
            stream.version = told.version
            if self.world.chance(self.faults.disconnect):
                self.hang_up(stream)
                continue
            self._send(stream, told)
        self._aggregate_if_closed()

    def _send(self, stream: Stream, told: Announcement) -> None:
        slow = self.world.chance(self.faults.slow)
        at = self.world.now + self.world.between(0.001, 20.0 if slow else 0.2)
        stream.arrives_at = max(at, stream.arrives_at + 0.001)
        self.world.after(
            stream.arrives_at - self.world.now, lambda: stream.hear(stream.number, told)
        )

    def hang_up(self, stream: Stream) -> None:
        """Break a stream; both sides notice, the member later."""
        process = self.process
        if process is not None and stream in process.streams:
            process.streams.remove(stream)
            stream.present.close()
        self.world.after(self.world.between(0.0, 5.0), stream.broken)

    # Calls

    def open_upload(self, certificate: bytes, request: transfer_pb2.OpenUploadRequest) -> Any:
        return self._call(lambda p, c: p.transfer.OpenUpload(request, c), certificate)

    def put(self, certificate: bytes, request: PutFragment) -> Any:
        return self._call(lambda p, c: p.transfer.put_fragment(iter([request]), c), certificate)

    def commit(self, certificate: bytes, request: transfer_pb2.CommitRequest) -> Any:
        return self._call(lambda p, c: p.transfer.Commit(request, c), certificate)

    def decline(self, certificate: bytes, request: rounds_pb2.DeclineRequest) -> Any:
        return self._call(lambda p, c: p.rounds.Decline(request, c), certificate)

    def evaluate(self, certificate: bytes, request: rounds_pb2.SubmitEvaluationRequest) -> Any:
        return self._call(lambda p, c: p.rounds.SubmitEvaluation(request, c), certificate)

    def _call(self, method: Callable[[Process, Any], Any], certificate: bytes) -> Any:
        with errors_from_status("the coordinator"):
            return self.do(lambda process: method(process, Context(certificate)))
