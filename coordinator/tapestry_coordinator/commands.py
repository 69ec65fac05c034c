"""`tapestry coordinator ...`: parse, call, render."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.cli.running import default_home, log_to_stderr
from tapestry.errors import ConfigError
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome, require_home
from tapestry_coordinator.web import commands as web_commands
from tapestry_coordinator.web.settings import PageSettings

app = typer.Typer(
    help="Make a federation, invite members, run rounds, publish checkpoints.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)

Dir = Annotated[
    Path | None,
    typer.Option("--dir", help="The coordinator's folder; default: below your data directory."),
]
Now = time.time  # noqa: TID251 - the edge that owns the clock


def _home(folder: Path | None) -> CoordinatorHome:
    here = Path(settings_module.SETTINGS_FILE)
    return require_home(folder or (Path() if here.is_file() else default_home("coordinator")))


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
) -> None:
    """Make a federation: root of trust, signing key, genesis checkpoint, settings.

    Example: tapestry coordinator init fed --name europe --pool open-texts/ --size small
    """
    from tapestry.objectives.objective import objective_named  # noqa: PLC0415 - imports torch
    from tapestry_coordinator.founding import Founding, found  # noqa: PLC0415

    enrolment = _next_port(address)

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
) -> None:
    """Listen for members and run rounds until Ctrl-C; starting again goes on where it was."""
    from tapestry.storage.locks import alone  # noqa: PLC0415
    from tapestry_coordinator.server import CoordinatorServer  # noqa: PLC0415 - imports grpc

    log_to_stderr(as_json=json_log, verbose=verbose)
    home = _home(folder)
    with (
        alone(home.folder, who="the coordinator"),
        web_commands.beside(home, json_log=json_log),
    ):
        CoordinatorServer(home).serve()


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

    home = _home(folder)
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

    _print(status_of(_home(folder)), as_json=as_json, render=_render_status)


@app.command()
def members(
    folder: Dir = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the members."""
    from tapestry_coordinator.status import readable_time  # noqa: PLC0415

    with _registry(_home(folder)) as registry:
        rows = [
            {
                "member_id": m.member_id,
                "status": m.status,
                "last_seen": readable_time(m.last_seen_at),
            }
            for m in registry.members()
        ]
    _print({"members": rows}, as_json=as_json, render=_render_members)


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

    home = _home(folder)
    with alone(home.folder, who="the coordinator"):
        annotate_card(home, number, notes, image or [])
    typer.echo(f"{home.checkpoint(number) / 'README.md'} is renewed")


@app.command()
def revoke(
    member: Annotated[str, typer.Argument(help="The member's id.")], folder: Dir = None
) -> None:
    """End a membership; in force at the member's next call, on open connections too."""
    home = _home(folder)
    with _registry(home) as registry:
        registry.revoke(member)
        left = sum(1 for m in registry.members() if m.status == "active")
    typer.echo(f"{member} is not a member any more")
    quorum = home.load_settings().rounds.quorum
    if left < quorum:
        typer.echo(f"members left: {left}; the quorum is {quorum}: no round ends until more join")


def _render_status(table: dict[str, Any]) -> str:
    lines = [
        f"federation {table['federation']}  identity {table['identity'][:16]}",
        _round_line(table),
    ]
    if table["cohort"]:
        lines.append(f"  contributed: {', '.join(table['arrived']) or 'nobody yet'}")
        waiting = sorted(set(table["cohort"]) - set(table["arrived"]) - set(table["declined"]))
        lines.append(f"  waiting for: {', '.join(waiting) or 'nobody'}")
        lines += [f"  declined: {m}: {reason}" for m, reason in table["declined"].items()]
        lines.append(f"  deadline: {table['deadline']}")
    lines.append(f"newest checkpoint: {table['newest_checkpoint']} in {table['checkpoint_folder']}")
    lines += [f"  {m}: {bpb:.4f} bits per byte" for m, bpb in table["bits_per_byte"].items()]
    return "\n".join(lines)


def _round_line(table: dict[str, Any]) -> str:
    total = table["total"]
    if table["phase"] == "finished":
        return f"finished: {total} rounds; raise [rounds] total to go on"
    of = f" of {total}" if total else ""
    return f"round {table['round']}{of}: {table['phase']}"


def _render_members(table: dict[str, Any]) -> str:
    rows = [
        f"{m['member_id']:<24} {m['status']:<8} last seen {m['last_seen']}"
        for m in table["members"]
    ]
    return "\n".join(rows) or "no members yet: `tapestry coordinator invite MEMBER`"


def _print(
    table: dict[str, Any], *, as_json: bool, render: Callable[[dict[str, Any]], str]
) -> None:
    typer.echo(json.dumps(table, indent=1) if as_json else render(table))


def _registry(home: CoordinatorHome) -> Any:  # noqa: ANN401 - a closing registry
    from contextlib import closing  # noqa: PLC0415

    from tapestry_coordinator.database import database_url  # noqa: PLC0415
    from tapestry_coordinator.registry import Registry  # noqa: PLC0415

    return closing(Registry(database_url(home.folder)))


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
