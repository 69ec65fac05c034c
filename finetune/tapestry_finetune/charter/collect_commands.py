"""`tapestry finetune charter collect`: where the questions come from, and who answers how."""

from pathlib import Path
from typing import Annotated

import typer

from tapestry.errors import ConfigError
from tapestry_finetune.options import Device, Federation


def collect(
    charter: Annotated[Path, typer.Argument(help="A charter: charter.toml.")],
    out: Annotated[
        Path, typer.Option(help="Where the preferences go: rows for the stage `values`.")
    ] = Path("choices.jsonl"),
    answers: Annotated[
        Path | None,
        typer.Option(help='JSONL with a line {"prompt": "...", "answers": ["...", "..."]} each.'),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, one a line, to be answered by --base.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="A checkpoint that answers --prompts.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Gives the second answer; without it --base does, less carefully."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a sheet to print, as HTML, and end.")
    ] = None,
    enter: Annotated[
        str | None, typer.Option(metavar="NAME", help="Type in what NAME ticked on a sheet.")
    ] = None,
    port: Annotated[int, typer.Option(help="Of the page; 0 takes a free one.")] = 0,
    federation: Federation = None,
    unverified: Annotated[
        bool, typer.Option(help="Take a folder that nobody signed, of any origin.")
    ] = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the hidden order, and of the answers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let people choose between two answers, on a page of this machine or on paper.

    Which answer is whose, and which stands left, is hidden. Every choice is on the disk at once;
    the same command goes on where people stopped. What most prefer becomes training data.

    Example: tapestry finetune charter collect charter.toml --answers answers.jsonl
    """
    from tapestry_finetune.charter import gathering  # noqa: PLC0415
    from tapestry_finetune.charter.choices import checked_name, open_choices  # noqa: PLC0415
    from tapestry_finetune.charter.models import Chosen  # noqa: PLC0415
    from tapestry_finetune.charter.settings import load_charter  # noqa: PLC0415

    read = load_charter(charter)
    name = None if enter is None else checked_name(enter)
    if out.suffix != ".jsonl" or not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: name a file that ends in .jsonl, in a folder that exists")
    if prompts is None:
        questions = gathering.questions_in(out, answers)
    elif answers is not None:
        raise ConfigError("--answers and --prompts exclude each other: give one of them")
    elif base is None:
        raise ConfigError("--prompts needs somebody who answers them: add --base CHECKPOINT")
    else:
        chosen = Chosen(base, bundle, federation, device, is_unverified=unverified)
        questions = gathering.questions_made(read, out, prompts, chosen, seed)
    with open_choices(out, questions, seed=seed) as choices:
        if sheet is not None:
            gathering.print_sheet(read, choices, sheet)
        elif name is not None:
            gathering.enter_choices(read, choices, name)
        else:
            gathering.serve(read, choices, port)
        gathering.tell(choices.agreement(), out, as_json=as_json)
