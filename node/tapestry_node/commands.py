"""`tapestry node ...`: parse, call, render."""

import getpass
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tapestry.cli.bars import bar, printable, restore
from tapestry.cli.running import default_home, log_to_stderr
from tapestry.errors import ConfigError
from tapestry_node import audit_commands
from tapestry_node.corpus_commands import corpus, forget
from tapestry_node.doctor_commands import doctor
from tapestry_node.leaving_commands import add_to as add_leaving_to
from tapestry_node.options import AsJson, Data, Dir, Folder, text_or_file
from tapestry_node.showing import following, packing
from tapestry_node.status_commands import status
from tapestry_node.web.commands import page

if TYPE_CHECKING:
    from tapestry_node.daemon import Daemon

app = typer.Typer(
    help="Join a federation, train where your data is, see what left.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
)

_clock = time.time  # noqa: TID251 - the edge that owns the clock


def join(
    invitation: Annotated[
        str, typer.Argument(help="The invitation: its text, or a file that holds it.")
    ],
    folder: Dir = None,
    language: Annotated[
        str, typer.Option(help="What your text is, for result tables: a tag such as fra.")
    ] = "",
) -> None:
    """Become a member: makes keys here, has them certified, pins the federation's root."""
    from tapestry.identity.certificates import format_fingerprint  # noqa: PLC0415
    from tapestry.identity.invitations import decode  # noqa: PLC0415
    from tapestry.identity.membership import CONTRIBUTOR  # noqa: PLC0415
    from tapestry_node.home import NodeHome  # noqa: PLC0415
    from tapestry_node.joining import join as join_federation  # noqa: PLC0415
    from tapestry_node.joining import next_steps  # noqa: PLC0415

    opened = decode(text_or_file(invitation))
    target = folder or default_home("node")
    membership = join_federation(opened, target, now=_clock())
    home = NodeHome(target.resolve())
    if language:
        settings = home.load_settings()
        table = settings.node.model_copy(update={"language": language})
        home.save_settings(settings.model_copy(update={"node": table}))
    as_role = "" if membership.role == CONTRIBUTOR else f", as {membership.role}"
    typer.echo(f"{membership.member_id} is a member of {membership.federation}{as_role}")
    typer.echo(f"  root fingerprint  {format_fingerprint(opened.root_fingerprint)}")
    typer.echo("                    compare it with whoever invited you, by another channel")
    typer.echo(f"  your policy       {target / 'node.toml'}")
    typer.echo("next:")
    for line in next_steps(membership.role, target):
        typer.echo(f"  {line}")


def run(
    folder: Folder = None,
    data: Data = [],  # noqa: B006 - typer copies it
    until_finished: Annotated[
        bool, typer.Option("--until-finished", help="Stop when no further round is planned.")
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Processes that train together: one for each GPU."),
    ] = None,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
) -> None:
    """Take part: wait for plans, train, send parameter vectors, measure; until Ctrl-C.

    Can be stopped and started at any point; a finished contribution is never lost, and a round that
    is being trained goes on from what was kept.

    Example: tapestry node run --data corpus/ --nproc 4
    """
    from tapestry.storage.locks import alone  # noqa: PLC0415
    from tapestry.wire.allocation import reuse_large_blocks  # noqa: PLC0415
    from tapestry_node.daemon import Daemon  # noqa: PLC0415 - imports grpc
    from tapestry_node.governing import text_of  # noqa: PLC0415
    from tapestry_node.home import require_node  # noqa: PLC0415
    from tapestry_node.leaving import require_member  # noqa: PLC0415

    reuse_large_blocks()
    log_to_stderr(as_json=json_log, verbose=verbose)
    home = require_node(folder or default_home("node"))
    with alone(home.folder, who="this node"):  # before it is read where the node stands
        require_member(home)
        text = text_of(home, data)
        with bar() as shown:
            daemon = Daemon(
                home,
                text,
                until_finished=until_finished,
                processes=nproc,
                show=following(shown),
            )
            _stop_on_signals(daemon)
            daemon.run()


def trainer(folder: Folder = None) -> None:
    """Be one of the trainer's processes, where a launcher starts them: torchrun, or srun.

    For `launch = "external"` in node.toml: `tapestry node run` then starts no trainer, and waits
    for as many of these as [node] processes (or --nproc) says. The folder lies on a disk that all
    hosts share, under the same path. Ends with the node; with 1 if it is to be started anew.

    Example, on each of two hosts: torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d
    --rdzv-endpoint host-1:29500 --max-restarts 9 --no-python tapestry node trainer /shared/node
    """
    from tapestry_node.launched import main, place_from  # noqa: PLC0415

    log_to_stderr(as_json=False, verbose=False)
    code = main(folder or default_home("node"), place_from(os.environ))
    os._exit(code)  # nothing is left to write, and torch takes its time to leave


def _stop_on_signals(daemon: "Daemon") -> None:
    """Let Ctrl-C end the daemon, and a second one at once."""
    stops = 0

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal stops
        stops += 1
        if stops > 1:
            typer.echo("stopped at once", err=True)
            restore()
            os._exit(130)
        daemon.stop()  # first: to speak fails where what was interrupted speaks
        typer.echo("stopping; once more stops at once", err=True)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)


def follow(
    address: Annotated[str, typer.Argument(help="host:port, as the coordinator's operator says.")],
    folder: Dir = None,
) -> None:
    """Follow the coordinator to another address, with the node stopped.

    It has to be the same coordinator: its certificate, the key that signs checkpoints, the
    federation's genesis and its newest checkpoint are looked at first. No other setting changes.

    Example: tapestry node follow fed2.example.org:7443 --dir node
    """
    from tapestry.storage.locks import alone  # noqa: PLC0415
    from tapestry_node.home import require_node  # noqa: PLC0415
    from tapestry_node.moving import follow as follow_to  # noqa: PLC0415 - imports grpc

    home = require_node(folder or default_home("node"))
    with alone(home.folder, who="this node"):
        before = home.identity.load().address
        newest = follow_to(home, address, clock=_clock)
    typer.echo(f"{address} instead of {before}: the same coordinator, with checkpoint {newest}")
    typer.echo(f"next: tapestry node run {home.folder}")


def exclusions(
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Ask the coordinator what was left out of what you sent, and why.

    To say something to it: tapestry node answer NUMBER "TEXT"
    """
    from tapestry_node.client import connected  # noqa: PLC0415 - imports grpc
    from tapestry_node.home import require_node  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    with connected(home, clock=_clock) as client:
        found = client.exclusions()
    if as_json:
        typer.echo(json.dumps({"exclusions": [asdict(one) for one in found]}, indent=1))
        return
    for one in found:
        typer.echo(f"{one.id:>4}  round {one.round}  {one.kind}: {one.reason}")
        if one.answer:
            typer.echo(f"      your answer: {one.answer}")
    if not found:
        typer.echo("nothing of yours was left out")


def answer(
    number: Annotated[int, typer.Argument(help="As `tapestry node exclusions` lists it.")],
    text: Annotated[str, typer.Argument(help="What you say to it; at most 500 characters.")],
    folder: Dir = None,
) -> None:
    """Answer an exclusion: the coordinator keeps it beside the reason.

    Example: tapestry node answer 3 "Our corpus is small by law; see the annex of the agreement."
    """
    if not text.strip() or len(text) > 500:
        raise ConfigError(f"an answer has 1 to 500 characters, this one {len(text)}")
    from tapestry_node.client import connected  # noqa: PLC0415 - imports grpc
    from tapestry_node.home import require_node  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    with connected(home, clock=_clock) as client:
        client.answer(number, text)
    typer.echo(f"answered exclusion {number}")


def approve(
    folder: Folder = None,
    round_number: Annotated[
        int | None, typer.Option("--round", help="Which, where several wait.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without a question.")] = False,
    refuse: Annotated[
        str | None, typer.Option(help="Refuse with this reason, which the coordinator records.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Only show what waits, for programs.")
    ] = False,
) -> None:
    """Show what would leave, and let it leave or not; for [policy] approval = "manual".

    Without --yes or --refuse it asks; whoever does not say yes has decided nothing.

    Examples: tapestry node approve; tapestry node approve --refuse "not before the audit"
    """
    from tapestry_node.approving import decide, facts, summary, waiting  # noqa: PLC0415
    from tapestry_node.home import require_node  # noqa: PLC0415

    if refuse is not None and (yes or not refuse.strip()):
        raise ConfigError(
            "--yes and --refuse say two things: choose one"
            if yes
            else '--refuse "": say why; the coordinator keeps the reason'
        )
    home = require_node(folder or default_home("node"))
    there = waiting(home)
    found = [one for one in there if round_number in (None, one.contribution.round)]
    if as_json:
        typer.echo(json.dumps({"waiting": [summary(one) for one in found]}, indent=1))
        return
    numbers = ", ".join(str(one.contribution.round) for one in there)
    if not there:
        typer.echo("nothing waits to leave")
        return
    if len(found) != 1:
        raise ConfigError(
            f"contributions to the rounds {numbers} wait: choose one with --round"
            if found
            else f"nothing waits for round {round_number}: there is round {numbers}"
        )
    for name, words in facts(summary(found[0])):
        typer.echo(f"  {name:<12} {printable(words)}")
    if refuse is None and not (yes or typer.confirm("let it leave?")):
        typer.echo('nothing is decided, and it goes on waiting; no: --refuse "REASON"')
        return
    decide(home, found[0], is_approved=refuse is None, by=_user(), reason=refuse or "")
    typer.echo("approved: it leaves now" if refuse is None else "refused: nothing of it leaves")


def _user() -> str:
    """Return who is at the terminal."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def finish(
    out: Annotated[Path, typer.Argument(help="New folder for the finished model.")],
    folder: Dir = None,
    data: Data = [],  # noqa: B006 - typer copies it
    steps: Annotated[
        int | None, typer.Option(help="Steps on your own text; default: the plan's H.")
    ] = None,
) -> None:
    """Local finish: some more steps from the consensus on your own text, for yourself.

    Uses the moments that the inner optimizer kept, and sends nothing.
    """
    from tapestry_node.finishing import finish_locally  # noqa: PLC0415 - imports torch
    from tapestry_node.governing import text_of  # noqa: PLC0415
    from tapestry_node.home import require_node  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    with bar() as shown:
        parentage = finish_locally(
            home,
            text_of(home, data),
            out,
            steps=steps,
            on_packing=packing(shown),
            on_step=lambda report, of: shown.show(
                "training", report.step, of, unit="steps", note=f"loss {report.loss:.3f}"
            ),
        )
    before, after = (parentage.held_out_bits_per_byte[k] for k in ("before", "after"))
    typer.echo(f"{out}: {parentage.steps} steps from checkpoint {parentage.round}")
    typer.echo(f"  held-out bits per byte  {before:.4f} before, {after:.4f} after")


_EVERY_DAY: tuple[Callable[..., None], ...] = (
    *(join, doctor, run, status, page, approve, exclusions, answer, follow),
)
for _command in _EVERY_DAY:  # as `--help` lists them: what one needs first stands first
    app.command()(_command)
audit_commands.add_to(app)
app.add_typer(corpus, name="corpus")
app.command()(forget)
app.command()(finish)
add_leaving_to(app)
app.command()(trainer)
