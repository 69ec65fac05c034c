"""`tapestry finetune init`, `plan`, `run`, `verify`: parse, call, render."""

import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.cli.bars import Bar, bar, printable
from tapestry.cli.running import default_home
from tapestry.errors import ConfigError
from tapestry_finetune.options import (
    Columns,
    CommunityKey,
    Federation,
    KeyFolder,
    Roles,
    RowShape,
    SkipBad,
    Unverified,
    mapping,
    require_folders,
)

RecipeFile = Annotated[
    Path, typer.Argument(help="A recipe.toml; `tapestry finetune init` writes one.")
]


def init(
    data: Annotated[list[Path], typer.Argument(help="Your files or folders, of any known form.")],
    base: Annotated[Path, typer.Option("--base", help="A published checkpoint's folder.")],
    out: Annotated[Path, typer.Option("--out", help="The recipe to write.")] = Path("recipe.toml"),
    name: Annotated[
        str, typer.Option(help="What the model will be called: small letters, digits, hyphens.")
    ] = "",
    charter: Annotated[
        Path | None, typer.Option(help="Your charter.toml; `charter new` begins one.")
    ] = None,
    all_keys: Annotated[
        bool, typer.Option("--all", help="Write every key that there is, with its default.")
    ] = False,
    shape: RowShape = None,
    role: Roles = None,
    column: Columns = None,
    skip_bad: Annotated[
        Path | None, typer.Option(help="Move bad rows to this file, with their reasons.")
    ] = None,
    unverified: Unverified = False,
) -> None:
    """Look at your files and your machine, and write a recipe with comments.

    Example: tapestry finetune init texts/ chats.jsonl --base round-000042
    """
    require_folders(base)
    from tapestry_finetune.base import open_base  # noqa: PLC0415 - imports torch
    from tapestry_finetune.charter.settings import load_charter  # noqa: PLC0415
    from tapestry_finetune.inspecting import inspect  # noqa: PLC0415
    from tapestry_finetune.rows.shapes import Reading  # noqa: PLC0415
    from tapestry_finetune.starting import name_for, recipe_for, write_recipe  # noqa: PLC0415

    if out.exists():
        raise ConfigError(f"{out}: exists already; name another with --out, or change that one")
    if charter is not None:
        load_charter(charter)
    reading = Reading(shape, mapping(role, "--role"), mapping(column, "--column"))
    with bar() as shown:
        shown.show("verifying the base")
        opened = open_base(base, unverified=unverified)
        found = inspect(
            data,
            base=opened,
            reading=reading,
            skip_bad=skip_bad,
            on_progress=lambda doing, done, of: shown.show(doing, done, of, unit="bytes"),
        )
    for file in found.files:
        typer.echo(
            f"{printable(str(file.path))}: {file.rows:,} row{'' if file.rows == 1 else 's'}, "
            f"{file.shape}, mostly {file.language}"
        )
    for sentence in found.advice:
        typer.echo(f"note: {sentence}")
    named = name or name_for(data, found.language)
    made = recipe_for(found, base, where=out, name=named, charter=charter, reading=reading)
    write_recipe(made, out, all_keys=all_keys)
    typer.echo(f"{out}: makes {named}, stages {', '.join(made.training.stages)}")
    skipping = "" if skip_bad is None else " --skip-bad bad-rows"
    typer.echo(f"  look first   tapestry finetune plan {out}{skipping}")
    typer.echo(f"  make it      tapestry finetune run {out}{skipping}")


def plan(
    recipe: RecipeFile,
    measure: Annotated[
        bool, typer.Option(help="Take three steps of each stage, to tell the time.")
    ] = True,
    skip_bad: SkipBad = None,
    unverified: Unverified = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a run would do: rows, tokens, what is cut or dropped, steps, time, memory.

    Example: tapestry finetune plan recipe.toml
    """
    from tapestry_finetune.planning import plan as planned  # noqa: PLC0415 - imports torch
    from tapestry_finetune.run import Telling, prepare  # noqa: PLC0415

    said: list[str] = []
    with bar() as shown:
        prepared = prepare(
            recipe,
            Telling(say=said.append, on_reading=reading_on(shown)),
            skip_bad=skip_bad,
            unverified=unverified,
        )
        shown.show("measuring a few steps")
        found = planned(prepared, measure=measure)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    for sentence in said:
        typer.echo(printable(sentence))
    for stage in found.stages:
        _show_stage(stage)
    gigabytes = found.needed_bytes / 1e9, found.memory_bytes / 1e9
    typer.echo(f"\nmemory: about {gigabytes[0]:.1f} GB of {gigabytes[1]:.1f} GB", nl=False)
    if found.measured_bytes:
        typer.echo(f"; {found.measured_bytes / 1e9:.1f} GB when it was tried", nl=False)
    typer.echo(f"; the largest training.micro_batch that fits is {found.largest_micro_batch}")


def _show_stage(stage: Any) -> None:  # noqa: ANN401 - a StagePlan, whose module is not for --help
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    typer.echo(
        f"\n{stage.stage}: {stage.rows:,} rows ({stage.rows - stage.replayed:,} yours, "
        f"{stage.replayed:,} replay), {stage.held_out:,} more held out"
    )
    typer.echo(
        f"  {stage.tokens:,} tokens, {stage.learnt:,} of them learnt; {stage.bytes_per_token:.2f} "
        "bytes of your text a token"
    )
    typer.echo(
        f"  {stage.steps:,} steps at a learning rate of {stage.learning_rate:.2g}"
        + (f", about {_duration(stage.seconds)}" if stage.seconds else "")
    )
    if stage.cut:
        typer.echo(f"  {stage.cut:,} cuts in texts that are longer than a sequence")
    if stage.warning:
        typer.echo(f"  {stage.warning}")
    shown = Text("  ")
    for piece, is_learnt in stage.shown:
        shown.append(
            printable(piece.replace("\n", "⏎")), style="bold green" if is_learnt else "dim"
        )
    Console(soft_wrap=True).print(shown)
    typer.echo("  (green: what is learnt)")


def run(
    recipe: RecipeFile,
    out: Annotated[
        Path | None, typer.Option("--out", help="The bundle's folder. Default: the model's name.")
    ] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of the work, to go on in. Default: NAME-run."),
    ] = None,
    skip_bad: SkipBad = None,
    force: Annotated[
        str, typer.Option(help="Publish below the floor all the same; say why, all will read it.")
    ] = "",
    key: KeyFolder = None,
    unverified: Unverified = False,
) -> None:
    """Make a localized model: every stage of a recipe, measured, judged, signed.

    Ctrl-C stops it; the same command goes on. Exit code 1 if it is below its quality floor.

    Example: tapestry finetune run recipe.toml
    """
    from tapestry_finetune.bundle import community_key  # noqa: PLC0415 - imports torch
    from tapestry_finetune.evaluation.commands import show_evaluation  # noqa: PLC0415
    from tapestry_finetune.making import make  # noqa: PLC0415
    from tapestry_finetune.publishing import BelowFloorError  # noqa: PLC0415
    from tapestry_finetune.recipe import load_recipe  # noqa: PLC0415
    from tapestry_finetune.training import StoppedError  # noqa: PLC0415

    name = load_recipe(recipe).model.name
    beside = recipe.resolve().parent
    target, work = out or beside / name, run_folder or beside / f"{name}-run"
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new folder with --out")
    with bar() as shown, stopping() as is_stopped:
        typer.echo("verifying the base, reading the files", err=True)
        try:
            bundle, evaluation = make(
                recipe,
                target,
                work,
                community_key(key or default_home("finetune") / "identity"),
                telling_on(shown, is_stopped),
                now=datetime.now(UTC).timestamp(),
                force=force,
                skip_bad=skip_bad,
                unverified=unverified,
            )
        except StoppedError as error:
            options = {"--out": out, "--run": run_folder, "--skip-bad": skip_bad, "--key": key}
            given = [word for name, at in options.items() if at for word in (name, str(at))]
            given += ["--force", force] * bool(force) + ["--unverified"] * unverified
            command = shlex.join(["tapestry", "finetune", "run", str(recipe), *given])
            typer.echo(f"{error}; go on with: {command}", err=True)
            raise typer.Exit(130) from error
        except BelowFloorError as error:
            show_evaluation(error.evaluation, typer.echo)
            typer.echo("")
            raise
    show_evaluation(evaluation, typer.echo)
    typer.echo(f"\n{target}: signed by {bundle.key[:16]}")
    typer.echo(f"  look at it   {target / 'evaluation.html'}")
    typer.echo(f"  talk to it   tapestry chat {target} --base {_base_of(recipe)}")


def demo(
    keep: Annotated[
        Path, typer.Option("--keep", help="New folder in which everything is kept.")
    ] = Path("finetune-demo"),
) -> None:
    """See it work without data of your own: a small consensus, localized, measured, signed.

    Takes three to four minutes on two cores, half of it for a consensus of four institutions to
    begin with (`tapestry demo --quick`), half for your part of it; a model this small babbles.

    Example: tapestry finetune demo
    """
    from tapestry_finetune.demonstration import prepare_demo  # noqa: PLC0415

    typer.echo(
        "1 of 2: four institutions make a small consensus, which yours is made of (what they say: "
        f"{keep / 'consensus.log'})"
    )
    with bar() as shown:
        recipe = prepare_demo(
            keep.resolve(), lambda line: shown.show("making a consensus", note=line.strip()[:60])
        )
    typer.echo(f"2 of 2: a community makes it its own, as {recipe} says")
    run(recipe, force="a demonstration", key=keep.resolve() / "identity")
    published = keep.resolve() / "federation/coordinator/published"
    typer.echo(f"  try your own files on the same base: any round-... in {published}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    base: Annotated[
        Path | None, typer.Option("--base", help="The checkpoint that it should lie on.")
    ] = None,
    key: CommunityKey = None,
    federation: Federation = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Verify a bundle: its files, its signature, and with --base the checkpoint it came from.

    Example: tapestry finetune verify ours --base round-000042
    """
    require_folders(bundle, base)
    from tapestry_finetune.base import describe, open_base  # noqa: PLC0415 - imports torch
    from tapestry_finetune.bundle import open_bundle, require_base  # noqa: PLC0415

    opened = open_bundle(bundle, key=key)
    steps = [f"{len(opened.lineage.files)} files are those that {opened.key[:16]} signed"]
    if base is not None:
        found = open_base(base, federation=federation)
        require_base(opened, found)
        steps.append(f"it lies on the {describe(found.identity)}, which verifies")
    if as_json:
        table = {"bundle": opened.digest, "lineage": opened.lineage.model_dump(mode="json")}
        typer.echo(json.dumps(table, indent=1, ensure_ascii=False))
        return
    for step in steps:
        typer.echo(f"ok  {step}")
    lineage = opened.lineage
    if lineage.parent:
        typer.echo(f"    carried over from {lineage.parent[:16]}: {printable(lineage.carried_by)}")
    if lineage.forced:
        typer.echo(f"    BELOW ITS FLOOR, published because: {printable(lineage.forced)}")
    if base is None:
        typer.echo("    --base CHECKPOINT verifies the consensus behind it too")


@contextmanager
def stopping() -> Iterator[Any]:
    """Let the first Ctrl-C end the work in order, and a second one at once."""
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        if asked:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a third one ends the process
            raise KeyboardInterrupt
        asked = True
        typer.echo("stopping, after the step in hand; once more to stop at once", err=True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def telling_on(shown: Bar, is_stopped: Callable[[], bool]) -> Any:  # noqa: ANN401 - a Telling
    """Return who is told how a run goes: a bar, or lines where nobody looks at one."""
    from tapestry_finetune.run import Telling  # noqa: PLC0415 - imports torch
    from tapestry_finetune.training import StoppedError  # noqa: PLC0415

    def on_step(what: str, progress: Any) -> None:  # noqa: ANN401 - a Progress
        note = f"loss {progress.loss:.3f}, {progress.tokens_per_second:,.0f} tokens/s"
        shown.show(what, progress.step, progress.steps, unit="steps", note=note)
        if not sys.stderr.isatty() and progress.step % max(1, progress.steps // 10) == 0:
            typer.echo(f"{what}: step {progress.step} of {progress.steps}, {note}", err=True)

    doing = ""

    def on_work(what: str, done: int, of: int) -> None:
        nonlocal doing
        if is_stopped():
            raise StoppedError("stopped; what was learnt is kept")
        shown.show(what, done, of, unit="done")
        if not sys.stderr.isatty() and what != doing:
            typer.echo(f"measuring {what}", err=True)
            doing = what

    return Telling(
        say=lambda sentence: typer.echo(printable(sentence), err=True),
        on_reading=reading_on(shown),
        on_step=on_step,
        on_work=on_work,
        is_stopped=is_stopped,
    )


def reading_on(shown: Bar) -> Any:  # noqa: ANN401
    """Return what shows on a bar how far files are read."""
    return lambda doing, done, of: shown.show(doing, done, of, unit="bytes")


def _base_of(recipe: Path) -> Path:
    from tapestry_finetune.recipe import beside, load_recipe  # noqa: PLC0415

    return beside(recipe, load_recipe(recipe).model.base)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
