"""From a seed to a history: who takes part, what goes wrong and for how long, and the end."""

from dataclasses import dataclass
from pathlib import Path

from tapestry_coordinator.failpoints import observed
from tests.simulation.coordinator import Coordinator
from tests.simulation.history import History
from tests.simulation.members import KINDS, Member
from tests.simulation.once import cheaply
from tests.simulation.operating import Operating
from tests.simulation.plants import ModelPlant, Plant, RealPlant
from tests.simulation.terms import ROUNDS, Tables, Terms, drawn
from tests.simulation.world import START, Faults, Network, World

_NAMES = ("ar-unc", "eu-lib", "fr-bnf", "is-lbs", "uk-nlu")


@dataclass
class Run:
    """One federation through its troubles."""

    world: World
    faults: Faults
    plant: Plant
    coordinator: Coordinator
    operating: Operating
    members: list[Member]
    history: History
    terms: Terms
    troubles_seconds: float
    is_troubled: bool = False

    def play(self) -> History:
        """Let everything happen; return what it came to."""
        world, history = self.world, self.history
        with observed(self.coordinator.at_moment), cheaply():
            self.coordinator.start()
            for member in self.members:
                world.after(world.between(0.0, 5.0), member.connect)
            if self.is_troubled:
                later = self.terms.later_policy(self.plant.founders)
                self.operating.plan(self.members, later, until=self.troubles_seconds)
                self.operating.look()
            world.run(until=self._is_over, limit=START + self.troubles_seconds)
            self._heal()
            limit = world.now + (history.target + 1) * history.slack_seconds
            world.run(until=self._is_over, limit=limit)
            history.ended_at = self.coordinator.steady()
            world.run(until=lambda: False, limit=world.now + 120.0)  # answers under way
        return self._finished()

    def _is_over(self) -> bool:
        process = self.coordinator.process
        return process is not None and process.desk.state.number > self.history.target

    def _heal(self) -> None:
        self.faults.end()
        self.operating.resume()
        self.coordinator.start()
        if not self._is_over():
            self.history.healed_at = self.coordinator.steady() + 60.0  # everybody is back by then

    def _finished(self) -> History:
        history = self.history
        history.records = self.plant.registry.records()
        history.logs.append(history.records.events)
        history.ledgers.append(history.records.ledger)
        history.recomputed = self.plant.recomputed()
        if self.coordinator.process is not None:
            self.coordinator.process.store.close()
        return history


def troubled(seed: int, folder: Path | None = None, *, has_database: bool = False) -> Run:
    """A federation in which much goes wrong.

    Args:
        seed: Of everything.
        folder: For the product's own files and database; None models them.
        has_database: Whether the database is the product's in any case.
    """
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
    repair_seconds = world.random.choice((0.0, 20.0, 200.0))
    terms = drawn(world)
    plant = _plant(world, faults, folder, terms, has_database=has_database)
    run = _run(world, faults, plant, terms, repair_seconds=repair_seconds)
    run.is_troubled = True
    count = world.random.randint(2, len(_NAMES))
    kinds = ["honest", "honest", *world.random.choices(KINDS, k=count - 2)]
    for name, kind in zip(_NAMES, kinds, strict=False):
        pace = world.between(1.0, 40.0)
        if len(run.members) >= ROUNDS.quorum and world.chance(0.2):
            pace *= 4  # may miss every deadline, and nobody waits for it
        _join(run, name, kind, pace)
    return run


def undisturbed(
    seed: int, folder: Path | None = None, *, crash: float = 0.0, tables: Tables | None = None
) -> Run:
    """Honest members for whom every round waits, whatever happens to the coordinator."""
    world = World(seed)
    faults = Faults(crash=crash, database=crash, drop=crash / 2)
    patient = ROUNDS.model_copy(
        update={"quorum": 3, "gather_seconds": 1e6, "grace_seconds": 1e6, "deadline_seconds": 1e6}
    )
    terms = Terms(
        rounds=patient,
        tables=tables or {},
        is_measured=tables is not None,
        fails_over=tables is not None,
    )
    plant = _plant(world, faults, folder, terms)
    run = _run(world, faults, plant, terms, repair_seconds=20.0)
    run.troubles_seconds = 1e5
    for name in _NAMES[:3]:
        _join(run, name, "honest", 20.0)
    return run


def _plant(
    world: World, faults: Faults, folder: Path | None, terms: Terms, *, has_database: bool = False
) -> Plant:
    if folder is not None:
        return RealPlant(terms, folder)
    return ModelPlant(terms, lambda: not world.chance(faults.disk), has_database=has_database)


def _run(world: World, faults: Faults, plant: Plant, terms: Terms, *, repair_seconds: float) -> Run:
    genesis = plant.small.home.load_genesis()
    history = History(world.seed, genesis.coordinator_key, target=terms.rounds.total)
    history.slack_seconds = terms.slack_seconds
    history.adopted.append((world.now, terms.policy(plant.founders).digest))
    coordinator = Coordinator(world, faults, plant, terms, history, repair_seconds=repair_seconds)
    troubles_seconds = world.between(60.0, 400.0)
    operating = Operating(coordinator)
    return Run(world, faults, plant, coordinator, operating, [], history, terms, troubles_seconds)


def _join(run: Run, name: str, kind: str, pace_seconds: float) -> None:
    network = Network(run.world, run.faults)
    # Of those who measure some never say so; the gate then waits for them in vain.
    measures = run.terms.is_measured and (not run.is_troubled or run.world.chance(0.8))
    run.members.append(
        Member(
            run.coordinator,
            network,
            name,
            kind=kind,
            pace_seconds=pace_seconds,
            measures=measures,
        )
    )
