"""`tapestry checkpoint verify`: levels and their answers, for people and for programs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tapestry.cli.bars import bar
from tapestry.cli.running import existing
from tapestry.errors import ConfigError

REFUSED, WRONG_USAGE, UNDECIDED = 1, 2, 3


def verify(
    folder: Annotated[
        Path, typer.Argument(help="A published checkpoint's folder, or a copy of one.")
    ],
    federation: Annotated[
        str | None,
        typer.Option(help="The federation's identity that you expect: 16 or more of its digits."),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help="How deep: files, record, ledger, replay. Default: ledger, with --archive replay."
        ),
    ] = None,
    at_least: Annotated[
        int,
        typer.Option(
            "--at-least", min=0, help="A round that you know to be published: refuse an older one."
        ),
    ] = 0,
    archive: Annotated[
        Path | None,
        typer.Option(
            help="What the round was made from: a coordinator's folder, what "
            "`tapestry coordinator archive export` or `tapestry checkpoint pull --archive` wrote."
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(min=0, help="Replay that many fragments, drawn by --head; 0: all of them."),
    ] = 0,
    head: Annotated[
        str | None,
        typer.Option(
            help="Root hash, in hex, of a head of the ledger that is newer than the checkpoint."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Prove what a checkpoint is, in levels; needs no network.

    [bold]files[/bold]   signature, lineage from genesis, every file's SHA-256, the vector's root;
    nothing in the folder that nobody signed.

    [bold]record[/bold]  the plan, each member's signed contribution, the policy: who had a say,
    with what weight, was decided as the federation agreed.

    [bold]ledger[/bold]  the checkpoint is in the federation's ledger, and as many members as the
    policy asks for have seen it there.

    [bold]replay[/bold]  the round is made once more from the contributions, to the bit.

    Exit codes: 0 verified; 1 refused, with the first wrong thing; 2 wrong usage; 3 not decided,
    because something that the level needs is not there.

    Example: tapestry checkpoint verify published/round-000003 --archive .
    """
    from tapestry.checkpoints.levels import Verification, Wanted, verdict_of  # noqa: PLC0415

    try:
        wanted = Wanted(
            folder=existing(folder),
            level=_level(level, archive),
            federation=_federation(federation),
            at_least=at_least,
            archive=None if archive is None else existing(archive),
            sample=sample,
            head=_head(head, sample),
        )
    except ConfigError as error:  # 1 would say that the checkpoint is no good
        print(f"tapestry: {error}", file=sys.stderr)
        raise typer.Exit(WRONG_USAGE) from error
    with bar() as shown:
        if wanted.level == "replay" and not as_json:
            count = shown.counting("replaying fragments", 0)
            wanted = replace(wanted, on_fragment=lambda: count(1))
        run = Verification(wanted)
        answers = list(run.answers())
    last = verdict_of(answers)
    if as_json:
        typer.echo(
            json.dumps(_table(run, answers, last, is_pinned=federation is not None), indent=1)
        )
    else:
        _tell(run, answers, last, is_pinned=federation is not None)
    if last.verdict != "passed":
        print(f"tapestry: {last.says}", file=sys.stderr)
        raise typer.Exit(REFUSED if last.verdict == "refused" else UNDECIDED)


def _level(level: str | None, archive: Path | None) -> Any:  # noqa: ANN401 - one of LEVELS
    from tapestry.checkpoints.levels import LEVELS  # noqa: PLC0415

    if level is None:
        return "ledger" if archive is None else "replay"
    if level not in LEVELS:
        raise ConfigError(f"--level {level}: there are {', '.join(LEVELS)}")
    return level


def _federation(federation: str | None) -> str | None:
    from tapestry.cli.ledgers import require_digits  # noqa: PLC0415

    if federation is not None and ":" in federation:
        raise ConfigError(
            f"--federation {federation}: that is a root fingerprint, compared at joining; give the "
            "identity, which `tapestry coordinator init` and every model card show"
        )
    require_digits(federation)
    return federation


def _head(head: str | None, sample: int) -> str:
    if sample and head is None:
        raise ConfigError(
            "--sample without --head: fragments that anybody could foresee prove nothing; give the "
            "root hash of a head of the ledger that is newer than the checkpoint"
        )
    try:
        is_hash = head is None or len(bytes.fromhex(head)) == 32
    except ValueError:
        is_hash = False
    if not is_hash:
        raise ConfigError(f"--head {head}: not a root hash, which has 64 hex digits")
    return (head or "").lower()


def _table(run: Any, answers: list[Any], last: Any, *, is_pinned: bool) -> dict[str, Any]:  # noqa: ANN401
    """Return everything as JSON."""
    table: dict[str, Any] = {
        "verified": last.verdict == "passed",
        "level": last.level,
        "levels": [
            {
                "level": answer.level,
                "verdict": answer.verdict,
                "seconds": round(answer.seconds, 3),
                "says": answer.says,
            }
            for answer in answers
        ],
    }
    if last.verdict != "passed":
        table["cause"] = last.says
    if run.checkpoint is not None:
        manifest = run.checkpoint.manifest
        table |= {
            "federation": run.checkpoint.genesis_digest,
            "round": manifest.round,
            "manifest": run.checkpoint.manifest_digest,
            "files": len(manifest.files) + len(run.checkpoint.card.files),
            "pinned": is_pinned,
        }
    return table


def _tell(run: Any, answers: list[Any], last: Any, *, is_pinned: bool) -> None:  # noqa: ANN401
    if run.checkpoint is None:
        return
    origin = run.checkpoint.lineage.origin
    name = f"checkpoint {run.checkpoint.manifest.round} of {origin.federation}"
    word = {"passed": "verified", "refused": "REFUSED", "undecided": "not decided"}[last.verdict]
    typer.echo(f"{word}: {name}")
    for answer in answers:
        mark = {"passed": "ok", "refused": "WRONG", "undecided": "?"}[answer.verdict]
        typer.echo(f"  {answer.level:<7} {mark:<5} {answer.seconds:7.2f} s  {answer.says}")
    identity = run.checkpoint.genesis_digest
    typer.echo(f"  federation's identity  {identity}")
    if not is_pinned:
        typer.echo("      compare it with what the federation makes known, or")
        typer.echo(f"      add --federation {identity[:16]}")
