"""`tapestry node island | leave | verify-export`: life without the coordinator."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapestry.cli.running import default_home
from tapestry.errors import ConfigError, TapestryError, UnavailableError

if TYPE_CHECKING:
    from tapestry.objectives.training import StepReport
    from tapestry_node.client import NodeClient
    from tapestry_node.exporting import Contents
    from tapestry_node.home import NodeHome
    from tapestry_node.island import Island

island_app = typer.Typer(
    help="Train, measure and sample on the last checkpoint, alone and with the network off.",
    no_args_is_help=True,
)

Folder = Annotated[
    Path | None, typer.Argument(help="The node's folder; default: below your data directory.")
]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data", help="Text: files or folders of .txt, .md, .jsonl, .parquet; may be repeated."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="Which, as `tapestry node island list` names it; default: the newest."),
]
_clock = time.time  # noqa: TID251 - the edge that owns the clock


class Spool(StrEnum):
    """What becomes of a contribution that is finished and not sent."""

    SEND = "send"
    DROP = "drop"


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(island_app, name="island")
    app.command()(leave)
    app.command()(verify_export)


# Island mode


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
    as_json: Json = False,
) -> None:
    """Train on from the last checkpoint, alone: a line of checkpoints apart from the consensus.

    This process gives up its network and its keys before it reads any text. What the node keeps for
    the federation is not touched.

    Example: tapestry node island train node --data /srv/texts --rounds 3
    """
    from tapestry.storage.locks import alone  # noqa: PLC0415

    if not data:
        raise ConfigError("no text given: add --data PATH (a file or a folder)")
    with _alone_on_island(folder) as island, alone(island.home.folder, who="this node"):
        from tapestry_node.island import (  # noqa: PLC0415 - imports torch
            LocalParentage,
            forget_line,
            inner_settings,
            open_trainer,
            train_one,
        )

        inner = inner_settings(island, steps)
        if fresh:
            forget_line(island)
        trainer = open_trainer(island, data, inner)
        made: list[LocalParentage] = []
        with _stoppable() as is_stopped, _bar("training", rounds * inner.steps) as advance:

            def on_step(report: "StepReport") -> bool:
                advance(1, f"loss {report.loss:.3f}")
                return not is_stopped()

            while len(made) < rounds and not is_stopped():
                one = train_one(island, trainer, inner, data, keep=keep, on_step=on_step)
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
    as_json: Json = False,
) -> None:
    """Measure every checkpoint that is here, or one, on your own held-out text.

    Example: tapestry node island evaluate node --data /srv/texts
    """
    if not data:
        raise ConfigError("no text given: add --data PATH (a file or a folder)")
    with _alone_on_island(folder) as island:
        from tapestry_node.island import inner_settings, open_trainer  # noqa: PLC0415

        chosen = island.all() if checkpoint is None else [island.named(checkpoint)]
        trainer = open_trainer(island, data, inner_settings(island, None))
        scores = {island.name_of(path): trainer.evaluate(path).bits_per_byte for path in chosen}
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
def island_list(folder: Folder = None, as_json: Json = False) -> None:
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


# Leaving


def leave(
    folder: Folder = None,
    export: Annotated[
        Path | None, typer.Option(help="New folder for everything that you take along.")
    ] = None,
    spool: Annotated[
        Spool | None, typer.Option(help="What becomes of a contribution that is not sent yet.")
    ] = None,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Take the private keys along (0600).")
    ] = False,
    with_packed_corpus: Annotated[
        bool, typer.Option("--with-packed-corpus", help="Take the text along, tokenized.")
    ] = False,
    revoke_only: Annotated[
        bool, typer.Option("--revoke-only", help="Only end the membership; the export is made.")
    ] = False,
    reason: Annotated[str, typer.Option(help="For the federation's operators.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Leave the federation: take everything along, verified; then end the membership.

    The export holds the model with its lineage, optimizer state, receipts, egress ledger, settings
    and a description of the corpus, never the text. Nothing is deleted in the node's folder. An
    export that was cut short goes on where it stood.

    Example: tapestry node leave node --export our-export
    """
    from tapestry.storage.locks import alone  # noqa: PLC0415
    from tapestry_node.home import require_node  # noqa: PLC0415
    from tapestry_node.leaving import require_member  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    require_member(home)
    if revoke_only == (export is not None):
        raise ConfigError("name a folder with --export, or add --revoke-only if that is done")
    target = None if export is None else export.resolve()
    if target is not None and target.exists():
        raise ConfigError(f"{export}: exists already; name a new folder")
    if target is not None and target.is_relative_to(home.folder):
        raise ConfigError(f"{export}: is in the node's own folder; name one beside it")
    with alone(home.folder, who="this node"):
        made = None
        if target is not None:
            made = _gather(home, spool, with_keys=with_keys, with_packed_corpus=with_packed_corpus)
            typer.echo(
                f"the export: checkpoint {made.round}, {len(made.pieces)} files, "
                f"{made.size_bytes:,} bytes, to {target}"
            )
        if not yes and not typer.confirm(_question(home)):
            raise ConfigError("nothing was done; this node is a member as before")
        if target is not None and made is not None:
            _export(home, made, target)
        _end(home, reason, target)


def _question(home: "NodeHome") -> str:
    known = home.identity.load()
    return f"end the membership of {known.member_id} in {known.federation}, for good?"


def _gather(
    home: "NodeHome", spool: Spool | None, *, with_keys: bool, with_packed_corpus: bool
) -> "Contents":
    """Bring the node up to date as far as the coordinator answers; return what is exported."""
    from tapestry_node.exporting import contents  # noqa: PLC0415
    from tapestry_node.leaving import bring_up_to_date, settle_spool  # noqa: PLC0415

    with _client(home) as client:
        reached = bring_up_to_date(home, client, typer.echo)
        if reached.obstacle:
            typer.echo(f"{reached.obstacle}; the export is made of what is here")
        settle_spool(home, client, None if spool is None else spool.value, typer.echo)
    return contents(
        home,
        card=reached.card,
        with_keys=with_keys,
        with_packed_corpus=with_packed_corpus,
    )


def _export(home: "NodeHome", made: "Contents", target: Path) -> None:
    from tapestry_node.exporting import export_to  # noqa: PLC0415
    from tapestry_node.verifying import said  # noqa: PLC0415 - imports torch
    from tapestry_node.verifying import verify_export as verify  # noqa: PLC0415

    with _bar("copying", made.size_bytes) as advance:
        export_to(target, home, made, now=_clock(), on_bytes=lambda size: advance(size, ""))
    typer.echo(said(verify(target), target))


def _end(home: "NodeHome", reason: str, target: Path | None) -> None:
    from tapestry_node.leaving import revoke  # noqa: PLC0415

    try:
        with _client(home) as client:
            when = revoke(home, client, reason=reason, export=target)
    except UnavailableError as error:
        is_made = "" if target is None else "the export is made, but "
        raise UnavailableError(
            f"{is_made}the membership still stands: {error}; end it when the coordinator answers: "
            f"tapestry node leave {home.folder} --revoke-only"
        ) from error
    typer.echo(f"the membership ended at {when}; everything stays in {home.folder}")


def verify_export(
    folder: Annotated[Path, typer.Argument(help="What `tapestry node leave --export` made.")],
    as_json: Json = False,
) -> None:
    """Prove that an export is whole and enough to found a federation: exit code 0 or 1.

    Verifies every file's digest, the signature and whose it is, the lineage from genesis, that the
    model can be built, the chain of the egress ledger, and every receipt. Needs neither the node
    nor a network.

    Example: tapestry node verify-export our-export
    """
    from tapestry_node.verifying import said  # noqa: PLC0415 - imports torch
    from tapestry_node.verifying import verify_export as verify  # noqa: PLC0415

    try:
        table = verify(folder)
    except TapestryError as error:
        if as_json:
            typer.echo(json.dumps({"verified": False, "cause": str(error)}, indent=1))
        raise
    typer.echo(json.dumps(table, indent=1) if as_json else said(table, folder))


@contextmanager
def _client(home: "NodeHome") -> "Iterator[NodeClient]":
    """Connect as this node, which does not run."""
    from tapestry.wire.egress import EgressLedger  # noqa: PLC0415
    from tapestry_node.client import NodeClient  # noqa: PLC0415 - imports grpc

    membership = home.identity.load()
    ledger = EgressLedger(home.egress, to=membership.address, clock=_clock)
    ledger.allowed_by = home.load_settings().policy.digest()
    with closing(ledger), closing(NodeClient(membership, home.identity, ledger)) as client:
        yield client


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show progress on a terminal while the block runs."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress, TextColumn  # noqa: PLC0415

    columns: tuple[Any, ...] = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(what, total=total, note="")

    def advance(amount: int, note: str) -> None:
        progress.start()
        progress.update(task, advance=amount, note=note)

    try:
        yield advance
    finally:
        if progress.live.is_started:  # else a refusal would not be one line
            progress.stop()


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
