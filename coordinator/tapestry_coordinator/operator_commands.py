"""`tapestry coordinator status | pause | invite ...`: what an operator does, here or from afar."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapestry.cli.bars import bar
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import find_home

if TYPE_CHECKING:
    from tapestry.wire.admin import Operates
    from tapestry_coordinator.operating import Operator

Dir = Annotated[
    Path | None,
    typer.Option("--dir", help="The coordinator's folder; default: below your data directory."),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--as",
        metavar="NODE_HOME",
        help="Do it from afar instead: as the operator whose node lies in this folder.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Member = Annotated[str, typer.Argument(help="The institution's id, a slug such as fr-bnf.")]

_now = time.time  # noqa: TID251 - the edge that owns the clock


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    commands: tuple[Callable[..., None], ...] = (
        *(status, members, rounds, invite, invitations, revoke, pause, resume, log),
        *(exclusions, release, revert, backup, restore),
    )
    for command in commands:
        app.command()(command)


def status(*, folder: Dir = None, node: From = None, as_json: Json = False) -> None:
    """Show the round, the newest checkpoint, and what members measured of it.

    Example: tapestry coordinator status --dir fed

    From afar: tapestry coordinator status --as ~/operator --json
    """
    _show("status", folder, node, as_json=as_json)


def members(*, folder: Dir = None, node: From = None, as_json: Json = False) -> None:
    """List the members: role, status, when they joined and were last seen.

    Example: tapestry coordinator members --dir fed
    """
    _show("members", folder, node, as_json=as_json)


def rounds(
    *,
    last: Annotated[int, typer.Option(min=1, max=1000, help="So many of the newest.")] = 10,
    folder: Dir = None,
    node: From = None,
    as_json: Json = False,
) -> None:
    """List rounds: when they opened and how long they took, who was absent and why, bytes.

    Example: tapestry coordinator rounds --last 5 --dir fed
    """
    _show("rounds", folder, node, as_json=as_json, last=last)


def invitations(
    *,
    last: Annotated[int, typer.Option(min=1, max=1000, help="So many of the newest.")] = 100,
    folder: Dir = None,
    node: From = None,
    as_json: Json = False,
) -> None:
    """List invitations: open, used, expired or withdrawn. Nobody can read their secrets again.

    Example: tapestry coordinator invitations --dir fed
    """
    _show("invitations", folder, node, as_json=as_json, last=last)


def exclusions(
    member: Annotated[str | None, typer.Argument(help="Of this member only.")] = None,
    *,
    last: Annotated[int, typer.Option(min=1, max=1000, help="So many of the newest.")] = 100,
    folder: Dir = None,
    node: From = None,
    as_json: Json = False,
) -> None:
    """List what was left out, why, and what the members say to it.

    Example: tapestry coordinator exclusions fr-bnf --dir fed
    """
    _show("exclusions", folder, node, as_json=as_json, last=last, member=member)


def log(
    *,
    last: Annotated[int, typer.Option(min=1, max=1000, help="So many of the newest.")] = 50,
    folder: Dir = None,
    node: From = None,
    as_json: Json = False,
) -> None:
    """List what operators did: when, who, what.

    Example: tapestry coordinator log --last 20 --dir fed
    """
    _show("log", folder, node, as_json=as_json, last=last)


def pause(
    *,
    reason: Annotated[str, typer.Option(help="A sentence that the members are told.")] = "",
    folder: Dir = None,
    node: From = None,
    as_json: Json = False,
) -> None:
    """Let no further round open. One that is open goes on to its end; restarts change nothing.

    Example: tapestry coordinator pause --reason "new disks, back at 14:00 UTC" --dir fed
    """
    from tapestry_coordinator.rendering import pause_line  # noqa: PLC0415

    with _operator(folder, node) as operator:
        table = operator.pause(reason)
    typer.echo(json.dumps(table, indent=1) if as_json else pause_line(table))


def resume(*, folder: Dir = None, node: From = None, as_json: Json = False) -> None:
    """Let rounds open again.

    Example: tapestry coordinator resume --dir fed
    """
    with _operator(folder, node) as operator:
        table = operator.resume()
    done = "resumed" if table["was_paused"] else "nothing to resume: rounds are not paused"
    typer.echo(json.dumps(table, indent=1) if as_json else done)


def invite(
    member: Member,
    *,
    role: Annotated[
        str,
        typer.Option(
            help="contributor trains; observer watches, fetches and measures; operator does what "
            "an observer does and runs the federation from afar (--as)."
        ),
    ] = "contributor",
    resend: Annotated[
        bool,
        typer.Option(
            "--resend",
            help="Withdraw its open invitation; or let a member join anew that has lost its folder "
            "or whose certificate has expired.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the invitation to this file (0600) instead.")
    ] = None,
    folder: Dir = None,
    node: From = None,
    as_json: Json = False,
) -> None:
    """Print an invitation: one use, expiring; whoever holds it can join as MEMBER.

    It carries the address, the federation's root certificate and a secret token: send it by a
    channel you trust, and let the institution compare the fingerprint by another.

    Example: tapestry coordinator invite fr-bnf --dir fed --out fr-bnf.invitation

    One that only watches: tapestry coordinator invite is-lbs --role observer --dir fed
    """
    from tapestry.identity.certificates import (  # noqa: PLC0415
        fingerprint,
        format_fingerprint,
    )
    from tapestry.storage.atomic import write_atomic  # noqa: PLC0415

    with _operator(folder, node) as operator:
        table = operator.invite(member, role=role, replaces=resend)
    until = datetime.fromtimestamp(table["expires_at"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    shown = format_fingerprint(fingerprint(table.pop("root_certificate").encode()))
    text = table["invitation"]
    if as_json:
        text = json.dumps({**table, "root_fingerprint": shown}, indent=1)
    if out is None:
        typer.echo(text)
    else:
        write_atomic(out, text + "\n", mode=0o600)
        typer.echo(f"written to {out}", err=True)
    typer.echo(f"for {member} as {role}, valid once, until {until}", err=True)
    typer.echo(f"root fingerprint {shown}", err=True)


def revoke(member: Member, *, folder: Dir = None, node: From = None, as_json: Json = False) -> None:
    """End a membership; in force at the member's next call, on open connections too.

    Open invitations to it are withdrawn.

    Example: tapestry coordinator revoke fr-bnf --dir fed
    """
    with _operator(folder, node) as operator:
        table = operator.revoke(member)
    if as_json:
        typer.echo(json.dumps(table, indent=1))
        return
    if table["was_member"]:
        typer.echo(f"{member} is not a member any more")
    if table["withdrawn_invitations"]:
        typer.echo(f"invitations withdrawn: {table['withdrawn_invitations']}")
    left, quorum = table["contributors_left"], table["quorum"]
    if left < quorum:
        typer.echo(f"members left: {left}; the quorum is {quorum}: no round ends until more join")


def release(
    number: Annotated[int, typer.Argument(help="The round, as `status` shows it.")],
    *,
    reason: Annotated[str, typer.Option(help="Kept with the decision.")] = "",
    folder: Dir = None,
) -> None:
    """Publish a candidate although a member found it worse for its text.

    Example: tapestry coordinator release 42 --reason "agreed with fr-bnf by phone" --dir fed
    """
    _rule(folder, number, is_released=True, reason=reason)


def revert(
    number: Annotated[int, typer.Argument(help="The round, as `status` shows it.")],
    *,
    reason: Annotated[str, typer.Option(help="Stands in the manifest, for everybody to read.")],
    folder: Dir = None,
) -> None:
    """Leave the consensus as it was: the candidate is dropped, and the reason published.

    Example: tapestry coordinator revert 42 --reason "is-lbs lost .3 bits per byte" --dir fed
    """
    _rule(folder, number, is_released=False, reason=reason)


def _rule(folder: Path | None, number: int, *, is_released: bool, reason: str) -> None:
    with _here(folder) as operator:
        operator.rule(number, is_released=is_released, reason=reason)
    what = "published" if is_released else "dropped"
    typer.echo(f"round {number}: the candidate is to be {what}")


def backup(
    file: Annotated[Path, typer.Argument(help="The new file, such as fed.tar.")],
    *,
    folder: Dir = None,
    as_json: Json = False,
) -> None:
    """Write all that a coordinator needs to go on elsewhere into one file; safe while it runs.

    Settings, policy, keys, database, genesis, the newest checkpoint with the outer state, and what
    the open round has acknowledged, as of one moment. Whoever has the file can act as the
    federation: keep it like its keys.

    Example: tapestry coordinator backup /backups/fed-monday.tar --dir fed
    """
    from tapestry_coordinator.backup import back_up  # noqa: PLC0415

    with bar() as shown:
        on_bytes = partial(shown.show, "writing", unit="bytes")
        made = back_up(find_home(folder), file, now=_now(), on_bytes=on_bytes)
    table = {
        "file": str(file),
        "federation": made.federation,
        "newest_checkpoint": made.newest_checkpoint,
        "files": len(made.files),
        "bytes": sum(entry.size_bytes for entry in made.files),
    }
    done = (
        f"{file}: checkpoint {made.newest_checkpoint} and all that goes with it, "
        f"{table['files']} files, {table['bytes']:,} bytes"
    )
    typer.echo(json.dumps(table, indent=1) if as_json else done)


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `backup` wrote.")],
    folder: Annotated[Path, typer.Argument(help="New or empty folder for the coordinator.")],
) -> None:
    """Make a coordinator's folder of a backup; verified whole before it appears.

    Serve it only where the old one serves no more: two coordinators of one federation would make
    two histories, and members refuse the second. Later rounds than the backup's are lost, and a
    member that has seen them refuses to go back: restore the newest backup there is.

    Example: tapestry coordinator restore /backups/fed-monday.tar fed
    """
    from tapestry_coordinator.restoring import restore as restore_to  # noqa: PLC0415

    with bar() as shown:
        on_bytes = partial(shown.show, "reading", unit="bytes")
        made = restore_to(file, folder, on_bytes=on_bytes)
    typer.echo(f"{folder}: verified; its newest checkpoint is {made.newest_checkpoint}")
    typer.echo(f"next: look at [network] in {folder / settings_module.SETTINGS_FILE}, then")
    typer.echo(f"  tapestry coordinator serve {folder}")


def _show(
    view: str,
    folder: Path | None,
    node: Path | None,
    *,
    as_json: bool,
    last: int = 1,
    member: str | None = None,
) -> None:
    from tapestry_coordinator import rendering  # noqa: PLC0415 - imports rich

    with _operator(folder, node) as operator:
        table = operator.show(view, last=last)
    if member is not None:
        table = {view: [row for row in table[view] if row["member_id"] == member]}
    if as_json:
        typer.echo(json.dumps(table, indent=1))
    else:
        rendering.show(view, table)


@contextmanager
def _operator(folder: Path | None, node: Path | None) -> "Iterator[Operates]":
    """Yield what acts: on the registry in a folder, or over the network."""
    if node is not None:
        if folder is not None:
            raise typer.BadParameter("give either --dir or --as: the folder, or from afar")
        with _from_afar(node) as client:
            yield client
        return
    with _here(folder) as operator:
        yield operator


@contextmanager
def _here(folder: Path | None) -> "Iterator[Operator]":
    from tapestry_coordinator.database import database_url  # noqa: PLC0415
    from tapestry_coordinator.operating import Operator  # noqa: PLC0415
    from tapestry_coordinator.registry import Registry  # noqa: PLC0415

    home = find_home(folder)
    with closing(Registry(database_url(home))) as registry:
        yield Operator(home, registry)


@contextmanager
def _from_afar(node: Path) -> "Iterator[Operates]":
    from tapestry.identity.membership import IdentityFolder  # noqa: PLC0415
    from tapestry.wire.admin import AdminClient  # noqa: PLC0415 - imports grpc
    from tapestry.wire.egress import EGRESS_FILE, EgressLedger  # noqa: PLC0415
    from tapestry.wire.members import open_member_channel  # noqa: PLC0415

    identity = IdentityFolder(node.resolve() / "identity")
    membership = identity.load()
    ledger = EgressLedger(node.resolve() / EGRESS_FILE, to=membership.address, clock=_now)
    with closing(ledger), open_member_channel(membership, identity, ledger) as channel:
        yield AdminClient(channel, membership.address)
