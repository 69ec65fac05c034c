"""`tapestry ledger ...`: parse, call, render."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.errors import ConfigError, UntrustedError

app = typer.Typer(
    help="Show and verify a federation's ledger, and evidence of two histories. Needs no network.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Folder = Annotated[
    Path,
    typer.Argument(help="A coordinator's or a node's folder, its `ledger/`, or a mirror of that."),
]
Federation = Annotated[
    str | None,
    typer.Option(help="The federation's identity that you expect: 16 or more of its digits."),
]


@app.command()
def show(
    folder: Folder,
    last: Annotated[int, typer.Option(min=0, help="How many entries, the newest.")] = 20,
    as_json: Json = False,
) -> None:
    """Show the newest head, who has cosigned it, and the newest entries (after verifying them).

    Example: `tapestry ledger show fed --last 5`
    """
    from tapestry.cli.ledgers import entry_rows, head_table, opened_ledger  # noqa: PLC0415

    ledger = opened_ledger(folder)
    rows = entry_rows(ledger, last=last)
    if as_json:
        typer.echo(json.dumps({**head_table(ledger), "entries": rows}, indent=1))
        return
    _say_head(head_table(ledger))
    for row in rows:
        whom = f" {row['member_id']}" if row["member_id"] else ""
        where = f" of round {row['round']}" if row["round"] or row["kind"] != "member" else ""
        typer.echo(f"  {row['index']:>8}  {row['kind']}{whom}{where}  {row['digest'][:16]}")


@app.command()
def verify(folder: Folder, federation: Federation = None, as_json: Json = False) -> None:
    """Prove that a copy of a ledger is whole: exit code 0 or 1.

    Verifies the coordinator's signature, every entry against the head's root, and every file of
    digests: so a mirror that passes can be served by any web server.

    Example: `tapestry ledger verify /srv/mirror --federation 5f0c8e2a91d4b7f3`
    """
    from tapestry.cli.ledgers import head_table, opened_ledger  # noqa: PLC0415

    try:
        ledger = opened_ledger(folder, federation=federation)
        tiles = ledger.folder.require_tiles(ledger.stored)
    except UntrustedError as error:
        if as_json:
            typer.echo(json.dumps({"verified": False, "cause": str(error)}, indent=1))
        raise
    table = {
        "verified": True,
        **head_table(ledger),
        "tiles": tiles,
        "pinned": federation is not None,
    }
    if as_json:
        typer.echo(json.dumps(table, indent=1))
        return
    typer.echo(f"verified: {ledger.folder.path}")
    _say_head(table)
    typer.echo(f"  tiles       {tiles} files of digests, as the entries say")
    typer.echo(f"  identity    {ledger.genesis.genesis_digest}")
    if federation is None:
        typer.echo("              compare it with what the federation makes known, or add")
        typer.echo(f"              --federation {ledger.genesis.genesis_digest[:16]}")


@app.command()
def compare(
    one: Folder,
    other: Folder,
    out: Annotated[Path, typer.Option(help="Where the evidence goes, if there is any.")] = Path(
        "ledger-evidence.json"
    ),
    as_json: Json = False,
) -> None:
    """Compare two copies, such as your node's and another member's: exit code 1 if they differ.

    If one does not begin with the other, the coordinator has shown two histories, and the proof is
    written.

    Example: `tapestry ledger compare our-node /mnt/from-another-member`
    """
    from tapestry.cli.ledgers import fork_between, opened_ledger  # noqa: PLC0415
    from tapestry.storage.atomic import write_atomic  # noqa: PLC0415

    first, second = sorted(
        (opened_ledger(one), opened_ledger(other)), key=lambda each: each.stored.head.head.size
    )
    evidence = fork_between(first, second)
    if evidence is not None:
        write_atomic(out, evidence)
    sizes = [each.stored.head.head.size for each in (first, second)]
    if as_json:
        found = None if evidence is None else str(out)
        typer.echo(json.dumps({"one_history": evidence is None, "sizes": sizes, "evidence": found}))
    if evidence is not None:
        raise UntrustedError(
            f"two histories: {first.folder.path} and {second.folder.path} are both under the "
            f"coordinator's signature, and neither begins with the other; the proof is in {out}"
        )
    if not as_json:
        typer.echo(f"one history: {sizes[0]:,} entries are the first of {sizes[1]:,}")


@app.command()
def evidence(
    file: Annotated[Path, typer.Argument(help="What a node or `compare` wrote.")],
    genesis: Annotated[
        Path,
        typer.Option(
            help="Where the federation's genesis manifest is: a checkpoint's folder, a copy of the "
            "ledger, or the manifest itself."
        ),
    ],
    federation: Federation = None,
    as_json: Json = False,
) -> None:
    """Verify a proof that a coordinator has shown two histories: exit code 0 if it has.

    Example: `tapestry ledger evidence ledger-evidence-1790000000.json --genesis round-000003`
    """
    from tapestry.cli.ledgers import read_genesis  # noqa: PLC0415
    from tapestry.ledger.evidence import verify_evidence  # noqa: PLC0415
    from tapestry.ledger.heads import origin_of  # noqa: PLC0415

    found = read_genesis(genesis, federation=federation)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    fork = verify_evidence(
        data,
        origin=origin_of(found.origin.federation, found.genesis_digest),
        public_key=found.coordinator_key,
        what=str(file),
    )
    if as_json:
        table = {
            "proved": True,
            "origin": fork.first.origin,
            "sizes": [fork.first.size, fork.second.size],
            "roots": [fork.first.root.hex(), fork.root.hex()],
        }
        typer.echo(json.dumps(table, indent=1))
        return
    typer.echo(f"proved: {fork.words}")
    typer.echo(f"  federation's identity   {found.genesis_digest}")


def _say_head(table: dict[str, Any]) -> None:
    typer.echo(f"  ledger      {table['origin']}")
    typer.echo(f"  entries     {table['size']:,}")
    typer.echo(f"  root        {table['root']}")
    names = ", ".join(table["cosigned"]) or "nobody"
    typer.echo(f"  cosigned    by {names}")
