"""`tapestry node audit`, `verify-report`, `canaries`: parse, call, render."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapestry.cli.bars import bar
from tapestry.cli.running import default_home
from tapestry.errors import ConfigError
from tapestry_node.options import AsJson, Dir, Folder
from tapestry_node.showing import reading

if TYPE_CHECKING:
    from tapestry_node.home import NodeHome

_clock = time.time  # noqa: TID251 - the edge that owns the clock
_MOST_ROUNDS = 10


canaries = typer.Typer(
    help="Random text planted among yours, to measure what a model remembers of it.",
    no_args_is_help=True,
)


def audit(
    folder: Folder = None,
    head: Annotated[
        str | None,
        typer.Option(help="A head that an earlier audit printed: proves that nothing is cut off."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Write a signed report into this new folder, for somebody else."),
    ] = None,
    leakage: Annotated[
        bool,
        typer.Option(
            "--leakage",
            help="Measure what the last contribution gives away, here. With --export its figures "
            "stand in the report.",
        ),
    ] = False,
    data: Annotated[
        list[Path], typer.Option("--data", help="With --leakage: your text, as for `run`.")
    ] = [],  # noqa: B006 - typer copies it
    seed: Annotated[
        int, typer.Option(min=0, help="With --leakage: draws the small batch that is attacked.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Prove that the record of what left is whole, and add it up by round and by call.

    Note the head that it prints: given to a later audit, it shows that the ledger only grew.
    Ends with 1 if something is not as it should be.

    Examples: tapestry node audit node; tapestry node audit node --export report-2026;
    tapestry node audit node --leakage --data /srv/texts; both, for a regulator:
    tapestry node audit node --leakage --data /srv/texts --export report-2026
    """
    from tapestry_node.home import require_node  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    if export is not None and export.exists():  # before what may take as long as a round
        raise ConfigError(f"{export}: exists already; name a new folder")
    figures = _leakage(home, data, seed=seed) if leakage else None
    if figures is not None and export is None:
        if head is not None:
            raise ConfigError("--head is for the ledger: leave --leakage away, or add --export")
        _show_leakage(figures, as_json=as_json)
        return
    from tapestry.identity.keys import public_bytes  # noqa: PLC0415
    from tapestry_node.auditing import audit as look  # noqa: PLC0415
    from tapestry_node.leakage_words import for_others  # noqa: PLC0415
    from tapestry_node.reporting import evidence_of  # noqa: PLC0415
    from tapestry_node.reporting import export as write  # noqa: PLC0415

    if head is not None and len(head) != 64:
        raise ConfigError(f"--head {head}: a head has 64 digits, as an audit prints it")
    if not home.egress.is_file():
        raise ConfigError(f"{home.egress}: nothing has left this node yet")
    key = home.identity.signing_key()
    with bar() as shown:
        tell = reading(shown)
        if export is not None:
            target = export.resolve()
            told = None if figures is None else for_others(figures)
            found = write(
                home, target, key, head=head, now=_clock(), leakage=told, on_progress=tell
            )
        else:
            evidence = evidence_of(home, home.identity.load(), member_key=public_bytes(key))
            found = look(evidence, head=head, on_progress=tell)
    _tell(found, export, as_json=as_json)


def _tell(found: dict[str, Any], export: Path | None, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        for line in _said(found, export):
            typer.echo(line)
        for problem in found["problems"]:
            typer.echo(f"tapestry: {problem}", err=True)
    if found["problems"]:
        raise typer.Exit(1)


def _said(found: dict[str, Any], export: Path | None) -> Iterator[str]:
    """Yield the lines for a person."""
    if found["chain"] == "whole":
        yield (
            f"the chain of {found['ledger']} is whole: {found['requests']:,} requests, "
            f"{found['bytes']:,} bytes of messages"
        )
        yield f"head {found['head']}"
    else:
        yield f"the chain is BROKEN; before that: {found['requests']:,} requests"
    for call, pair in found["by_call"].items():
        yield _row(call, pair)
    numbers = [number for number in found["by_round"] if number != "0"]
    if numbers:
        more = len(numbers) - _MOST_ROUNDS
        yield "by round" + (f" ({more} earlier ones with --json)" if more > 0 else "")
    for number in numbers[-_MOST_ROUNDS:]:
        calls = found["by_round"][number].values()
        total = {name: sum(pair[name] for pair in calls) for name in ("requests", "bytes")}
        yield _row(f"round {number}", total)
    yield from _rules(found)
    yield f"beside it: {found['kernel']['says'] or 'the kernel was not asked'}"
    for row in found["receipts"][-_MOST_ROUNDS:]:
        words = "; ".join([*row["shown"], *(f"not shown: {w}" for w in row["not_shown"])])
        yield f"receipt of round {row['round']}: {words}"
    if export is not None:
        yield f"{export}: report.html, report.json, and what proves them, signed"
        yield f"  elsewhere: tapestry node verify-report {export}"


def _rules(found: dict[str, Any]) -> Iterator[str]:
    for digest, entry in found["policies"].items():
        if digest:
            kept = "" if entry["rules"] else ", whose rules were not kept"
            yield _row(f"under policy {digest[:12]}{kept}", entry)
    for one in found["approvals"]:
        rounds = ", ".join(map(str, one["rounds"]))
        yield _row(f"approved by {one['by']} (rounds {rounds})", one)
    for one in found["blocked"]:
        when = datetime.fromtimestamp(one["time"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        yield f"  stopped: {one['call']} to {one['to']} at {when} (line {one['line']})"


def _row(name: str, pair: dict[str, Any]) -> str:
    return f"  {name:<36} {pair['requests']:>8,} requests {pair['bytes']:>16,} bytes"


def _leakage(home: "NodeHome", data: list[Path], *, seed: int) -> dict[str, Any]:
    """Measure; return figures, and what they mean as `words`."""
    from tapestry.wire.egress import BLOCKED, EgressLedger  # noqa: PLC0415
    from tapestry_node.examining import examine_last  # noqa: PLC0415
    from tapestry_node.governing import text_of  # noqa: PLC0415
    from tapestry_node.leakage_words import words  # noqa: PLC0415

    text, membership = text_of(home, data), home.identity.load()
    with (
        bar() as shown,
        closing(EgressLedger(home.egress, to=membership.address, clock=_clock)) as ledger,
    ):
        figures = examine_last(
            home,
            text,
            seed=seed,
            on_blocked=lambda call, to: ledger.record(BLOCKED + call, b"", to=to),
            on_progress=lambda doing, done, of, unit: shown.show(doing, done, of, unit=unit),
        )
    return {**figures, "words": words(figures)}


def _show_leakage(figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
        return
    for paragraph in figures["words"]:
        typer.echo(paragraph)


def verify_report(
    folder: Annotated[Path, typer.Argument(help="As `tapestry node audit --export` made it.")],
    federation: Annotated[
        str | None, typer.Option(help="Begins the federation's genesis digest, if you know it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify an exported report, on any machine: signatures, chain, totals, receipts.

    Example: tapestry node verify-report report-2026 --federation 3f9a2c
    """
    from tapestry_node.reporting import verify_report as verify  # noqa: PLC0415

    with bar() as shown:
        found = verify(folder.resolve(), genesis=federation, on_progress=reading(shown))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        typer.echo(f"{folder}: signed by {found['member_id']} of {found['federation']}, unchanged")
        typer.echo(f"  federation     {found['genesis']}")
        typer.echo(f"  left           {found['requests']:,} requests, {found['bytes']:,} bytes")
        typer.echo(f"  acknowledged   rounds {found['rounds_acknowledged']}")
        typer.echo(f"  kernel         {found['kernel']}")
        if found["leakage"] is not None:
            typer.echo("  gives away     figures of the last contribution: see report.html")
        for one in found["not_shown"]:
            typer.echo(f"  not shown      {one}")
        for one in found["problems"]:
            typer.echo(f"tapestry: {one}", err=True)
    if found["problems"]:
        raise typer.Exit(1)


@canaries.command("plant")
def plant_canaries(
    count: Annotated[int, typer.Argument(help="How many; 64 give a usable mean.")],
    folder: Dir = None,
    repeats: Annotated[int, typer.Option(help="How often each stands in the text.")] = 1,
    seed: Annotated[int | None, typer.Option(help="To plant the same again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plant random text, trained on from the node's next start; it goes into the model's memory.

    Example: tapestry node canaries plant 64 --repeats 4; after a round:
    tapestry node audit --leakage --data /srv/texts
    """
    from tapestry_node.canaries import plant  # noqa: PLC0415
    from tapestry_node.home import require_node  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    made = plant(home, count, repeats=repeats, seed=seed)
    if as_json:
        table = {"planted": len(made.planted), "repeats": made.repeats, "seed": made.seed}
        typer.echo(json.dumps(table, indent=1))
        return
    typer.echo(f"planted {count} canaries, {repeats} time(s) each (seed {made.seed})")
    typer.echo("trained on from the next start of the node; the federation's model may keep them")


@canaries.command("remove")
def remove_canaries(folder: Dir = None) -> None:
    """Take the canaries out of the text that is trained on from the next start on."""
    from tapestry_node.canaries import remove  # noqa: PLC0415
    from tapestry_node.home import require_node  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    typer.echo("removed" if remove(home) else "there were none")


def add_to(app: typer.Typer) -> None:
    """Add these to `tapestry node`."""
    app.command()(audit)
    app.command("verify-report")(verify_report)
    app.add_typer(canaries, name="canaries")
