"""One coordinator process: two listening ports, a clock, and an aggregator."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.errors import TapestryError, UnavailableError, UntrustedError
from tapestry.identity.envelopes import Envelope
from tapestry.storage.atomic import giving_up
from tapestry.wire.allocation import return_free_blocks, spare_what_is_there
from tapestry_coordinator import failpoints
from tapestry_coordinator.card import write_card
from tapestry_coordinator.clock import SteadyClock
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.crowd import Crowd, allow_files
from tapestry_coordinator.database import database_url
from tapestry_coordinator.desk import Desk
from tapestry_coordinator.exclusions import record_weightless
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.leases import Lease
from tapestry_coordinator.ledger_files import make_up_ledger_files, write_ledger_files
from tapestry_coordinator.listening import Listening
from tapestry_coordinator.live import LiveFile
from tapestry_coordinator.mirroring import Mirror, blobs_of
from tapestry_coordinator.places import Places
from tapestry_coordinator.publisher import Publisher
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.rounds import folded
from tapestry_coordinator.settling import Settling
from tapestry_coordinator.uploads import FragmentStore

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.2
_LOOK_SECONDS = 1.0
"""How often to look at what operators have written into the database."""
_RETRY_SECONDS = 15.0
_CARD_SECONDS = 3.0
_PROOF_SECONDS = 1.0


class CoordinatorServer:
    """The running coordinator of one folder."""

    def __init__(
        self,
        home: CoordinatorHome,
        *,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the edge that owns the clock
    ) -> None:
        """Open the registry and take up the state; nothing listens yet.

        Args:
            home: No other process may be in there: the caller holds its lock.
            lease: Held by the caller, where several coordinators share a database.
            clock: Unix seconds; rounds go by the seconds that pass, whatever it jumps to.

        Raises:
            ConfigError: The database is damaged, or another one.
            UnavailableError: The newest checkpoint is damaged and cannot be made again, or the
                database or the store of blobs does not answer now.
        """
        self.home = home
        self.settings = home.load_settings()
        self._clock = clock
        self._key = home.load_signing_key()
        self._authority = home.load_authority()
        self._lease = lease
        self._registry = Registry(database_url(home))
        if lease is not None:
            self._registry.fence(lease.require)
        self._registry.require_sound()
        blobs = blobs_of(home)
        mirror = self._mirror = None if blobs is None else Mirror(home, blobs)
        if mirror is not None:
            mirror.bring_founding(self._registry.lineage(0)[0])
        self._layout = open_vector_file(home.checkpoint(0) / MODEL_FILE).layout
        self._store = FragmentStore(home.contributions, self._layout, blobs=blobs)
        self._publisher = Publisher(home=home, key=self._key, store=self._store)
        self._settling = Settling(home, self._registry, self._publisher, mirror)
        if lease is not None or mirror is not None:
            self._settling.take_up()
        self._settling.recover()
        self._make_up()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="settle")
        self._unsettled: tuple[int, Future[None]] | None = None
        steady = SteadyClock(clock, time.monotonic, not_before=self._registry.newest_event_at())
        self.desk = Desk(
            home, self.settings, self._registry, self._key, clock=steady, calendar=clock
        )
        make_up_ledger_files(home, self._registry, self.desk.genesis)
        self._places = Places()
        self._crowd = Crowd()
        self._is_asked = False
        """Whether to stop; no lock is in it, which the thread that a signal interrupts may hold."""
        self._stopping = threading.Event()
        self._listening = Listening(
            home, self.desk, self._store, self._layout, self._places, clock=clock
        )

    def _make_up(self) -> None:
        """Make sure of what the last process may have left undone after a round was recorded.

        That is the record of contributions without weight, and the candidate that members measure.
        """
        newest = self._registry.newest_round() or 0
        manifest = self._registry.manifest(newest)
        if manifest is not None:
            record_weightless(self._registry, Manifest.parsed(manifest.payload, what="manifest"))
        number = newest + 1
        state = folded(number, self._registry.round_events(number))
        is_undecided = state.phase in (Phase.MEASURING, Phase.HELD)
        if is_undecided and self._registry.ruling(number) is None:
            self._publisher.propose(ClosedRound.recorded(self._registry, state))

    def serve(self) -> None:
        """Listen and run rounds until SIGINT or SIGTERM, or until the lease is lost.

        Raises:
            ConfigError: A port is in use.
        """
        spare_what_is_there()
        allow_files()
        if self._lease is None:  # first: who sees it listen may ask it to stop
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)
        self._listening.start()
        if self._mirror is not None:
            self._settle(self._registry.newest_round() or 0)
        aggregator = threading.Thread(target=self._aggregate_forever, name="aggregator")
        aggregator.start()
        network = self.settings.network
        _log.info("members: %s, enrolment: %s", network.listen, network.enrolment_listen)
        try:
            looked = float("-inf")
            with LiveFile(self.home.live, self._live_table):
                while not (self._is_asked or self._is_superseded()):
                    time.sleep(_TICK_SECONDS)
                    self._places.end_stalled()
                    now = time.monotonic()
                    self._crowd.look(now)
                    self._listening.renew_if_due()
                    is_due = now - looked >= _LOOK_SECONDS
                    looked = now if is_due else looked
                    self._pass_time(look=is_due)
        finally:
            self._stopping.set()
            self._listening.stop()
            aggregator.join()
            self._leave_proofs()
            self._listening.wait()  # whoever is in the middle of a call needs store and registry
            self._threads.shutdown()
            self._store.close()
            self._registry.close()
            _log.info("stopped")

    def _live_table(self) -> dict[str, Any]:
        listening = self._listening
        return self.desk.live.table(
            self.desk.state,
            here=self.desk.here(),
            rules=self.settings.rounds.rules(),
            refused=self._places.refused,
            paused=self.desk.pause_reason,
            now=self._clock(),
            ends={"certificate": listening.certificate_ends, "root": listening.root_ends},
        )

    def _pass_time(self, *, look: bool) -> None:
        """Let time go by; whatever fails is tried again at the next tick."""
        try:
            self.desk.pass_time(look=look)
        except (TapestryError, OSError) as error:
            self._rest_after(error)

    def _rest_after(self, error: Exception) -> None:
        """Say what went wrong and wait a while."""
        if not self._is_superseded():
            _log.error("%s; tried again in %.0f s", error, _RETRY_SECONDS)
        for _second in range(int(_RETRY_SECONDS)):
            if self._is_superseded() or self._is_asked or self._stopping.wait(1.0):
                return

    def _is_superseded(self) -> bool:
        """Whether another coordinator leads."""
        return self._lease is not None and self._lease.is_lost

    def stop(self) -> None:
        """Ask `serve` to return; from any thread, and from a signal's handler."""
        self._is_asked = True

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stop()

    # Aggregation and cards, in one thread

    def _aggregate_forever(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.desk.wait_until_closed(timeout_seconds=_TICK_SECONDS):
                    self._aggregate()
                self._renew_cards()
                self._prove(older_than_seconds=_PROOF_SECONDS)
            except (TapestryError, OSError) as error:
                self._rest_after(error)
            except Exception:  # noqa: BLE001 - logged whole; the federation goes on
                _log.exception("a bug; tried again in %.0f s", _RETRY_SECONDS)
                self._stopping.wait(_RETRY_SECONDS)

    def _aggregate(self) -> None:
        self._wait_until_settled()
        state = self.desk.state
        failpoints.reach("round-closed")
        return_free_blocks()  # of the uploads
        closed = ClosedRound.recorded(self._registry, state)
        gate = closed.policy.no_harm
        if state.phase is Phase.AGGREGATING and gate.action != "publish":
            self.desk.propose(self._publisher.propose(closed), gate)
            return
        self._settling.begin(state.number)
        began = time.monotonic()
        envelope = self._publisher.publish(closed)
        self.desk.live.aggregation_seconds = time.monotonic() - began
        if closed.reverted:
            self._registry.forget_evaluations(state.number)
        self._record(envelope)
        return_free_blocks()
        try:
            self._prove(older_than_seconds=0.0)
        finally:
            self._settle(state.number)
        self._pass_time(look=False)  # the next round need not wait for a tick

    def _record(self, envelope: Envelope) -> None:
        """Publish a checkpoint; go on until the database has it, or another coordinator leads."""
        while True:
            try:
                self.desk.publish(envelope)
                failpoints.reach("checkpoint-recorded")
                manifest = Manifest.parsed(envelope.payload, what="manifest")
                return record_weightless(self._registry, manifest)
            except UnavailableError as error:
                if self._stopping.is_set() or self._is_superseded():
                    raise
                self._rest_after(error)

    def _settle(self, number: int) -> None:
        """Make a checkpoint durable while the next round runs; then drop what is kept no more."""

        def settle() -> None:
            if number > 0:
                self._settling.finish(number)
            self._settling.share(number)
            self._prune(number)

        self._unsettled = (number, self._threads.submit(settle))

    def _wait_until_settled(self) -> None:
        """Wait for the checkpoint before; if that failed, begin once more and say so."""
        if self._unsettled is not None:
            number, future = self._unsettled
            try:
                future.result()
            except Exception:
                self._settle(number)
                raise

    def _prune(self, number: int) -> None:
        keep, policy = self.settings.keep, self.desk.policy.policy
        first = policy.archive.first_round(number)
        self._store.prune(before=first - policy.lateness.max_staleness)
        if keep.checkpoints:
            past = [self.home.checkpoint(n) for n in range(1, number - keep.checkpoints + 1)]
            past = [folder for folder in past if folder.is_dir()]
            self.home.spare_models.retire(folder / MODEL_FILE for folder in past[-1:])
            for folder in past:
                with giving_up(folder):
                    failpoints.reach("checkpoint-retired")
        first_state = policy.archive.first_state(number)
        oldest_state = self.home.outer_state(first_state)
        states = sorted(oldest_state.parent.glob("round-*.f32"))
        past_states = [path for path in states if path.name < oldest_state.name]
        self.home.spare_states.retire(past_states[-1:])
        for path in past_states[:-1]:
            path.unlink()
        if self._mirror is not None:
            self._mirror.prune(
                checkpoints_before=number - keep.checkpoints + 1 if keep.checkpoints else 0,
                states_before=first_state,
            )

    def _leave_proofs(self) -> None:
        """Write the proofs that are due soon, before nobody is there to write them."""
        if self._is_superseded():
            return
        try:
            self._prove(older_than_seconds=0.0)
        except (TapestryError, OSError) as error:
            _log.warning("%s; the proof is renewed at the next start", error)

    def _prove(self, *, older_than_seconds: float) -> None:
        """Write proofs into checkpoints that were published or cosigned since, and the mirror."""

        def write(number: int) -> None:
            with _unless_retired(self.home.checkpoint(number)):
                write_ledger_files(self.home, self._registry, self.desk.genesis, number)

        self.desk.proofs.renew(write, before=self.desk.clock() - older_than_seconds)

    def _renew_cards(self) -> None:
        """Rewrite the cards of checkpoints that were measured since, a few seconds later."""

        def write(number: int) -> None:
            folder = self.home.checkpoint(number)
            if self.home.candidate(number).is_dir():  # it may be held for long: once it is released
                self.desk.cards.note(number, at=self.desk.clock())
                return
            with _unless_retired(folder):
                write_card(
                    folder,
                    self._registry.lineage(number),
                    self._registry.evaluations(),
                    self._key,
                    notes=self.home.notes(number),
                )
                self.desk.files.index(number)

        self.desk.cards.renew(write, before=self.desk.clock() - _CARD_SECONDS)


@contextmanager
def _unless_retired(folder: Path) -> Iterator[None]:
    """Write into a checkpoint, unless another thread retires it before or meanwhile."""
    try:
        yield
    except (OSError, UntrustedError):
        if folder.is_dir():
            raise
