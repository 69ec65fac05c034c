"""`tapestry node island ...`: what a node does alone, with the network off."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tapestry.cli.bars import bar
from tapestry.cli.running import default_home
from tapestry_node.memory import Fitting
from tapestry_node.options import AsJson, Data, Folder
from tapestry_node.showing import packing

if TYPE_CHECKING:
    from tapestry.objectives.reports import StepReport
    from tapestry_node.island import Island

island_app = typer.Typer(
    help="Train, measure and sample on the last checkpoint, alone and with the network off.",
    no_args_is_help=True,
)

Checkpoint = Annotated[
    str | None,
    typer.Option(help="Which, as `tapestry node island list` names it; default: the newest."),
]


@island_app.command(name="train")
def island_train(
    folder: Folder = None,
    data: Data = [],  # noqa: B006 - typer copies it
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of one.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Inner steps of each; default: the federation's H.")
    ] = None,
    keep: Annotated[
        int, typer.Option(min=0, help="Newest local checkpoints that stay; 0: all.")
    ] = 2,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the own line, begin from the consensus again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train on from the last checkpoint, alone: a line of checkpoints apart from the consensus.

    This process gives up its network and its keys before it reads any text. What the node keeps for
    the federation is not touched.

    Example: tapestry node island train node --data /srv/texts --rounds 3
    """
    from tapestry.storage.locks import alone  # noqa: PLC0415

    with _alone_on_island(folder) as island, alone(island.home.folder, who="this node"):
        from tapestry_node.governing import text_of  # noqa: PLC0415
        from tapestry_node.island import (  # noqa: PLC0415 - imports torch
            LocalParentage,
            forget_line,
            inner_settings,
            open_trainer,
            train_one,
        )

        data = text_of(island.home, data)
        inner = inner_settings(island, steps)
        if fresh:
            forget_line(island)
        made: list[LocalParentage] = []
        with bar() as shown, _stoppable() as is_stopped:
            trainer = open_trainer(island, data, inner, on_packing=packing(shown))

            def on_step(report: "StepReport") -> bool:
                done, of = len(made) * inner.steps + report.step, rounds * inner.steps
                shown.show("training", done, of, unit="steps", note=f"loss {report.loss:.3f}")
                return not is_stopped()

            def train(rows: int) -> LocalParentage | None:
                return train_one(
                    island, trainer, inner, data, keep=keep, on_step=on_step, rows=rows
                )

            fitting = Fitting(inner.sequences, lambda said: typer.echo(said, err=True))
            while len(made) < rounds and not is_stopped():
                one = fitting.run(train)
                if one is not None:
                    made.append(one)
    rows = [
        {
            "local": one.local,
            "consensus": one.round,
            "steps": one.steps,
            "bits_per_byte": one.held_out_bits_per_byte,
        }
        for one in made
    ]
    if as_json:
        typer.echo(json.dumps({"made": rows, "newest": str(island.newest)}, indent=1))
        return
    for one in made:
        before, after = (one.held_out_bits_per_byte[k] for k in ("before", "after"))
        typer.echo(
            f"{one.round}/local-{one.local}: {one.steps} steps, held-out bits per byte "
            f"{before:.4f} before, {after:.4f} after"
        )
    if len(made) < rounds:
        typer.echo("stopped; the round that was under way begins anew next time")
    typer.echo(f"local, not a consensus checkpoint: {island.newest}")


@island_app.command(name="evaluate")
def island_evaluate(
    folder: Folder = None,
    data: Data = [],  # noqa: B006 - typer copies it
    checkpoint: Checkpoint = None,
    as_json: AsJson = False,
) -> None:
    """Measure every checkpoint that is here, or one, on your own held-out text.

    Example: tapestry node island evaluate node --data /srv/texts
    """
    with _alone_on_island(folder) as island:
        from tapestry_node.governing import text_of  # noqa: PLC0415
        from tapestry_node.island import inner_settings, open_trainer  # noqa: PLC0415

        data = text_of(island.home, data)
        chosen = island.all() if checkpoint is None else [island.named(checkpoint)]
        with bar() as shown:
            inner = inner_settings(island, None)
            trainer = open_trainer(island, data, inner, on_packing=packing(shown))
            count = shown.counting("measuring", len(chosen), unit="checkpoints")
            scores: dict[str, float] = {}
            for path in chosen:
                count(0, island.name_of(path))
                scores[island.name_of(path)] = trainer.evaluate(path).bits_per_byte
                count(1)
    if as_json:
        typer.echo(json.dumps({"bits_per_byte": scores}, indent=1))
        return
    for name, score in scores.items():
        typer.echo(f"{name:<20} {score:.4f} bits per byte on your held-out text")


@island_app.command(name="sample")
def island_sample(
    folder: Folder = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the text begins with; without it, lines are asked for.")
    ] = None,
    checkpoint: Checkpoint = None,
    tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 80,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
) -> None:
    """Let the last checkpoint continue a text, or line after line of yours, until Ctrl-D.

    A base model continues; it does not answer.

    Example: tapestry node island sample node --prompt 'Once'
    """
    with _alone_on_island(folder) as island:
        from tapestry.objectives.sampling import sample_text  # noqa: PLC0415 - imports torch

        model = island.named(checkpoint)
        asked = [prompt] if prompt is not None else _lines()
        for text in asked:
            said = sample_text(
                model, prompt=text, tokens=tokens, temperature=temperature, seed=seed
            )
            typer.echo(said)


@island_app.command(name="list")
def island_list(folder: Folder = None, as_json: AsJson = False) -> None:
    """List the checkpoints that are here: the consensus, and this node's own lines upon it."""
    from tapestry_node.home import require_node  # noqa: PLC0415
    from tapestry_node.island import Island  # noqa: PLC0415 - imports torch

    home = require_node(folder or default_home("node"))
    island = Island.of(home, home.identity.load())
    rows = [
        {
            "name": island.name_of(path),
            "kind": "consensus" if path.parent == island.home.checkpoints else "local",
            "folder": str(path),
        }
        for path in island.all()
    ]
    if as_json:
        typer.echo(json.dumps({"checkpoints": rows}, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['name']:<20} {row['kind']:<10} {row['folder']}")


@contextmanager
def _alone_on_island(folder: Path | None) -> "Iterator[Island]":
    """Yield a node on its own, in a process that has no network and no keys any more."""
    from tapestry_node.home import require_node  # noqa: PLC0415
    from tapestry_node.isolation import forbid_connections, isolate  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    membership = home.identity.load()  # before its folder is empty for this process
    found = isolate(home.identity.folder, dies_with_parent=False)
    if found.obstacle:
        typer.echo(
            f"this system does not let the process be shut off from network and keys "
            f"({found.obstacle}): only Python's own calls are stopped",
            err=True,
        )
    forbid_connections(lambda call, to: typer.echo(f"stopped: {call} to {to}", err=True))
    from tapestry_node.island import Island  # noqa: PLC0415 - imports torch, which has threads

    yield Island.of(home, membership)


def _lines() -> Iterator[str]:
    """Yield what is typed, until its end."""
    while True:
        if sys.stdin.isatty():
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end the work at the next step; a second one ends it at once."""
    stopped = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)
