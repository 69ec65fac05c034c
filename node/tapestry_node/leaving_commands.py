"""`tapestry node leave | verify-export`: taking everything along."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapestry.cli.bars import bar
from tapestry.cli.running import default_home
from tapestry.errors import ConfigError, TapestryError, UnavailableError
from tapestry_node.island_commands import island_app
from tapestry_node.options import AsJson, Folder

if TYPE_CHECKING:
    from tapestry_node.client import NodeClient
    from tapestry_node.exporting import Contents
    from tapestry_node.home import NodeHome

_clock = time.time  # noqa: TID251 - the edge that owns the clock


class Spool(StrEnum):
    """What becomes of a contribution that is finished and not sent."""

    SEND = "send"
    DROP = "drop"


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(island_app, name="island")
    app.command()(leave)
    app.command()(verify_export)


def leave(
    folder: Folder = None,
    export: Annotated[
        Path | None, typer.Option(help="New folder for everything that you take along.")
    ] = None,
    spool: Annotated[
        Spool | None, typer.Option(help="What becomes of a contribution that is not sent yet.")
    ] = None,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Take the private keys along (0600).")
    ] = False,
    with_packed_corpus: Annotated[
        bool, typer.Option("--with-packed-corpus", help="Take the text along, tokenized.")
    ] = False,
    revoke_only: Annotated[
        bool, typer.Option("--revoke-only", help="Only end the membership; the export is made.")
    ] = False,
    reason: Annotated[str, typer.Option(help="For the federation's operators.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; needs --yes. What is done goes to stderr.")
    ] = False,
) -> None:
    """Leave the federation: take everything along, verified; then end the membership.

    The export holds the model with its lineage, optimizer state, receipts, egress ledger, settings
    and a description of the corpus, never the text. Nothing is deleted in the node's folder. An
    export that was cut short goes on where it stood.

    Examples: tapestry node leave node --export our-export;
    tapestry node leave node --export our-export --yes --json
    """
    from tapestry.storage.locks import alone  # noqa: PLC0415
    from tapestry_node.home import require_node  # noqa: PLC0415
    from tapestry_node.leaving import require_member  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    require_member(home)
    if revoke_only == (export is not None):
        raise ConfigError("name a folder with --export, or add --revoke-only if that is done")
    if as_json and not yes:
        raise ConfigError("--json asks no questions: add --yes, and mean it")
    say = partial(typer.echo, err=as_json)
    target = None if export is None else export.resolve()
    if target is not None and target.exists():
        raise ConfigError(f"{export}: exists already; name a new folder")
    if target is not None and target.is_relative_to(home.folder):
        raise ConfigError(f"{export}: is in the node's own folder; name one beside it")
    with alone(home.folder, who="this node"):
        made, table = None, None
        if target is not None:
            made = _gather(
                home, spool, say, with_keys=with_keys, with_packed_corpus=with_packed_corpus
            )
            say(
                f"the export: checkpoint {made.round}, {len(made.pieces)} files, "
                f"{made.size_bytes:,} bytes, to {target}"
            )
        if not yes and not typer.confirm(_question(home)):
            raise ConfigError("nothing was done; this node is a member as before")
        if target is not None and made is not None:
            table = _export(home, made, target, say)
        when = _end(home, reason, target)
        say(f"the membership ended at {when}; everything stays in {home.folder}")
    if as_json:
        left = json.loads(home.left.read_text(encoding="utf-8"))
        typer.echo(json.dumps({**left, "verified": table}, indent=1))


def _question(home: "NodeHome") -> str:
    known = home.identity.load()
    return f"end the membership of {known.member_id} in {known.federation}, for good?"


def _gather(
    home: "NodeHome",
    spool: Spool | None,
    say: Callable[[str], None],
    *,
    with_keys: bool,
    with_packed_corpus: bool,
) -> "Contents":
    """Bring the node up to date as far as the coordinator answers; return what is exported."""
    from tapestry_node.exporting import contents  # noqa: PLC0415
    from tapestry_node.leaving import bring_up_to_date, settle_spool  # noqa: PLC0415

    with _connected(home) as client:
        reached = bring_up_to_date(home, client, say)
        if reached.obstacle:
            say(f"{reached.obstacle}; the export is made of what is here")
        settle_spool(home, client, None if spool is None else spool.value, say)
    return contents(
        home,
        card=reached.card,
        with_keys=with_keys,
        with_packed_corpus=with_packed_corpus,
    )


def _export(
    home: "NodeHome", made: "Contents", target: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the export, and verify it as anybody may."""
    from tapestry_node.exporting import export_to  # noqa: PLC0415
    from tapestry_node.verifying import said  # noqa: PLC0415 - imports torch
    from tapestry_node.verifying import verify_export as verify  # noqa: PLC0415

    with bar() as shown:
        count = shown.counting("copying", made.size_bytes, unit="bytes")
        export_to(target, home, made, now=_clock(), on_bytes=count)
        table = verify(target, on_bytes=partial(shown.show, "verifying", unit="bytes"))
    say(said(table, target))
    return table


def _end(home: "NodeHome", reason: str, target: Path | None) -> str:
    """End the membership; return when, in words."""
    from tapestry_node.leaving import revoke  # noqa: PLC0415

    try:
        with _connected(home) as client:
            return revoke(home, client, reason=reason, export=target)
    except UnavailableError as error:
        is_made = "" if target is None else "the export is made, but "
        raise UnavailableError(
            f"{is_made}the membership still stands: {error}; end it when the coordinator answers: "
            f"tapestry node leave {home.folder} --revoke-only"
        ) from error


def verify_export(
    folder: Annotated[Path, typer.Argument(help="What `tapestry node leave --export` made.")],
    as_json: AsJson = False,
) -> None:
    """Prove that an export is whole and enough to found a federation: exit code 0 or 1.

    Verifies every file's digest, the signature and whose it is, the lineage from genesis, that the
    model can be built, the chain of the egress ledger, and every receipt. Needs neither the node
    nor a network.

    Example: tapestry node verify-export our-export
    """
    from tapestry_node.verifying import said  # noqa: PLC0415 - imports torch
    from tapestry_node.verifying import verify_export as verify  # noqa: PLC0415

    try:
        with bar() as shown:
            table = verify(folder, on_bytes=partial(shown.show, "verifying", unit="bytes"))
    except TapestryError as error:
        if as_json:
            typer.echo(json.dumps({"verified": False, "cause": str(error)}, indent=1))
        raise
    typer.echo(json.dumps(table, indent=1) if as_json else said(table, folder))


def _connected(home: "NodeHome") -> "AbstractContextManager[NodeClient]":
    """Connect as this node, which does not run."""
    from tapestry_node.client import connected  # noqa: PLC0415 - imports grpc

    return connected(home, clock=_clock, allowed_by=home.load_settings().policy.digest())
