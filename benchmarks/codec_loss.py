"""What the codecs cost in loss: one small federation, trained again with each of them.

Four nodes, each with one language of the demonstration, train one after the other in one process:
the product's inner steps, encoding, rule and outer step, without a network; as many such runs at a
time as there are cores, each with the one thread that is fastest here. A seed is that of the
initial weights and of the data order, so that runs of one seed differ in nothing but the codecs,
and each is compared with float32 of its own seed. The loss is in bits per byte of held-out text,
of the last published checkpoint, averaged over the nodes.

    python benchmarks/codec_loss.py
    python benchmarks/codec_loss.py --variants float32-sgd topk --rounds 60 --steps 2

A variant is the codec of the uploads, and after a plus sign how checkpoints go down, float32 where
nothing is said. "nudged" is float32 with every initial weight moved to the next larger float32:
what that changes is chance, and no smaller difference of a codec means anything. The inner learning
rate is a third of what the size suggests. It was chosen after runs at the suggested one, where
chance was worth up to 5 % in one seed and int4 cost 4 % in another that chance did not move: what
comes out here says nothing about an unstable federation (docs/lab-log.md).

topk is left out unless it is asked for. It goes with another outer optimizer and many rounds of few
steps; only float32-sgd, with the same, is a fair measure of it.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from running import save

from tapestry.aggregation.contributions import WeightedContribution
from tapestry.aggregation.outer import OuterOptimizer
from tapestry.aggregation.pipeline import decide, in_memory, outer_step
from tapestry.aggregation.weights import clip_factors, default_cap, token_weights
from tapestry.checkpoints.policy import AggregationPolicy
from tapestry.checkpoints.statements import InnerSettings
from tapestry.objectives.objective import Objective, objective_named
from tapestry.objectives.training import InnerOptimizer, choose_threads, train
from tapestry.params.codecs import Codec, Float32Array, codec_named
from tapestry.params.deltas import norm, pseudo_gradient, squared_norm
from tapestry.params.downlink import DOWNLINK_CODECS, encode_step
from tapestry.params.layout import ParameterLayout
from tapestry.params.modules import fragment_of, from_model, layout_of, to_model
from tapestry_coordinator.founding import inner_for
from tapestry_coordinator.settings import SharedSettings
from tapestry_demo.texts import POOL_FOLDER, write_texts
from tapestry_node.residual import accept_residual, fragment_encoder

VARIANTS = {
    "float32": AggregationPolicy(codec="float32"),
    "nudged": AggregationPolicy(codec="float32"),
    "bfloat16": AggregationPolicy(codec="bfloat16"),
    "int8": AggregationPolicy(codec="int8"),
    "int4": AggregationPolicy(codec="int4"),
    "int8+bfloat16": AggregationPolicy(codec="int8", downlink="bfloat16"),
    "int8+delta-int8": AggregationPolicy(codec="int8", downlink="delta-int8"),
    "int4+delta-int4": AggregationPolicy(codec="int4", downlink="delta-int4"),
}
SPARSE = {
    "float32-sgd": AggregationPolicy(codec="float32", optimizer="sgd", learning_rate=1.0),
    "topk": AggregationPolicy(codec="topk", optimizer="sgd", learning_rate=1.0),
}
ALLOWED_PERCENT = 0.3
"""What int4 may cost."""

_BYTES_PER_LANGUAGE = 1_000_000
_POOL_FRACTION = 0.1
_HELD_OUT_BYTES = 32_768


def main() -> None:
    """Train with every variant and seed, print, save."""
    known = VARIANTS | SPARSE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=list(known), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="inner steps of a node in a round")
    parser.add_argument("--sequences", type=int, default=4, help="in a batch, of 128 tokens each")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the inner steps")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inner = {key: getattr(args, key) for key in ("steps", "sequences", "learning_rate")}
        federation = Federation.prepared(Path(folder), inner)
        runs = run_all(federation, {name: known[name] for name in args.variants}, args)
    report(runs, {"seeds": args.seeds, "rounds": args.rounds, **inner})


def run_all(
    federation: "Federation", variants: Mapping[str, AggregationPolicy], args: argparse.Namespace
) -> "dict[str, list[Run]]":
    """Return the runs of each variant by seed; say it when one ends."""
    done = {}
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=spawning) as processes:
        waiting = {
            processes.submit(
                federation.run, settings, rounds=args.rounds, seed=seed, nudged=name == "nudged"
            ): (name, seed)
            for seed in range(args.seeds)
            for name, settings in variants.items()
        }
        for future in as_completed(waiting):
            name, seed = waiting[future]
            done[name, seed] = run = future.result()
            told = f"{run.mean_bits_per_byte:.4f} bits per byte, {run.seconds:.0f} s"
            print(f"seed {seed}, {name:<16} {told}", flush=True)
    return {name: [done[name, seed] for seed in range(args.seeds)] for name in variants}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One federation from genesis to its last checkpoint."""

    bits_per_byte: dict[str, float]
    """Of the last checkpoint on each node's held-out text, by member id."""
    losses: list[float]
    """Of the inner steps, nats per token, by round."""
    up_bytes: int
    """What one node sends in a round."""
    down_bytes: int
    """What one node fetches in a round."""
    seconds: float

    @property
    def mean_bits_per_byte(self) -> float:
        """Over the nodes."""
        return statistics.mean(self.bits_per_byte.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A contribution as it travels."""

    fragments: list[bytes]
    norm: float
    """Of what it decodes to."""
    loss: float
    """Mean over the inner steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Federation:
    """What all runs have in common: texts, tokenizer, inner settings."""

    objective: Objective
    folder: Path
    inner: InnerSettings
    corpora: Mapping[str, Any]
    """By member id."""
    pool: Any

    @classmethod
    def prepared(cls, folder: Path, changes: Mapping[str, Any]) -> "Federation":
        """Write the texts into `folder`, train a tokenizer on the open pool, pack the texts.

        Args:
            folder: Empty.
            changes: To the inner settings that the model's size suggests.
        """
        objective = objective_named("causal-lm")
        texts = folder / "texts"
        written = write_texts(
            texts, bytes_per_language=_BYTES_PER_LANGUAGE, pool_fraction=_POOL_FRACTION
        )
        created = objective.create({"size": "tiny", "text": [texts / POOL_FOLDER]}, seed=0)
        for name, content in created.files.items():
            (folder / name).write_bytes(content)
        inner = inner_for(created).model_copy(update=changes).settings()

        def pack(path: Path) -> Any:  # noqa: ANN401 - a corpus is the objective's own
            return objective.prepare(
                [path],
                folder,
                cache=folder / "corpus",
                sequence_tokens=inner.sequence_tokens,
                held_out_fraction=0.05,
                held_out_bytes=_HELD_OUT_BYTES,
            )

        return cls(
            objective=objective,
            folder=folder,
            inner=inner,
            corpora={text.source.member_id: pack(text.path) for text in written},
            pool=pack(texts / POOL_FOLDER),
        )

    def run(self, settings: AggregationPolicy, *, rounds: int, seed: int, nudged: bool) -> Run:
        """Train from a genesis of `seed`, each element the next larger one if `nudged`."""
        began = time.perf_counter()
        create = {"size": "tiny", "tokenizer": self.folder / "tokenizer.json"}
        module = self.objective.create(create, seed=seed).module
        layout = layout_of(module)
        choose_threads(layout.elements)
        genesis_P = from_model(module, layout)
        if nudged:
            genesis_P = np.nextafter(genesis_P, np.float32(np.inf))
        coordinator = Coordinator(settings, layout, genesis_P)
        codec = codec_named(settings.codec)
        losses, up_bytes, down_bytes = [], 0, 0
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            nodes = {m: Node(self, m, layout, Path(folder), seed=seed) for m in self.corpora}
            for _round in range(rounds):
                sent = {m: node.train(coordinator.held_P, codec) for m, node in nodes.items()}
                losses.append(statistics.mean(one.loss for one in sent.values()))
                up_bytes = max(sum(map(len, one.fragments)) for one in sent.values())
                down_bytes = coordinator.step(sent, tokens=self.inner.tokens)
        to_model(coordinator.held_P, module, layout)
        evaluate = self.objective.evaluate
        return Run(
            bits_per_byte={m: evaluate(module, c).bits_per_byte for m, c in self.corpora.items()},
            losses=losses,
            up_bytes=up_bytes,
            down_bytes=down_bytes,
            seconds=time.perf_counter() - began,
        )


class Node:
    """One institution's model, inner optimizer, batches and residual, kept from round to round."""

    def __init__(
        self, of: Federation, member_id: str, layout: ParameterLayout, folder: Path, *, seed: int
    ) -> None:
        """Begin with an empty optimizer; `folder` is for the residual of error feedback."""
        self._objective = of.objective
        self._layout = layout
        self._module = of.objective.build(of.folder)
        self._optimizer = InnerOptimizer(self._module, of.inner)
        self._batches = of.objective.batches(
            of.corpora[member_id],
            of.pool,
            sequences=of.inner.sequences,
            sequence_tokens=of.inner.sequence_tokens,
            shared_fraction=SharedSettings().fraction,
            seed=seed,
        )
        self._spool = folder / member_id
        self._spool.mkdir()

    def train(self, base_P: Float32Array, codec: Codec, *, steps: int | None = None) -> Encoded:
        """Take a round's inner steps from `base_P`; return the contribution, which is taken."""
        if steps is not None:
            changes = {"steps": steps}
            self._optimizer.settings = self._optimizer.settings.model_copy(update=changes)
        to_model(base_P, self._module, self._layout)
        losses = train(
            self._objective,
            self._module,
            self._optimizer,
            self._batches,
            first_batch=self._optimizer.steps_done * self._optimizer.settings.accumulation,
        )
        residual = self._spool / "taken.f32"
        fragments, squared_norms = [], []
        with fragment_encoder(
            codec, residual=residual, spool=self._spool, layout=self._layout
        ) as encode:
            for index in range(self._layout.fragments):
                base = base_P[slice(*self._layout.bounds(index))]
                local = fragment_of(self._module, self._layout, index)
                data = encode(index, pseudo_gradient(base, local))
                fragments.append(data)
                squared_norms.append(squared_norm(codec.decode(data, len(base))))
        accept_residual(self._spool, residual)
        return Encoded(fragments=fragments, norm=norm(squared_norms), loss=statistics.mean(losses))


class Coordinator:
    """The vector that everybody holds, the exact one, and the outer optimizer's state."""

    def __init__(
        self, settings: AggregationPolicy, layout: ParameterLayout, genesis_P: Float32Array
    ) -> None:
        """Begin at genesis, which goes down whole."""
        self.held_P = genesis_P.copy()
        """What is published, and what nodes start from."""
        self._settings = settings
        self._layout = layout
        self._exact_P = genesis_P
        self._state: dict[int, tuple[Float32Array, ...]] = {}

    def step(
        self,
        sent: Mapping[str, Encoded],
        *,
        tokens: int | Mapping[str, int],
        discounts: Mapping[str, float] | None = None,
        optimizer: OuterOptimizer | None = None,
    ) -> int:
        """Go on from the exact vector by what members sent; return the bytes that go down."""
        settings, layout = self._settings, self._layout
        rule, optimizer = (
            settings.aggregation_rule(),
            optimizer or settings.outer_optimizer(len(sent)),
        )
        weights = token_weights(
            dict.fromkeys(sent, tokens) if isinstance(tokens, int) else tokens,
            gamma=settings.gamma,
            cap=settings.influence_cap or default_cap(len(sent)),
            discounts=discounts,
        )
        factors = clip_factors({m: one.norm for m, one in sent.items()}, clip=settings.clip)
        contributions = [
            WeightedContribution(
                member_id=member_id,
                weight=weights[member_id],
                clip_factor=factors[member_id],
                codec=codec_named(settings.codec),
                read_fragment=one.fragments.__getitem__,
            )
            for member_id, one in sent.items()
        ]
        down_bytes = 0
        for fragment in outer_step(
            in_memory(self._exact_P, layout),
            self._state.__getitem__ if self._state else None,
            decide(contributions, rule=rule, layout=layout),
            layout=layout,
            optimizer=optimizer,
            rule=rule,
        ):
            part = slice(*layout.bounds(fragment.index))
            data, self.held_P[part] = self._published(self.held_P[part], fragment.base)
            self._exact_P[part] = fragment.base
            self._state[fragment.index] = fragment.state
            down_bytes += len(data)
        return down_bytes

    def _published(self, held: Float32Array, exact: Float32Array) -> tuple[bytes, Float32Array]:
        """Return the bytes of a fragment, and what members then hold."""
        downlink = self._settings.downlink
        if downlink in DOWNLINK_CODECS:
            step = encode_step(DOWNLINK_CODECS[downlink], held, exact)
            return step.data, step.held
        codec = codec_named(downlink)
        data = codec.encode(exact)
        return data, codec.decode(data, len(exact))


def report(runs: Mapping[str, Sequence[Run]], settings: Mapping[str, float]) -> None:
    """Print and save a table, each variant beside the first one."""
    first = next(iter(runs))
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"\n{told}; differences to {first} in percent, bytes of one node in one round")
    print(f"{'variant':<17}{'bits/byte':>10}{'mean':>8}  {'by seed':<24}{'up':>11}{'down':>11}")
    rows, verdict = {}, ""
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
        by_seed = " ".join(f"{difference:+.3f}" for difference in differences)
        last = of_variant[-1]
        print(
            f"{name:<17}{bits:>10.4f}{mean:>+8.3f}  {by_seed:<24}"
            f"{last.up_bytes:>11,}{last.down_bytes:>11,}"
        )
        if (first, name) == ("float32", "int4"):
            verdict = f"int4 costs {mean:+.3f} % (at most {ALLOWED_PERCENT} is asked for)"
    if verdict:
        print(verdict)
    save("codec_loss", {**settings, "beside": first, "variants": rows})


if __name__ == "__main__":
    main()
