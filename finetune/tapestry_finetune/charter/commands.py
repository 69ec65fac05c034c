"""`tapestry finetune charter ...`: parse, call, render."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tapestry.cli.bars import bar
from tapestry.errors import ConfigError
from tapestry_finetune.charter.collect_commands import collect
from tapestry_finetune.options import Device, Federation

app = typer.Typer(
    help="Your community's values in one file: write it, check it, collect choices, score models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)

CharterFile = Annotated[Path, typer.Argument(help="A charter: charter.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="New file, such as charter.toml.")],
    language: Annotated[str, typer.Option(help="Tag of the charter's language: qu, pt-BR, ...")],
) -> None:
    """Write a charter to fill in, with remarks that say what belongs where.

    Example: tapestry finetune charter new charter.toml --language qu
    """
    from tapestry.storage.atomic import write_atomic  # noqa: PLC0415
    from tapestry_finetune.charter.starter import starter  # noqa: PLC0415

    if file.exists():
        raise ConfigError(f"{file}: exists already; name a new file")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"{file.parent}: no such folder")
    write_atomic(file, starter(language))
    typer.echo(f"{file}: fill it in with any text editor, then look at it with")
    typer.echo(f"  tapestry finetune charter lint {file}")


@app.command()
def lint(charter: CharterFile, as_json: AsJson = False) -> None:
    """Look a charter through before a board adopts it; exit code 1 if something must be mended.

    Errors would make it useless or misleading: a principle with too few cases, a contradiction, a
    protected term that stops everything. Hints are worth a thought.

    Example: tapestry finetune charter lint charter.toml
    """
    from tapestry_finetune.charter.cases import held_out  # noqa: PLC0415
    from tapestry_finetune.charter.linting import lint as looked_through  # noqa: PLC0415
    from tapestry_finetune.charter.settings import read_charter  # noqa: PLC0415
    from tapestry_finetune.charter.votes import group_aware_consensus  # noqa: PLC0415

    read = read_charter(charter)
    findings = looked_through(read)
    kept = held_out(read)
    principles = {}
    for one in read.principle:
        mine = [k for case, k in zip(read.case, kept, strict=True) if one.id in case.principles]
        consensus = group_aware_consensus(one.votes) if one.votes else None
        principles[one.id] = {"cases": len(mine), "held_out": sum(mine), "consensus": consensus}
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        found = [asdict(finding) for finding in findings]
        told = {"digest": read.digest, "errors": errors, "principles": principles}
        typer.echo(json.dumps({**told, "findings": found}, ensure_ascii=False, indent=2))
    else:
        for name, of in principles.items():
            consensus = of["consensus"]
            shown = "" if consensus is None else f", group-aware consensus {consensus:.2f}"
            typer.echo(f"{name}: {of['cases']} cases, {of['held_out']} held out{shown}")
        for finding in findings:
            typer.echo(f"{finding.level}: {finding.where}: {finding.what}")
        hints = len(findings) - errors
        typer.echo(
            f"{errors} error{'' if errors == 1 else 's'}, {hints} hint{'' if hints == 1 else 's'}; "
            f"digest {read.digest[:16]}"
        )
    if errors:
        raise typer.Exit(1)


@app.command()
def render(charter: CharterFile) -> None:
    """Print the charter as the system prompt that tells a model what to keep.

    Example: tapestry finetune charter render charter.toml
    """
    from tapestry_finetune.charter.prompt import render as rendered  # noqa: PLC0415
    from tapestry_finetune.charter.settings import load_charter  # noqa: PLC0415

    typer.echo(rendered(load_charter(charter)))


@app.command()
def score(
    charter: CharterFile,
    base: Annotated[Path, typer.Argument(help="A published checkpoint's folder.")],
    bundle: Annotated[
        Path | None, typer.Option(help="Score this bundle on the checkpoint, not the checkpoint.")
    ] = None,
    with_prompt: Annotated[
        bool, typer.Option("--with-prompt", help="Tell the model the charter first.")
    ] = False,
    federation: Federation = None,
    unverified: Annotated[
        bool, typer.Option(help="Take a folder that nobody signed, of any origin.")
    ] = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the intervals.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model keeps the charter, on the cases that were never trained on.

    For each: does it find the good answer likelier than the bad one? No other model judges.

    Example: tapestry finetune charter score charter.toml published/round-000020 --bundle mine
    """
    from tapestry_finetune.charter.models import Chosen  # noqa: PLC0415
    from tapestry_finetune.charter.settings import load_charter  # noqa: PLC0415
    from tapestry_finetune.charter.speakers import score_chosen  # noqa: PLC0415

    read = load_charter(charter)
    chosen = Chosen(base, bundle, federation, device, is_unverified=unverified)
    with bar() as shown:
        found = score_chosen(
            read,
            chosen,
            with_prompt=with_prompt,
            seed=seed,
            on_progress=lambda done, of: shown.show("scoring", done, of, unit="pairs"),
        )
    if as_json:
        told = {"charter": read.digest, "with_prompt": with_prompt, **found.as_json()}
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    typer.echo(f"{'':<24} pairs  kept per token   95 %          raw    margin (nats/token)")
    for name, share in {"all": found.overall, **found.by_principle}.items():
        low, high = share.token_interval
        kept = f"{share.token_accuracy:>14.0%}   {low:>4.0%} - {high:<4.0%}"
        rest = f"{share.raw_accuracy:>6.0%}  {share.token_margin:>+8.3f}"
        typer.echo(f"{name:<24} {share.pairs:>5}  {kept}  {rest}")
    typer.echo(f"by the principles' weights: {found.weighted_accuracy:.0%}")


app.command()(collect)
