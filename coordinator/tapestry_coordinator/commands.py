"""`tapestry coordinator ...`: parse, call, render."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.cli.running import log_to_stderr
from tapestry.config import parse_settings
from tapestry.errors import ConfigError
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome, find_home
from tapestry_coordinator.policy_commands import app as policy_app
from tapestry_coordinator.web import commands as web_commands
from tapestry_coordinator.web.settings import PageSettings

app = typer.Typer(
    help="Make a federation, invite members, run rounds, publish checkpoints.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)

app.add_typer(policy_app, name="policy")

Dir = Annotated[
    Path | None,
    typer.Option("--dir", help="The coordinator's folder; default: below your data directory."),
]
Database = Annotated[
    str,
    typer.Option(
        help="Registry in PostgreSQL, postgresql+psycopg://user@host/name, instead of a file in "
        "the folder. Keep its password in ~/.pgpass."
    ),
]
BlobStore = Annotated[
    str,
    typer.Option(
        help="Keep contributions and checkpoints in this store too: s3://bucket/prefix or "
        "file:///shared/folder. Credentials come from the environment."
    ),
]
Now = time.time  # noqa: TID251 - the edge that owns the clock


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for the coordinator.")],
    name: Annotated[str, typer.Option("--name", help="Name of the federation, a short slug.")],
    address: Annotated[
        str, typer.Option(help="host:port under which members reach this machine.")
    ] = "localhost:7443",
    size: Annotated[
        str, typer.Option(help="Model from scratch: tiny (1M), small (30M), base (0.1B), 1b.")
    ] = "tiny",
    model: Annotated[
        Path | None,
        typer.Option(help="Adopt this model (a folder in transformers' format) instead."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use this tokenizer.json instead of training one.")
    ] = None,
    pool: Annotated[
        list[Path] | None,
        typer.Option(
            help="Open text (files or folders) that every member may see: it trains the "
            "tokenizer, and a share of every batch comes from it. May be given several times."
        ),
    ] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Size of a new vocabulary.")] = None,
    quorum: Annotated[int, typer.Option(help="Fewest contributions that make an update.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds to run; 0: without end.")] = 0,
    inner_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps a member takes in a round (H).")
    ] = None,
    objective: Annotated[str, typer.Option(help="What is trained.")] = "causal-lm",
    seed: Annotated[int, typer.Option(help="Of initial weights and data order.")] = 0,
    database: Database = "",
    blobs: BlobStore = "",
) -> None:
    """Make a federation: root of trust, signing key, genesis checkpoint, settings.

    Example: tapestry coordinator init fed --name europe --pool open-texts/ --size small
    """
    from tapestry.objectives.objective import objective_named  # noqa: PLC0415 - imports torch
    from tapestry_coordinator.founding import Founding, found  # noqa: PLC0415

    enrolment = _next_port(address)
    storage = parse_settings(
        {"database": database, "blobs": blobs}, settings_module.StorageSettings, where="init"
    )

    def settings_for(inner: settings_module.InnerTable) -> settings_module.CoordinatorSettings:
        if inner_steps is not None:
            inner = inner.model_copy(update={"steps": inner_steps})
        return settings_module.CoordinatorSettings(
            network=settings_module.NetworkSettings(
                listen=f"0.0.0.0:{address.rsplit(':', 1)[1]}",
                enrolment_listen=f"0.0.0.0:{enrolment.rsplit(':', 1)[1]}",
                address=address,
                enrolment_address=enrolment,
            ),
            rounds=settings_module.RoundsSettings(quorum=quorum, total=rounds),
            inner=inner,
            storage=storage,
            page=PageSettings(listen=f"127.0.0.1:{_page_port(enrolment)}"),
        )

    create = {"size": size, "model": model, "tokenizer": tokenizer, "vocabulary": vocabulary}
    founding = Founding(
        federation=name,
        objective=objective_named(objective),
        create={key: value for key, value in create.items() if value is not None},
        pool=pool or [],
        seed=seed,
    )
    found(folder, founding, settings_for, now=Now())
    home = CoordinatorHome(folder.resolve())
    genesis = home.load_genesis()
    typer.echo(f"federation {name} is founded in {folder}")
    typer.echo(f"  identity   {genesis.genesis_digest}")
    typer.echo(f"  model      {genesis.newest.elements:,} parameters")
    typer.echo(f"  settings   {folder / settings_module.SETTINGS_FILE}")
    typer.echo("next:")
    typer.echo(f"  tapestry coordinator invite MEMBER --dir {folder}    (one for each institution)")
    typer.echo(f"  tapestry coordinator serve {folder}")


@app.command()
def serve(
    folder: Annotated[Path | None, typer.Argument(help="The coordinator's folder.")] = None,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log progress too.")] = False,
    failpoints: Annotated[
        bool, typer.Option("--failpoints", hidden=True, help="Obey TAPESTRY_FAILPOINT: a test.")
    ] = False,
    database: Database = "",
    blobs: BlobStore = "",
) -> None:
    """Listen for members and run rounds until Ctrl-C; starting again goes on where it was.

    Several coordinators may share a PostgreSQL database: one leads, the others stand by.

    Example: tapestry coordinator serve fed
    """
    from tapestry.storage.locks import alone  # noqa: PLC0415
    from tapestry_coordinator.failpoints import arm  # noqa: PLC0415
    from tapestry_coordinator.standby import serve_home  # noqa: PLC0415 - imports grpc

    log_to_stderr(as_json=json_log, verbose=verbose)
    changed = {"database": database, "blobs": blobs}
    if failpoints:
        arm(os.environ)
    home = find_home(folder)
    home = replace(home, storage=tuple((key, url) for key, url in changed.items() if url))
    with (
        alone(home.folder, who="the coordinator"),
        web_commands.beside(home, json_log=json_log),
    ):
        serve_home(home)


app.command()(web_commands.page)
app.command()(web_commands.page_password)


@app.command()
def invite(
    member: Annotated[str, typer.Argument(help="The institution's id, a slug such as fr-bnf.")],
    folder: Dir = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the invitation to this file (0600) instead.")
    ] = None,
) -> None:
    """Print an invitation: one use, expiring; whoever holds it can join as MEMBER.

    It carries the address, the federation's root certificate and a secret token: send it by a
    channel you trust, and let the institution compare the fingerprint by another.
    """
    from tapestry.identity.certificates import (  # noqa: PLC0415
        check_member_id,
        fingerprint,
        format_fingerprint,
    )
    from tapestry.identity.invitations import encode  # noqa: PLC0415
    from tapestry.storage.atomic import write_atomic  # noqa: PLC0415
    from tapestry_coordinator.inviting import make_invitation  # noqa: PLC0415

    home = find_home(folder)
    check_member_id(member)
    invitation = make_invitation(home, member, now=Now())
    until = datetime.fromtimestamp(invitation.expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = encode(invitation)
    shown = format_fingerprint(fingerprint(home.load_authority().certificate_pem))
    if out is None:
        typer.echo(text)
    else:
        write_atomic(out, text + "\n", mode=0o600)
        typer.echo(f"written to {out}", err=True)
    typer.echo(f"for {member}, valid once, until {until}", err=True)
    typer.echo(f"root fingerprint {shown}", err=True)


@app.command()
def status(
    folder: Dir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the round, the newest checkpoint, and what members measured of it."""
    from tapestry_coordinator.status import status_of  # noqa: PLC0415

    _print(status_of(find_home(folder)), as_json=as_json, render=_render_status)


@app.command()
def members(
    folder: Dir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the members; rounds do not wait for those that are inactive until they contribute."""
    from tapestry_coordinator.status import activity_of, readable_time  # noqa: PLC0415

    home = find_home(folder)
    inactive_after = home.load_policy().activity.inactive_after
    with _registry(home) as registry:
        rows = [
            {
                "member_id": m.member_id,
                "status": activity_of(m, inactive_after=inactive_after),
                "last_seen": readable_time(m.last_seen_at),
                "missed_rounds": m.missed_rounds,
                "tokens_per_second": round(m.tokens_per_second, 1),
            }
            for m in registry.members()
        ]
    _print({"members": rows}, as_json=as_json, render=_render_members)


@app.command()
def exclusions(
    member: Annotated[str | None, typer.Argument(help="Of this member only.")] = None,
    folder: Dir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List what was left out, why, and what the members say to it.

    Example: tapestry coordinator exclusions fr-bnf --dir fed
    """
    from tapestry_coordinator.status import readable_time  # noqa: PLC0415

    with _registry(find_home(folder)) as registry:
        rows = [
            {
                "id": one.id,
                "round": one.round,
                "member_id": one.member_id,
                "kind": one.kind,
                "reason": one.reason,
                "at": readable_time(one.at),
                "answer": one.answer,
            }
            for one in registry.exclusions(member)
        ]
    _print({"exclusions": rows}, as_json=as_json, render=_render_exclusions)


@app.command()
def release(
    number: Annotated[int, typer.Argument(help="The round, as `status` shows it.")],
    reason: Annotated[str, typer.Option(help="Kept with the decision.")] = "",
    folder: Dir = None,
) -> None:
    """Publish a candidate although a member found it worse for its text.

    Example: tapestry coordinator release 42 --reason "agreed with fr-bnf by phone" --dir fed
    """
    _rule(find_home(folder), number, is_released=True, reason=reason)


@app.command()
def revert(
    number: Annotated[int, typer.Argument(help="The round, as `status` shows it.")],
    reason: Annotated[str, typer.Option(help="Stands in the manifest, for everybody to read.")],
    folder: Dir = None,
) -> None:
    """Leave the consensus as it was: the candidate is dropped, and the reason published.

    Example: tapestry coordinator revert 42 --reason "is-lbs lost .3 bits per byte" --dir fed
    """
    _rule(find_home(folder), number, is_released=False, reason=reason)


@app.command()
def annotate(
    number: Annotated[int, typer.Argument(help="The checkpoint's round.")],
    notes: Annotated[Path, typer.Option(help="Markdown for the model card.")],
    image: Annotated[list[Path] | None, typer.Option(help="PNG images that it shows.")] = None,
    folder: Dir = None,
) -> None:
    """Add a section to a checkpoint's model card, and sign the card again.

    The checkpoint itself stays as it is. Stop the coordinator first; it serves the new card after
    its next start. In the Markdown, images are tapestry/NAME.png.
    """
    from tapestry.storage.locks import alone  # noqa: PLC0415
    from tapestry_coordinator.annotating import annotate_card  # noqa: PLC0415

    home = find_home(folder)
    with alone(home.folder, who="the coordinator"):
        annotate_card(home, number, notes, image or [])
    typer.echo(f"{home.checkpoint(number) / 'README.md'} is renewed")


@app.command()
def revoke(
    member: Annotated[str, typer.Argument(help="The member's id.")], folder: Dir = None
) -> None:
    """End a membership; in force at the member's next call, on open connections too."""
    home = find_home(folder)
    with _registry(home) as registry:
        registry.revoke(member)
        left = sum(1 for m in registry.members() if m.status == "active")
    typer.echo(f"{member} is not a member any more")
    quorum = home.load_settings().rounds.quorum
    if left < quorum:
        typer.echo(f"members left: {left}; the quorum is {quorum}: no round ends until more join")


def _rule(home: CoordinatorHome, number: int, *, is_released: bool, reason: str) -> None:
    from tapestry_coordinator.status import status_of  # noqa: PLC0415

    table = status_of(home)
    if table["round"] != number or table["phase"] not in {"measuring", "held"}:
        raise ConfigError(
            f"round {number} has no candidate to decide about: round {table['round']} is "
            f"{table['phase']}"
        )
    if not is_released and not reason.strip():
        raise ConfigError("--reason: say why; it is published with the checkpoint")
    with _registry(home) as registry:
        registry.rule(number, is_released=is_released, reason=reason, now=Now())
    typer.echo(
        f"round {number}: the candidate is to be {'published' if is_released else 'dropped'}"
    )


def _render_status(table: dict[str, Any]) -> str:
    lines = [
        f"federation {table['federation']}  identity {table['identity'][:16]}",
        _round_line(table),
    ]
    if table["cohort"]:
        lines.append(f"  contributed: {', '.join(table['arrived']) or 'nobody yet'}")
        answered = {*table["arrived"], *table["declined"], *table["inactive"]}
        waiting = sorted(set(table["cohort"]) - answered)
        lines.append(f"  waiting for: {', '.join(waiting) or 'nobody'}")
        if table["inactive"]:
            lines.append(f"  not waited for: {', '.join(table['inactive'])} (inactive)")
        lines += [f"  {m} is late: {s} rounds" for m, s in table["late"].items()]
        lines += [f"  declined: {m}: {reason}" for m, reason in table["declined"].items()]
        lines.append(f"  deadline: {table['deadline']}")
    if table["candidate"]:
        lines.append(f"candidate {table['candidate'][:16]}, measured before it is published:")
        lines += [f"  {m}: {said or 'no worse'}" for m, said in table["measured"].items()]
        if table["phase"] == "held":
            number = table["round"]
            lines.append(f"  decide: tapestry coordinator release {number} | revert {number}")
    lines.append(f"newest checkpoint: {table['newest_checkpoint']} in {table['checkpoint_folder']}")
    lines += [f"  {m}: {bpb:.4f} bits per byte" for m, bpb in table["bits_per_byte"].items()]
    return "\n".join(lines)


def _round_line(table: dict[str, Any]) -> str:
    total = table["total"]
    if table["phase"] == "finished":
        return f"finished: {total} rounds; raise [rounds] total to go on"
    of = f" of {total}" if total else ""
    return f"round {table['round']}{of}: {table['phase']}"


def _render_exclusions(table: dict[str, Any]) -> str:
    lines = []
    for row in table["exclusions"]:
        lines.append(f"{row['id']:>4}  round {row['round']}  {row['member_id']}  {row['at']}")
        lines.append(f"      {row['kind']}: {row['reason']}")
        if row["answer"]:
            lines.append(f"      {row['member_id']} answers: {row['answer']}")
    return "\n".join(lines) or "nothing was left out"


def _render_members(table: dict[str, Any]) -> str:
    rows = [
        f"{m['member_id']:<24} {m['status']:<8} last seen {m['last_seen']}{_pace(m)}"
        for m in table["members"]
    ]
    return "\n".join(rows) or "no members yet: `tapestry coordinator invite MEMBER`"


def _pace(member: dict[str, Any]) -> str:
    missed, speed = member["missed_rounds"], member["tokens_per_second"]
    told = f"  {speed:,.0f} tokens/s" if speed else ""
    return told + (f"  missed {missed} round{'s' if missed > 1 else ''}" if missed else "")


def _print(
    table: dict[str, Any], *, as_json: bool, render: Callable[[dict[str, Any]], str]
) -> None:
    typer.echo(json.dumps(table, indent=1) if as_json else render(table))


def _registry(home: CoordinatorHome) -> Any:  # noqa: ANN401 - a closing registry
    from contextlib import closing  # noqa: PLC0415

    from tapestry_coordinator.database import database_url  # noqa: PLC0415
    from tapestry_coordinator.registry import Registry  # noqa: PLC0415

    return closing(Registry(database_url(home)))


def _page_port(enrolment: str) -> int:
    """Return the port after that of enrolment, if there is one."""
    port = int(enrolment.rsplit(":", 1)[1])
    return port + 1 if port < 65535 else PageSettings().port


def _next_port(address: str) -> str:
    """Return the address of enrolment: the port after the members'.

    Raises:
        ConfigError: `address` is not host:port.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65535:
        raise ConfigError(
            f"--address {address!r}: expected host:port, such as fed.example.org:7443"
        )
    return f"{host}:{int(port) + 1}"
