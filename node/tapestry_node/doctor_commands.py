"""`tapestry node doctor`: parse, call, render."""

import json
import time
from dataclasses import asdict

import typer

from tapestry.cli.running import default_home
from tapestry_node.options import AsJson, Data, Folder

_COLORS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}


def doctor(
    folder: Folder = None,
    data: Data = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Find out what would keep this machine from taking part, before it does.

    Looks at keys, certificate, clock, settings, text, the line to the coordinator, disk, memory,
    and whether the trainer can be shut off from the network. Changes nothing. Ends with exit code
    1 if there is a problem.

    Example: tapestry node doctor node --data /srv/texts
    """
    from tapestry_node.doctor import examine  # noqa: PLC0415 - imports grpc
    from tapestry_node.home import require_node  # noqa: PLC0415

    home = require_node(folder or default_home("node"))
    now = time.time()  # noqa: TID251 - the edge that owns the clock
    findings = []
    for finding in examine(home, data, now=now):
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
