"""What slow members cost in loss at equal time, by what the federation does about them.

Four nodes, each with one language of the demonstration, of which the slowest takes four times as
long for a round's inner steps as the fastest. They train one after the other in one process, but
under a virtual clock by which the coordinator's own state machine opens and closes rounds: only
computing takes time there, sending and aggregating none. After the same virtual time the loss of
the last published checkpoint is compared, in bits per byte of held-out text, averaged over nodes.

    python benchmarks/late_members.py
    python benchmarks/late_members.py --seeds 3 --time 40

| variant | a round closes | who is late |
|---|---|---|
| wait | when everybody has contributed | nobody is |
| drop | with the third contribution | its work is lost, it begins anew from the newest |
| late | with the third contribution | its work is used in the next round, discounted |
| paced | when everybody has contributed | nobody is: fewer inner steps for the slow (T9) |
| asynchronous | with every second arrival | everybody is; delayed Nesterov |

Shapes: P parameters of the vector.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

from codec_loss import Coordinator, Encoded, Federation, Node
from running import save

from tapestry.aggregation.weights import staleness_discount
from tapestry.checkpoints.policy import AggregationPolicy, LatenessPolicy, PacePolicy
from tapestry.errors import RejectedError, UnavailableError
from tapestry.objectives.training import choose_threads
from tapestry.params.codecs import Float32Array, codec_named
from tapestry.params.modules import from_model, layout_of, to_model
from tapestry_coordinator.events import Arrived, Published, RoundRules, Tick
from tapestry_coordinator.pace import paced, steps_for
from tapestry_coordinator.round_state import Effect, Phase, RoundState
from tapestry_coordinator.rounds import staleness_of, tick

PACES = (1.0, 1.5, 2.5, 4.0)
"""Virtual time that each node takes for a round's inner steps."""
_DEADLINE = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What the federation does about slow members."""

    quorum: int
    lateness: LatenessPolicy = field(default_factory=LatenessPolicy)
    pace: PacePolicy = field(default_factory=PacePolicy)
    optimizer: str = "nesterov"

    @property
    def aggregation(self) -> AggregationPolicy:
        """As the federation's policy would have it."""
        return AggregationPolicy.model_validate({"optimizer": self.optimizer})


VARIANTS = {
    "wait": Variant(quorum=4),
    "drop": Variant(quorum=3),
    "late": Variant(quorum=3, lateness=LatenessPolicy(max_staleness=2)),
    "paced": Variant(quorum=4, pace=PacePolicy(round_seconds=2.0, min_steps=1)),
    "asynchronous": Variant(
        quorum=2,
        lateness=LatenessPolicy(max_staleness=4),
        pace=PacePolicy(mode="asynchronous", buffer=2),
        optimizer="delayed-nesterov",
    ),
}


def main() -> None:
    """Train with every variant and seed, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0")
    parser.add_argument("--time", type=float, default=20.0, help="a fast node's round takes 1")
    parser.add_argument("--steps", type=int, default=8, help="inner steps of a node in a round")
    parser.add_argument("--sequences", type=int, default=4, help="in a batch, of 128 tokens each")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the inner steps")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    args = parser.parse_args()
    inner = {key: getattr(args, key) for key in ("steps", "sequences", "learning_rate")}
    done: dict[tuple[str, int], Run] = {}
    spawning = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.processes, mp_context=spawning) as processes,
    ):
        federation = Federation.prepared(Path(folder), inner)
        waiting = {
            processes.submit(run, federation, VARIANTS[name], until=args.time, seed=seed): (
                name,
                seed,
            )
            for seed in range(args.seeds)
            for name in args.variants
        }
        for future in as_completed(waiting):
            name, seed = waiting[future]
            done[name, seed] = one = future.result()
            print(
                f"seed {seed}, {name:<13} {one.mean_bits_per_byte:.4f} bits per byte, "
                f"{one.rounds} rounds, {one.seconds:.0f} s",
                flush=True,
            )
    runs = {name: [done[name, seed] for seed in range(args.seeds)] for name in args.variants}
    report(runs, {"seeds": args.seeds, "time": args.time, **inner})


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One federation from genesis to the end of its time."""

    bits_per_byte: dict[str, float]
    """Of the last checkpoint on each node's held-out text, by member id."""
    rounds: int
    contributions: dict[str, int]
    """Used, by member id."""
    late: int
    lost: int
    """Finished and used by no round, or begun and given up."""
    seconds: float

    @property
    def mean_bits_per_byte(self) -> float:
        """Over the nodes."""
        return statistics.mean(self.bits_per_byte.values())


@dataclass(slots=True)
class Work:
    """What a node computes now, or holds in its hands."""

    answers: int
    """The round whose plan it answers."""
    base: Float32Array
    """The vector that it starts from."""
    steps: int
    done_at: float
    sent: Encoded | None = None
    """Once it has finished."""


@dataclass(slots=True)
class Simulated:
    """Rounds under a virtual clock."""

    federation: Federation
    variant: Variant
    nodes: Mapping[str, Node]
    paces: Mapping[str, float]
    coordinator: Coordinator
    now: float = 0.0
    state: RoundState = field(default_factory=lambda: RoundState(number=1))
    working: dict[str, Work] = field(default_factory=dict)
    taken: dict[str, Encoded] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    contributions: dict[str, int] = field(default_factory=dict)
    position: int = 0
    late: int = 0
    lost: int = 0

    def run(self, until: float) -> None:
        """Go on until no node finishes before `until`."""
        self._tick()
        while True:
            member = min(self.working, key=lambda m: (self.working[m].done_at, m), default="")
            if not member or self.working[member].done_at > until:
                return
            self.now = max(self.now, self.working[member].done_at)
            self._finish(member)

    def _tick(self) -> None:
        """Let the coordinator look; hand its plan to whoever has nothing to do."""
        members = tuple(sorted(self.nodes))
        rules = RoundRules(
            quorum=self.variant.quorum,
            gather_seconds=0.0,
            grace_seconds=0.0,
            deadline_seconds=_DEADLINE,
            total=0,
        )
        rules = paced(rules, self.variant.pace, active=len(members))
        event = Tick(ready=members, enrolled=len(members), rules=rules)
        self.state, _effects = tick(self.state, event, now=self.now)
        for member in members:
            if member not in self.working and self._may_begin(member):
                self._begin(member)

    def _may_begin(self, member: str) -> bool:
        state = self.state
        if state.phase is not Phase.OPEN:
            return False
        if member not in state.arrived:
            return True
        return self.variant.pace.mode == "asynchronous" and member in state.late

    def _begin(self, member: str) -> None:
        steps = self.federation.inner.steps
        speeds = {name: steps / pace for name, pace in self.paces.items()}
        own = steps_for(speeds, self.variant.pace, step_tokens=1).get(member, steps)
        self.working[member] = Work(
            answers=self.state.number,
            base=self.coordinator.held_P.copy(),
            steps=own,
            done_at=self.now + self.paces[member] * own / steps,
        )

    def _finish(self, member: str) -> None:
        """Hand a node's work in, or keep it for the next round, or lose it."""
        work = self.working[member]
        most = self.variant.lateness.max_staleness
        try:
            staleness = staleness_of(self.state, member, answers=work.answers, most=most)
        except UnavailableError:
            work.done_at = self.now + 1e-3
            return
        except RejectedError:
            self.lost += 1
            del self.working[member]
            self._tick()
            return
        work.sent = self.nodes[member].train(work.base, codec_named("int8"), steps=work.steps)
        tokens = self.federation.inner.tokens // self.federation.inner.steps * work.steps
        arrived = Arrived(
            member_id=member,
            digest=f"{self.state.number}",
            tokens=tokens,
            staleness=staleness,
        )
        del self.working[member]
        self.taken[member], self.tokens[member] = work.sent, tokens
        self.contributions[member] = self.contributions.get(member, 0) + 1
        self.late += staleness > 0
        self.state, effects = tick(self.state, arrived, now=self.now)
        if Effect.AGGREGATE in effects:
            self._aggregate()
        self._tick()

    def _aggregate(self) -> None:
        discount = self.variant.lateness.discount
        discounts = {
            m: staleness_discount(s, discount=discount) for m, s in self.state.late.items()
        }
        period = 1
        if self.variant.pace.mode == "asynchronous":
            period = -(-len(self.nodes) // len(self.taken))
        optimizer = self.variant.aggregation.outer_optimizer(
            len(self.taken) * period, period=period, position=self.position % period + 1
        )
        self.position += 1
        self.coordinator.step(
            self.taken, tokens=self.tokens, discounts=discounts, optimizer=optimizer
        )
        self.taken, self.tokens = {}, {}
        self.state, _effects = tick(self.state, Published(manifest=""), now=self.now)
        self._give_up()

    def _give_up(self) -> None:
        """Let nodes whose work no round would take any more begin anew, as the daemon does."""
        for member, work in list(self.working.items()):
            if self.state.number - work.answers > self.variant.lateness.max_staleness:
                del self.working[member]
                self.lost += 1


def run(federation: Federation, variant: Variant, *, until: float, seed: int) -> Run:
    """Train from a genesis of `seed` for the virtual time `until`."""
    began = time.perf_counter()
    create = {"size": "tiny", "tokenizer": federation.folder / "tokenizer.json"}
    module = federation.objective.create(create, seed=seed).module
    layout = layout_of(module)
    choose_threads(layout.elements)
    with tempfile.TemporaryDirectory(dir=federation.folder) as folder:
        members = sorted(federation.corpora)
        simulated = Simulated(
            federation=federation,
            variant=variant,
            nodes={m: Node(federation, m, layout, Path(folder), seed=seed) for m in members},
            # Which language is slow changes with the seed: it is not the language that is compared.
            paces={m: PACES[(k + seed) % len(PACES)] for k, m in enumerate(members)},
            coordinator=Coordinator(variant.aggregation, layout, from_model(module, layout)),
        )
        simulated.run(until)
    to_model(simulated.coordinator.held_P, module, layout)
    evaluate = federation.objective.evaluate
    return Run(
        bits_per_byte={m: evaluate(module, c).bits_per_byte for m, c in federation.corpora.items()},
        rounds=simulated.state.number - 1,
        contributions=simulated.contributions,
        late=simulated.late,
        lost=simulated.lost,
        seconds=time.perf_counter() - began,
    )


def report(runs: Mapping[str, Sequence[Run]], settings: Mapping[str, float]) -> None:
    """Print and save a table, each variant beside the first one."""
    first = next(iter(runs))
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"\npaces {', '.join(map(str, PACES))}; {told}; differences to {first} in percent")
    print(f"{'variant':<14}{'bits/byte':>10}{'mean':>8}  {'by seed':<18}{'rounds':>7}{'used':>6}"
          f"{'late':>6}{'lost':>6}")  # fmt: skip
    rows = {}
    for name, of_variant in runs.items():
        bits = statistics.mean(run.mean_bits_per_byte for run in of_variant)
        differences = [
            100 * (run.mean_bits_per_byte / plain.mean_bits_per_byte - 1)
            for run, plain in zip(of_variant, runs[first], strict=True)
        ]
        mean = statistics.mean(differences)
        rows[name] = {
            "bits_per_byte": bits,
            "difference_percent": mean,
            "differences_percent": differences,
            "runs": [asdict(run) for run in of_variant],
        }
        by_seed = " ".join(f"{difference:+.2f}" for difference in differences)
        last = of_variant[0]
        used = sum(last.contributions.values())
        print(f"{name:<14}{bits:>10.4f}{mean:>+8.2f}  {by_seed:<18}{last.rounds:>7}{used:>6}"
              f"{last.late:>6}{last.lost:>6}")  # fmt: skip
    save("late_members", {**settings, "paces": PACES, "beside": first, "variants": rows})


if __name__ == "__main__":
    main()
