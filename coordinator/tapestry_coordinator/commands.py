"""`tapestry coordinator ...`: parse, call, render."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapestry.checkpoints.policy import FederationPolicy
from tapestry.cli.running import log_to_stderr
from tapestry.config import parse_settings
from tapestry.errors import ConfigError
from tapestry_coordinator import operator_commands
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.archive_commands import app as archive_app
from tapestry_coordinator.home import CoordinatorHome, find_home
from tapestry_coordinator.operator_commands import Dir
from tapestry_coordinator.policy_commands import app as policy_app
from tapestry_coordinator.web import commands as web_commands
from tapestry_coordinator.web.settings import PageSettings

if TYPE_CHECKING:
    from tapestry_coordinator.continuing import Origin

app = typer.Typer(
    help="Make a federation, invite members, run rounds, publish checkpoints.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)

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
    origin: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Go on with another federation's model, tokenizer, objective and policy: an "
            "export that a member took along (`tapestry node leave --export`), or a published "
            "checkpoint.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Model from scratch: tiny (1M), small (30M), base (0.1B), 1b; default: tiny."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Adopt this model (a folder in transformers' format) instead."),
    ] = None,
    trainable: Annotated[
        str | None,
        typer.Option(
            help="Parameters that are trained: 'all' (default), or patterns of their names between "
            "commas, such as `model.layers.11.*,model.norm.*`. The others stay as they are at "
            "genesis: they are never sent, and take neither gradients nor moments."
        ),
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
    quorum: Annotated[
        int | None,
        typer.Option(help="Fewest contributions that make an update; default: 2, or as before."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds to run; 0: without end.")] = 0,
    inner_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps a member takes in a round (H).")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="What is trained; default: causal-lm, or as before.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights and data order.")] = 0,
    database: Database = "",
    blobs: BlobStore = "",
) -> None:
    """Make a federation: root of trust, signing key, genesis checkpoint, settings.

    Example: tapestry coordinator init fed --name europe --pool open-texts/ --size small

    A part of a model: tapestry coordinator init fed --name law --model llama/ --trainable
    'model.layers.1?.mlp.*'

    From what a member took along: tapestry coordinator init fed2 --name north --from our-export
    """
    from tapestry.objectives.objective import objective_named  # noqa: PLC0415 - imports torch
    from tapestry.params.subset import ALL, parse_trainable  # noqa: PLC0415
    from tapestry_coordinator.founding import Founding, found  # noqa: PLC0415

    create = {"size": size, "model": model, "tokenizer": tokenizer, "vocabulary": vocabulary}
    chosen = {**create, "objective": objective, "trainable": trainable}
    older = None if origin is None else _origin(origin, chosen)
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
            rounds=settings_module.RoundsSettings(
                quorum=quorum or (older and older.quorum) or 2, total=rounds
            ),
            inner=inner,
            storage=storage,
            page=PageSettings(listen=f"127.0.0.1:{_page_port(enrolment)}"),
        )

    founding = Founding(
        federation=name,
        objective=objective_named(
            older.lineage.origin.objective if older else objective or "causal-lm"
        ),
        create={"size": "tiny", **{key: v for key, v in create.items() if v is not None}},
        pool=pool or ([older.pool] if older and older.pool else []),
        seed=seed,
        trainable=parse_trainable(ALL if trainable is None else trainable),
        policy=older.policy if older else FederationPolicy(),
        start=older.start() if older else None,
    )
    found(folder, founding, settings_for, now=Now())
    home = CoordinatorHome(folder.resolve())
    genesis = home.load_genesis()
    typer.echo(f"federation {name} is founded in {folder}")
    typer.echo(f"  identity   {genesis.genesis_digest}")
    typer.echo(f"  model      {genesis.origin.trained_of(genesis.newest.elements)}")
    if genesis.origin.continues is not None:
        was = genesis.origin.continues
        typer.echo(
            f"  goes on    from checkpoint {was.round} of {was.federation} {was.genesis[:16]}"
        )
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
    from tapestry.wire.allocation import reuse_large_blocks  # noqa: PLC0415
    from tapestry_coordinator.failpoints import arm  # noqa: PLC0415
    from tapestry_coordinator.standby import serve_home  # noqa: PLC0415 - imports grpc

    reuse_large_blocks()
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


operator_commands.add_to(app)
app.add_typer(policy_app, name="policy")
app.add_typer(archive_app, name="archive")
app.command()(web_commands.page)
app.command()(web_commands.page_password)


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


def _origin(folder: Path, chosen: Mapping[str, object]) -> "Origin":
    """Return what a federation is founded upon, which leaves nothing of `chosen` to choose."""
    from tapestry_coordinator.continuing import open_origin  # noqa: PLC0415

    taken = [f"--{name}" for name, value in chosen.items() if value is not None]
    if taken:
        raise ConfigError(
            f"{' and '.join(taken)}: --from {folder} brings model, tokenizer and objective along; "
            "give one or the other"
        )
    return open_origin(folder)


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
