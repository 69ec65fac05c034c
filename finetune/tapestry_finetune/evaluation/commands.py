"""`tapestry finetune eval`: parse, call, render."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.cli.bars import bar, printable
from tapestry.errors import ConfigError
from tapestry_finetune.options import CommunityKey, Device, Federation, Unverified, require_folders

_NOTHING_TO_MEASURE = (
    "nothing to measure: the bundle has no charter, and no --suites were given. Start with "
    "held-out text: make a folder `suites` with text/LANGUAGE.txt in it, and add --suites suites"
)


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    base: Annotated[
        Path, typer.Option("--base", help="The checkpoint's folder that it was made for.")
    ],
    suites: Annotated[
        Path | None,
        typer.Option(
            "--suites",
            help="What to measure: a folder (text/LANGUAGE.txt, suites/*.jsonl, prompts.txt, "
            "must_answer.txt, must_refuse.txt, protected/), a recipe, or one .jsonl.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("evaluation"),
    lm_eval: Annotated[
        Path | None,
        typer.Option("--lm-eval", help="Folder of local tasks for lm-evaluation-harness."),
    ] = None,
    federation: Federation = None,
    key: CommunityKey = None,
    unverified: Unverified = False,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Did it get better? Measure a bundle beside its base, figure by figure, with verdicts.

    Exit code 1 if a figure is below the floor. Writes evaluation.json and evaluation.html, one
    file to look at and pass on.

    Example: tapestry finetune eval ours --base round-000042 --suites suites/
    """
    require_folders(bundle, base)
    from tapestry_finetune.assistants import load_assistant  # noqa: PLC0415 - imports torch
    from tapestry_finetune.base import describe, open_base  # noqa: PLC0415
    from tapestry_finetune.bundle import open_bundle  # noqa: PLC0415
    from tapestry_finetune.charter.settings import load_charter  # noqa: PLC0415
    from tapestry_finetune.evaluation.evaluating import evaluate_assistant  # noqa: PLC0415
    from tapestry_finetune.evaluation.floor import Floor  # noqa: PLC0415
    from tapestry_finetune.evaluation.harness import require_harness  # noqa: PLC0415
    from tapestry_finetune.evaluation.report import write_report  # noqa: PLC0415
    from tapestry_finetune.evaluation.suites import Suites, load_suites  # noqa: PLC0415

    asked, floor = (Suites(), Floor()) if suites is None else load_suites(suites)
    if lm_eval is not None:
        require_harness(lm_eval)
    opened = open_bundle(bundle, key=key)
    charter_path = opened.charter_path()
    if asked.measures_nothing() and charter_path is None and lm_eval is None:
        raise ConfigError(_NOTHING_TO_MEASURE)
    verified = open_base(base, federation=federation, unverified=unverified)
    assistant = load_assistant(verified, {opened.name: opened}, device=device)
    with bar() as shown:
        evaluation = evaluate_assistant(
            assistant,
            opened.name,
            asked,
            floor,
            None if charter_path is None else load_charter(charter_path),
            about={
                "name": opened.name,
                "base": describe(verified.identity),
                "bundle": opened.digest,
                "signed_by": opened.key,
            },
            harness=lm_eval,
            on_progress=lambda what, done, of: shown.show(what, done, of, unit="done"),
        )
    page = write_report(evaluation, out)[1]
    if as_json:
        typer.echo(json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False))
    else:
        show_evaluation(evaluation, typer.echo)
        typer.echo(f"\nlook at it: {page}")
    if not evaluation.passed:
        raise typer.Exit(1)


def show_evaluation(evaluation: Any, say: Callable[[str], None]) -> None:  # noqa: ANN401
    """Say in a terminal what an `Evaluation` found: its summary, and a line for each figure."""
    from tapestry_finetune.evaluation.report import figures_of  # noqa: PLC0415 - matplotlib
    from tapestry_finetune.evaluation.series import MEASURES  # noqa: PLC0415

    for line in evaluation.summary:
        say(printable(line))
    heads = ("figure", "of", "base", "localized", "change", "95 %", "verdict")
    rows = [
        (
            MEASURES[row.measure].label,
            printable(row.slice),
            *figures_of(row)[:4],
            f"{row.verdict}{f' ({row.note})' if row.note else ''}",
        )
        for row in evaluation.rows
    ]
    if not rows:
        return
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    say("")
    for row in (heads, *rows):
        cells = [
            one.ljust(width) if at in (0, 1, 6) else one.rjust(width)
            for at, (one, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())
