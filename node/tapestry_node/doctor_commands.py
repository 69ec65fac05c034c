"""`tapestry node doctor`: parse, call, render."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapestry.cli.running import default_home
from tapestry.errors import ConfigError
from tapestry_node.options import AsJson, Data, Folder, text_or_file

if TYPE_CHECKING:
    from tapestry_node.hardware import Finding

_COLORS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}


def doctor(
    folder: Folder = None,
    data: Data = [],  # noqa: B006 - typer copies it
    invitation: Annotated[
        str | None,
        typer.Option(help="Before joining: the invitation, its text or a file. It is not used up."),
    ] = None,
    parameters: Annotated[
        int, typer.Option(min=0, help="Before joining: of the federation's model, if you know it.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Find out what would keep this machine from taking part, before it does.

    Looks at keys, certificate, clock, settings, text, the line to the coordinator, disk, memory,
    and whether the trainer can be shut off from the network. Changes nothing. Ends with exit code
    1 if there is a problem. Where nobody has joined yet, it looks at what it can without keys.

    Examples: tapestry node doctor node --data /srv/texts; before joining: tapestry node doctor
    --invitation fr-bnf.invitation --data /srv/texts --parameters 1000000000
    """
    target = (folder or default_home("node")).resolve()
    findings = []
    for finding in _findings(target, data, invitation, parameters):
        findings.append(finding)
        if not as_json:
            verdict = typer.style(f"{finding.verdict:<8}", fg=_COLORS[finding.verdict])
            typer.echo(f"{verdict} {finding.about:<12} {finding.found}")
            if finding.remedy:
                typer.echo(f"{'':<21} {finding.remedy}")
    problems = sum(finding.verdict == "problem" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(one) for one in findings]}, indent=1))
    else:
        typer.echo("this machine can take part" if not problems else f"{problems} to mend first")
    if problems:
        raise typer.Exit(1)


def _findings(
    target: Path, data: list[Path], invitation: str | None, parameters: int
) -> "Iterator[Finding]":
    """Look at a node, or at the machine where there is none yet."""
    from tapestry.identity.invitations import decode  # noqa: PLC0415
    from tapestry_node.home import NodeHome, require_node  # noqa: PLC0415

    now = time.time()  # noqa: TID251 - the edge that owns the clock
    if NodeHome(target).identity.folder.exists():
        from tapestry_node.doctor import examine  # noqa: PLC0415 - imports grpc

        if invitation is not None or parameters:
            raise ConfigError(
                f"{target}: has joined already; --invitation and --parameters are for before that"
            )
        return examine(require_node(target), data, now=now)
    from tapestry_node.before_joining import examine_before  # noqa: PLC0415

    line = "" if invitation else ", and not the line: --invitation says where the coordinator is"
    typer.echo(f"no node in {target}: looking at what can be before joining{line}", err=True)
    opened = None if invitation is None else decode(text_or_file(invitation))
    return examine_before(target, data, opened, parameters=parameters, now=now)
