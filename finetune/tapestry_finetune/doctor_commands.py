"""`tapestry finetune doctor`: parse, call, render."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.cli.bars import bar, printable
from tapestry_finetune.options import Columns, Roles, RowShape, Unverified, mapping


def doctor(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Files or folders: .jsonl .json .csv .tsv .parquet .txt .md, also compressed."
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(help="A published checkpoint: what your text costs in its tokens."),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="Files you will measure with: none of it may stand in the data."),
    ] = None,
    declared_language: Annotated[
        str, typer.Option(help="The language that the data should be in, such as tam.")
    ] = "",
    shape: RowShape = None,
    role: Roles = None,
    column: Columns = None,
    skip_bad: Annotated[
        Path | None, typer.Option(help="Move bad rows to this file, with their reasons.")
    ] = None,
    unverified: Unverified = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look at your data before you train: faults, languages, duplicates, cost, leaks, licence.

    Nothing is changed, and nothing leaves the machine.

    Example: tapestry finetune doctor chats.jsonl texts/ --base published/round-000020
    --evaluation suite.jsonl --declared-language tam
    """
    from tapestry.data.language import language_tag  # noqa: PLC0415
    from tapestry_finetune.base import open_base  # noqa: PLC0415 - imports torch
    from tapestry_finetune.doctor import diagnose  # noqa: PLC0415
    from tapestry_finetune.rows.faults import RowFaults  # noqa: PLC0415
    from tapestry_finetune.rows.reading import read_files  # noqa: PLC0415
    from tapestry_finetune.rows.shapes import Reading  # noqa: PLC0415

    declared = language_tag(declared_language) if declared_language else ""
    reading = Reading(shape, mapping(role, "--role"), mapping(column, "--column"))
    opened = None if base is None else open_base(base, unverified=unverified)
    with bar() as shown:
        try:
            found = read_files(
                data,
                reading,
                skip_bad=skip_bad,
                on_progress=lambda what, done, of: shown.show(what, done, of, unit="bytes"),
            )
        except RowFaults as error:
            if not as_json:
                raise
            typer.echo(json.dumps({"faults": [asdict(fault) for fault in error.faults]}, indent=1))
            raise typer.Exit(1) from None
        made = diagnose(
            found,
            base=opened,
            evaluation=evaluation or [],
            declared=declared,
            on_rows=lambda what, done, of: shown.show(what, done, of, unit="rows"),
        )
    if as_json:
        table = {"announcements": found.announcements(), "skipped": found.skipped}
        typer.echo(json.dumps(table | made.as_json(), indent=1, ensure_ascii=False))
        return
    for line in [*found.announcements(), *_summary(made), *_findings(made)]:
        typer.echo(printable(line))


def _summary(made: Any) -> list[str]:  # noqa: ANN401 - a Diagnosis, whose module is not for --help
    from tapestry.data.language import language_name  # noqa: PLC0415

    whole = max(1, sum(share.bytes for share in made.languages))
    languages = ", ".join(
        f"{language_name(share.language)} {share.bytes / whole:.0%}" for share in made.languages[:5]
    )
    exact = sum(repeat.similarity == 1 for repeat in made.repeats)
    lines = [
        f"  languages   {languages}",
        f"  duplicates  {exact:,} word for word, {len(made.repeats) - exact:,} nearly",
    ]
    for cost in made.costs:
        times = "" if cost.times_english is None else f", about {cost.times_english:.1f} x English"
        name = language_name(cost.language)
        lines.append(f"  tokens      {name}: {cost.bytes_per_token:.2f} bytes a token{times}")
    if made.overlap is not None:
        seen = made.overlap
        lines.append(f"  evaluation  {len(seen.leaks):,} of {seen.rows:,} rows stand in the data")
    said = ", ".join([*made.licences.files, *made.licences.said]) or "none found"
    lines.append(f"  licence     {said}")
    return lines


def _findings(made: Any) -> list[str]:  # noqa: ANN401
    if not made.findings:
        return ["nothing to mend"]
    return [f"{finding.level}: {finding.what}" for finding in made.findings]
