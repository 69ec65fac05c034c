"""From a seed to a history: who takes part, what goes wrong and for how long, and the end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tapestry_coordinator.failpoints import observed
from tapestry_coordinator.settings import RoundsSettings
from tests.simulation.coordinator import Coordinator
from tests.simulation.history import History, Records
from tests.simulation.members import KINDS, Member
from tests.simulation.plants import ModelPlant, Plant, RealPlant
from tests.simulation.world import START, Faults, Network, World

ROUNDS = RoundsSettings(
    total=3, quorum=2, gather_seconds=10.0, grace_seconds=20.0, deadline_seconds=90.0
)
_NAMES = ("ar-unc", "eu-lib", "fr-bnf", "is-lbs", "uk-nlu")


@dataclass
class Run:
    """One federation through its troubles."""

    world: World
    faults: Faults
    plant: Plant
    coordinator: Coordinator
    members: list[Member]
    history: History
    troubles_seconds: float
    operations: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def play(self) -> History:
        """Let everything happen; return what it came to."""
        world, history = self.world, self.history
        with observed(self.coordinator.at_moment):
            self.coordinator.start()
            for member in self.members:
                world.after(world.between(0.0, 5.0), member.connect)
            for seconds, action in self.operations:
                world.after(seconds, action)
            world.run(until=self._is_over, limit=START + self.troubles_seconds)
            self._heal()
            limit = world.now + (history.target + 1) * history.slack_seconds
            world.run(until=self._is_over, limit=limit)
            history.ended_at = world.now
            world.run(until=lambda: False, limit=world.now + 120.0)  # answers under way
        return self._finished()

    def _is_over(self) -> bool:
        process = self.coordinator.process
        return process is not None and process.desk.state.number > self.history.target

    def _heal(self) -> None:
        self.faults.end()
        if not self._is_over():
            self.history.healed_at = self.world.now + 60.0  # everybody is back by then
        self.coordinator.start()

    def _finished(self) -> History:
        history = self.history
        history.records = Records.read(self.plant.database)
        history.logs.append(history.records.events)
        history.recomputed = self.plant.recomputed()
        if self.coordinator.process is not None:
            self.coordinator.process.store.close()
        return history


def troubled(seed: int, folder: Path | None = None) -> Run:
    """A federation in which much goes wrong; with a folder, over the product's own files."""
    world = World(seed)
    faults = Faults(
        drop=world.random.choice((0.0, 0.02, 0.15)),
        duplicate=world.random.choice((0.0, 0.1, 0.4)),
        slow=world.random.choice((0.0, 0.05, 0.2)),
        disconnect=world.random.choice((0.0, 0.02, 0.1)),
        crash=world.random.choice((0.0, 0.02, 0.1)),
        database=world.random.choice((0.0, 0.0, 0.1)),
        disk=world.random.choice((0.0, 0.0, 0.1)),
    )
    run = _run(world, faults, folder, repair_seconds=world.random.choice((0.0, 20.0, 200.0)))
    count = world.random.randint(2, len(_NAMES))
    kinds = ["honest", "honest", *world.random.choices(KINDS, k=count - 2)]
    for name, kind in zip(_NAMES, kinds, strict=False):
        pace = world.between(1.0, 40.0)
        if len(run.members) >= ROUNDS.quorum and world.chance(0.2):
            pace *= 4  # may miss every deadline, and nobody waits for it
        _join(run, name, kind, pace)
    _plan_operations(run)
    return run


def undisturbed(seed: int, folder: Path | None = None, *, crash: float = 0.0) -> Run:
    """Honest members for whom every round waits, whatever happens to the coordinator."""
    world = World(seed)
    faults = Faults(crash=crash, database=crash, drop=crash / 2)
    patient = ROUNDS.model_copy(
        update={"quorum": 3, "gather_seconds": 1e6, "grace_seconds": 1e6, "deadline_seconds": 1e6}
    )
    run = _run(world, faults, folder, repair_seconds=20.0, rounds=patient)
    run.troubles_seconds = 1e5
    for name in _NAMES[:3]:
        _join(run, name, "honest", 20.0)
    return run


def _run(
    world: World,
    faults: Faults,
    folder: Path | None,
    *,
    repair_seconds: float,
    rounds: RoundsSettings = ROUNDS,
) -> Run:
    plant: Plant = (
        ModelPlant(lambda: not world.chance(faults.disk)) if folder is None else RealPlant(folder)
    )
    genesis = plant.small.home.load_genesis()
    history = History(world.seed, genesis.coordinator_key, target=rounds.total)
    history.slack_seconds = rounds.gather_seconds + 2 * rounds.deadline_seconds + 60.0
    coordinator = Coordinator(world, faults, plant, rounds, history, repair_seconds=repair_seconds)
    return Run(world, faults, plant, coordinator, [], history, world.between(60.0, 400.0))


def _join(run: Run, name: str, kind: str, pace_seconds: float) -> None:
    network = Network(run.world, run.faults)
    run.members.append(Member(run.coordinator, network, name, kind=kind, pace_seconds=pace_seconds))


def _plan_operations(run: Run) -> None:
    """Crashes between events, nodes that die, members that are revoked and invited again."""
    world = run.world
    until = run.troubles_seconds

    def crash() -> None:
        run.coordinator.crashes["between"] = run.coordinator.crashes.get("between", 0) + 1
        run.coordinator.die()

    for _ in range(world.random.randint(0, 2)):
        run.operations.append((world.between(0.0, until), crash))
    for member in run.members:
        if member.kind == "forgetful" or world.chance(0.2):
            loses = world.chance(0.5)
            die = partial(member.crash, loses_spool=loses)
            run.operations.append((world.between(0.0, until), die))
        if len(run.members) > 2 and member is run.members[-1] and world.chance(0.4):
            at = world.between(0.0, until * 0.6)
            revoke = partial(run.plant.registry.revoke, member.member_id, now=at)
            run.operations.append((at, revoke))
            run.operations.append((at + world.between(1.0, until * 0.4), member.come_back))
