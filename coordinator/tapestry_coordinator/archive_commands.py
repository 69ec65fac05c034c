"""`tapestry coordinator archive ...`: what is kept of past rounds, and giving it to auditors."""

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapestry_coordinator.home import CoordinatorHome, find_home
from tapestry_coordinator.operator_commands import Dir, Json

if TYPE_CHECKING:
    from tapestry_coordinator.registry import Registry

app = typer.Typer(
    help="List and export what rounds were made from; [archive] in policy.toml says what is kept.",
    no_args_is_help=True,
)


@app.command(name="list")
def list_rounds(
    last: Annotated[int, typer.Option(min=1, help="So many of the newest rounds.")] = 20,
    folder: Dir = None,
    as_json: Json = False,
) -> None:
    """List rounds, newest first: what is kept of each, and whether it can be replayed from here.

    Example: tapestry coordinator archive list --dir fed
    """
    from tapestry_coordinator.archiving import kept_round  # noqa: PLC0415

    home = find_home(folder)
    rows: list[dict[str, Any]] = []
    with closing(_registry(home)) as registry:
        newest = len(registry.lineage()) - 1
        for number in range(newest, max(0, newest - last), -1):
            kept = kept_round(home, registry, number)
            rows.append(
                {
                    "round": number,
                    "replayable": kept.is_whole,
                    "files": len(kept.files) - len(kept.missing),
                    "missing": len(kept.missing),
                    "bytes": kept.size_bytes,
                }
            )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        typer.echo("no round has been published yet")
    for row in rows:
        word = "can be replayed" if row["replayable"] else "cannot be replayed any more"
        typer.echo(
            f"{row['round']:>6}  {row['files']:>4} files  {row['bytes'] / 1e6:>10,.1f} MB  {word}"
        )


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="New folder for it.")],
    round_number: Annotated[
        int | None, typer.Option("--round", help="Which round; default: the newest.")
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="That round and the ones before it.")] = 1,
    folder: Dir = None,
) -> None:
    """Copy what rounds were made from, with their checkpoints, for an auditor without network.

    What members have sent can give away something of their text: see docs/security.md.

    Example: tapestry coordinator archive export audit-7 --round 7 --dir fed, then
    tapestry checkpoint verify audit-7/published/round-000007 --archive audit-7
    """
    from tapestry.checkpoints.folder import folder_name  # noqa: PLC0415
    from tapestry_coordinator.archiving import export as export_rounds  # noqa: PLC0415

    home = find_home(folder)
    with closing(_registry(home)) as registry:
        number = len(registry.lineage()) - 1 if round_number is None else round_number
        numbers = range(max(1, number - last + 1), number + 1)
        size = export_rounds(home, registry, list(numbers) or [number], target)
    typer.echo(f"{target}: {size / 1e6:,.1f} MB; whoever has it can replay the round with")
    checkpoint = target / "published" / folder_name(number)
    typer.echo(f"  tapestry checkpoint verify {checkpoint} --archive {target}")


def _registry(home: CoordinatorHome) -> "Registry":
    from tapestry_coordinator.database import database_url  # noqa: PLC0415
    from tapestry_coordinator.registry import Registry  # noqa: PLC0415

    return Registry(database_url(home))
