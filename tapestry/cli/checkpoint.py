"""`tapestry checkpoint ...`: parse, call, render."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.cli.bars import bar
from tapestry.cli.running import default_home, existing
from tapestry.cli.verifying import verify
from tapestry.errors import ConfigError

app = typer.Typer(
    help="Verify, show, list and fetch published checkpoints.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)

_clock = time.time  # noqa: TID251 - the edge that owns the clock

Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Folder = Annotated[Path, typer.Argument(help="A published checkpoint's folder, or a copy of one.")]


app.command()(verify)


@app.command()
def show(folder: Folder, as_json: Json = False) -> None:
    """Show what a checkpoint is and what it was made from (after verifying it)."""
    from tapestry.checkpoints.verify import verify_checkpoint  # noqa: PLC0415

    verified = verify_checkpoint(existing(folder))
    manifest = verified.manifest
    if as_json:
        typer.echo(json.dumps(manifest.model_dump(mode="json"), indent=1))
        return
    typer.echo(f"checkpoint {manifest.round} of {verified.lineage.origin.federation}")
    typer.echo(f"  digest      {verified.manifest_digest}")
    typer.echo(f"  model       {verified.lineage.origin.trained_of(manifest.elements)}")
    made = manifest.made
    if made is None:
        typer.echo("  genesis: " + json.dumps(verified.lineage.origin.settings))
        return
    typer.echo(
        f"  made by     {made.outer.optimizer} (learning rate {made.outer.learning_rate:g}, "
        f"momentum {made.outer.momentum:g}), codec {made.codec}, {made.inner.steps} inner steps"
    )
    typer.echo(f"  by          {made.rule.described}")
    for part in made.participation:
        typer.echo(
            f"  {part.member_id:<24} weight {part.weight:.4f}  {part.tokens:>12,} tokens  "
            f"clip {part.clip_factor:.3f}{f'  {part.staleness} late' if part.staleness else ''}"
            f"{f'  {part.reason}' if part.reason else ''}"
        )
    for absence in made.absent:
        typer.echo(f"  {absence.member_id:<24} absent: {absence.reason}")
    for entry in verified.card.evaluations:
        typer.echo(
            f"  {entry.member_id:<24} {entry.bits_per_byte:.4f} bits per byte on {entry.language}"
        )


@app.command(name="list")
def list_checkpoints(
    folder: Annotated[
        Path, typer.Argument(help="A folder of checkpoints: a coordinator's `published`.")
    ],
    as_json: Json = False,
) -> None:
    """List the checkpoints in a folder with what members measured (signatures verified)."""
    from tapestry.checkpoints.folder import CARD_FILE, read_envelope, read_lineage  # noqa: PLC0415
    from tapestry.checkpoints.manifest import Card, verify_lineage  # noqa: PLC0415

    rows: list[dict[str, Any]] = []
    for path in sorted(existing(folder).glob("round-*")):
        lineage = verify_lineage(read_lineage(path))
        envelope = read_envelope(path / CARD_FILE, what="card")
        card = Card.opened(envelope, public_key=lineage.coordinator_key, what="card")
        made = lineage.newest.made
        measured = {entry.member_id: entry.bits_per_byte for entry in card.evaluations}
        rows.append(
            {
                "round": lineage.newest.round,
                "digest": lineage.newest_digest,
                "members": len(made.participation) if made else 0,
                "bits_per_byte": measured,
                "folder": str(path),
            }
        )
    if not rows:
        raise ConfigError(
            f"{folder}: no checkpoints here (folders round-000000, ...); a coordinator keeps them "
            "in its folder `published`"
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        values = list(row["bits_per_byte"].values())
        mean = f"{sum(values) / len(values):.4f} bits per byte" if values else "not measured"
        typer.echo(f"{row['round']:>6}  {row['digest'][:16]}  {row['members']:>3} members  {mean}")


@app.command()
def pull(
    out: Annotated[Path, typer.Argument(help="New folder for the checkpoint.")],
    node: Annotated[
        Path | None,
        typer.Option("--dir", help="The node whose membership is used; default: yours."),
    ] = None,
    round_number: Annotated[
        int | None, typer.Option("--round", help="Which one; default: the newest.")
    ] = None,
    archive: Annotated[
        bool,
        typer.Option(
            "--archive",
            help="With the one before it and what it was made from, to replay it; for auditors.",
        ),
    ] = False,
) -> None:
    """Fetch a checkpoint from the coordinator, whole and verified; goes on after a break.

    Example for an auditor: tapestry checkpoint pull audit-7 --round 7 --archive --dir auditor, then
    tapestry checkpoint verify audit-7/published/round-000007 --archive audit-7
    """
    from tapestry.identity.membership import IdentityFolder  # noqa: PLC0415
    from tapestry.wire.archives import ArchiveReader, pull_archived  # noqa: PLC0415
    from tapestry.wire.egress import EGRESS_FILE, EgressLedger  # noqa: PLC0415
    from tapestry.wire.fetching import Fetcher  # noqa: PLC0415
    from tapestry.wire.kernel import counted  # noqa: PLC0415
    from tapestry.wire.members import open_member_channel  # noqa: PLC0415

    if out.exists() and not archive:
        raise ConfigError(f"{out}: exists already; name a new folder")
    home = (node or default_home("node")).resolve()
    identity = IdentityFolder(home / "identity")
    membership = identity.load()
    ledger = EgressLedger(home / EGRESS_FILE, to=membership.address, clock=_clock)
    with (
        bar() as shown,
        closing(ledger),
        open_member_channel(membership, identity, ledger) as channel,
        counted(ledger, clock=_clock),
    ):
        fetcher = Fetcher(channel, membership.address)
        on_bytes = shown.counting("fetching", 0, unit="bytes")
        if archive:
            reader = ArchiveReader(channel, membership.address)
            verified = pull_archived(
                fetcher,
                reader,
                out.resolve(),
                round_number=round_number,
                federation=membership.genesis,
                on_bytes=on_bytes,
            )
        else:
            verified = fetcher.pull(
                out.resolve(),
                round_number=round_number,
                federation=membership.genesis,
                on_bytes=on_bytes,
            )
    typer.echo(f"{out}: checkpoint {verified.manifest.round} of {membership.federation}, verified")
    if archive:
        typer.echo(f"replay it with: tapestry checkpoint verify {verified.folder} --archive {out}")
