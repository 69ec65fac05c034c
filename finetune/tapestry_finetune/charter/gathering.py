"""Where the questions come from, and how people answer them: at a page, on paper, typed in."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import typer

from tapestry.cli.bars import bar
from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry_finetune.charter.choices import Agreement, Choices, log_of
from tapestry_finetune.charter.models import Chosen
from tapestry_finetune.charter.questions import (
    Question,
    read_prompts,
    read_questions,
    write_questions,
)
from tapestry_finetune.charter.settings import Charter
from tapestry_finetune.charter.sheet import HOW, enter_sheet, render_sheet
from tapestry_finetune.charter.written import WrittenAnswers, written_file


def _kept_questions(out: Path) -> Path:
    return out.with_name(f"{out.stem}.questions.jsonl")


def questions_in(out: Path, answers: Path | None) -> list[Question]:
    """Return the questions of a file, or those that an earlier run made for `out`.

    Raises:
        ConfigError: There are none, or the file has faults.
    """
    path = _kept_questions(out) if answers is None else answers
    if answers is None and not path.exists():
        raise ConfigError(
            "nothing to choose from: add --answers FILE with two answers to each prompt, or "
            "--prompts FILE --base CHECKPOINT to have them written"
        )
    return read_questions(path)


def questions_made(
    charter: Charter, out: Path, prompts: Path, chosen: Chosen, seed: int
) -> list[Question]:
    """Return the questions that models answered, now or in an earlier run.

    Raises:
        ConfigError: The prompts cannot be used, or no two answers to one differ.
        typer.Exit: Ctrl-C stopped it; the same call goes on from there.
    """
    path = _kept_questions(out)
    if path.exists():
        typer.echo(f"going on with the answers in {path}; remove it to have new ones", err=True)
        return read_questions(path)
    asked = read_prompts(prompts)
    from tapestry_finetune.charter.speakers import answer_twice  # noqa: PLC0415 - imports torch

    kept_in = written_file(out)
    with kept_in.open("a+b") as file, bar() as shown:
        so_far = WrittenAnswers(file)
        if so_far:
            typer.echo(f"going on after {len(so_far)} answers in {kept_in}", err=True)
        try:
            made = answer_twice(
                charter,
                chosen,
                asked,
                seed=seed,
                so_far=so_far,
                on_progress=lambda done, of: shown.show("answering", done, of, unit="answers"),
            )
        except KeyboardInterrupt:
            typer.echo(
                f"stopped; {len(so_far)} answers are kept, the same command goes on", err=True
            )
            raise typer.Exit(130) from None
    if not made.questions:
        raise ConfigError(
            f"{prompts}: of {len(asked)} prompts, {made.same} were answered alike and "
            f"{made.protected} touch a protected topic: nothing is left to choose from"
        )
    left_out = f"; left out: {made.same} answered alike, {made.protected} protected"
    typer.echo(f"{path}: {len(made.questions)} prompts with two answers{left_out}", err=True)
    write_questions(path, made.questions)
    kept_in.unlink()
    return list(made.questions)


def print_sheet(charter: Charter, choices: Choices, path: Path) -> None:
    """Write the sheet to print.

    Raises:
        ConfigError: There is no such folder.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder")
    write_atomic(path, render_sheet(charter, choices))
    typer.echo(f"{path}: print it; then type in what NAME ticked with --enter NAME", err=True)


def enter_choices(charter: Charter, choices: Choices, name: str) -> None:
    """Take what `name` ticked on a sheet, from a terminal or a pipe."""
    marked = f"sheets marked {choices.mark}; if the paper has another mark, stop: its order differs"
    typer.echo(marked, err=True)
    if sys.stdin.isatty():
        typer.echo(HOW, err=True)
    kept = enter_sheet(
        charter, choices, name, _line, clock=_now, say=lambda said: typer.echo(said, err=True)
    )
    typer.echo(f"{name}: {kept} choices kept", err=True)


def _line(prompt: str) -> str | None:
    """Ask at a terminal; from a pipe, just read. None: no more lines come."""
    if sys.stdin.isatty():
        typer.echo(prompt, err=True, nl=False)
    line = sys.stdin.readline()
    return line if line else None


def serve(charter: Charter, choices: Choices, port: int) -> None:
    """Let people choose at the page until Ctrl-C."""
    from tapestry_finetune.charter.collecting import serve_choosing  # noqa: PLC0415

    def say(address: str) -> None:
        typer.echo(f"open {address}\nCtrl-C ends it; nothing is lost", err=True)

    serve_choosing(charter, choices, port=port, clock=_now, say=say)


def _now() -> float:
    return datetime.now(UTC).timestamp()


def tell(agreed: Agreement, out: Path, *, as_json: bool) -> None:
    """Say what came of it, and how far people agree."""
    rows = out.read_bytes().count(b"\n")
    if as_json:
        told = {"rows": rows, "out": str(out), "log": str(log_of(out)), **asdict(agreed)}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    people = f"{agreed.people} {'person' if agreed.people == 1 else 'people'}"
    typer.echo(f"{out}: {rows} preferences, from {people} about {agreed.questions} questions")
    if agreed.alpha is not None:
        typer.echo(
            f"agreement (Krippendorff's alpha) {agreed.alpha:.2f} over {agreed.shared} questions "
            f"that two or more judged: {_in_words(agreed.alpha)}"
        )


def _in_words(alpha: float) -> str:
    if alpha >= 0.8:
        return "people agree"
    if alpha >= 0.667:
        return "people agree well enough for careful use"
    if alpha > 0.2:
        return "people differ; talk about the questions where they do before training on this"
    return "hardly more than chance: these choices do not show shared values"
