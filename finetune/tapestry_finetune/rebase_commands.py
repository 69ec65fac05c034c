"""`tapestry finetune rebase`: parse, call, render."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.cli.bars import bar, printable
from tapestry.cli.running import default_home
from tapestry.errors import ConfigError
from tapestry_finetune.options import KeyFolder, SkipBad, Unverified, require_folders
from tapestry_finetune.recipe_commands import stopping, telling_on


def rebase(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="Your files to measure and touch up with. Default: recipe.toml beside the bundle.",
        ),
    ] = None,
    onto: Annotated[
        Path | None, typer.Option("--onto", help="The newer checkpoint's folder.")
    ] = None,
    old: Annotated[
        Path | None,
        typer.Option("--old", help="The bundle's own checkpoint, if not beside the new one."),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of each stage for the touch-up; 0: none.")
    ] = 20,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Try a whole new run, too: the dear yardstick.")
    ] = False,
    distil: Annotated[
        bool, typer.Option("--distil", help="Try to learn from what the old pair writes.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="New bundle's folder; of --watch: their parent.")
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option("--watch", help="A folder: do it for every newer checkpoint in it."),
    ] = None,
    force: Annotated[
        str, typer.Option(help="Publish below the floor all the same; say why, all will read it.")
    ] = "",
    key: KeyFolder = None,
    skip_bad: SkipBad = None,
    unverified: Unverified = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Carry your work over to a newer consensus: try candidates, measure all, keep the best.

    Tried are copies at several scales and a touch-up by a few steps. The table compares the old
    base with your adapter, the new base, and each candidate, with what it cost.

    Example: tapestry finetune rebase ours --onto round-000048 --recipe recipe.toml
    """
    require_folders(bundle, onto, old, watch)
    from tapestry_finetune import rebase as carrying  # noqa: PLC0415
    from tapestry_finetune.bundle import community_key  # noqa: PLC0415 - imports torch
    from tapestry_finetune.compared import NoneAboveFloorError  # noqa: PLC0415
    from tapestry_finetune.following import watch as follow  # noqa: PLC0415

    if (onto is None) == (watch is None):
        raise ConfigError("give either --onto CHECKPOINT or --watch FOLDER")
    recipe = recipe or bundle.resolve().parent / "recipe.toml"
    if not recipe.is_file():
        raise ConfigError(f"{recipe}: no such recipe; name the one of the bundle with --recipe")
    beside = recipe.resolve().parent
    asked = carrying.Asked(
        bundle=bundle,
        onto=onto or bundle,
        recipe=recipe,
        old=old,
        steps=steps,
        retrain=retrain,
        distil=distil,
        force=force,
        skip_bad=skip_bad,
        unverified=unverified,
    )
    signing = community_key(key or default_home("finetune") / "identity")
    with bar() as shown, stopping() as is_stopped:
        telling = telling_on(shown, is_stopped)

        def one(what: carrying.Asked, target: Path) -> carrying.Rebased:
            work = target.with_name(f"{target.name}-work")
            work.mkdir(parents=True, exist_ok=True)
            try:
                made = carrying.rebase(
                    what, target, work, signing, telling, now=datetime.now(UTC).timestamp()
                )
            except NoneAboveFloorError as error:
                _show(error.compared, None, as_json=as_json)
                raise
            _show(made, target, as_json=as_json)
            return made

        if watch is not None:
            parent = out or beside / "rebased"
            parent.mkdir(parents=True, exist_ok=True)
            follow(watch, asked, parent, one, telling, sleep=_sleep(is_stopped))
            return
        named = f"{bundle.resolve().name}-{asked.onto.resolve().name}"
        one(asked, out or beside / named)


def _sleep(is_stopped: Any) -> Any:  # noqa: ANN401
    def sleep(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not is_stopped():
            time.sleep(0.2)

    return sleep


def _show(made: Any, target: Path | None, *, as_json: bool) -> None:  # noqa: ANN401 - Compared
    if as_json:
        table = made.as_json() | {"bundle": None if target is None else str(target)}
        typer.echo(json.dumps(table, indent=1, ensure_ascii=False))
        return
    names = [column.name for column in made.columns]
    keys = list(dict.fromkeys(key for column in made.columns for key in column.figures))
    rows = [["", *names]]
    for key in keys:
        cells = [column.figures.get(key) for column in made.columns]
        rows.append([printable(key), *("" if c is None else f"{c:.3f}" for c in cells)])
    rows.append(["seconds", *(f"{c.seconds:.0f}" if c.seconds else "" for c in made.columns)])
    rows.append(["floor", *("ok" if c.passed else "BELOW" for c in made.columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells_shown = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells_shown).rstrip())
    if made.drift is not None:
        typer.echo(f"\nthe base has moved by {made.drift:.2%} of its norm; most moved:")
        for layer in made.layers[:5]:
            overlap = layer["overlap"]
            said = "" if overlap is None else f", overlap with the adapter {overlap:+.2f}"
            typer.echo(f"  {layer['name']}: {layer['drift']:.2%}{said}")
    if made.kept_of_gain is not None:
        typer.echo(f"an untouched copy keeps {made.kept_of_gain:.0%} of the gain")
    typer.echo(f"\n{target}: {made.chosen}" if target else f"\nthe best is {made.chosen}")
