"""`tapestry coordinator policy ...`: what the federation has agreed upon, version by version."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapestry.errors import ConfigError
from tapestry_coordinator.home import CoordinatorHome, find_home
from tapestry_coordinator.operator_commands import Dir, Json

if TYPE_CHECKING:
    from tapestry_coordinator.policy_history import PolicyVersion
from tapestry_coordinator.registry import Registry

app = typer.Typer(
    help="Show, check and change what the federation has agreed upon.", no_args_is_help=True
)

Now = time.time  # noqa: TID251 - the edge that owns the clock


@app.command()
def show(
    version: Annotated[
        int | None, typer.Argument(help="Number of a version; default: the newest.")
    ] = None,
    folder: Dir = None,
    as_json: Json = False,
) -> None:
    """Print a recorded policy as TOML, or the canonical JSON whose SHA-256 the manifests name.

    Example: tapestry coordinator policy show 2 --dir fed --json | sha256sum
    """
    from tapestry.config import commented_toml  # noqa: PLC0415
    from tapestry_coordinator.status import readable_time  # noqa: PLC0415

    found = _recorded(find_home(folder), version)
    if as_json:
        typer.echo(found.policy.canonical(), nl=False)
        return
    head = f"Version {found.version}, recorded {readable_time(found.at)}, SHA-256 {found.digest}"
    typer.echo(commented_toml(found.policy, head=head))


@app.command()
def history(folder: Dir = None, as_json: Json = False) -> None:
    """List the recorded versions, newest first, with what each changed."""
    from tapestry_coordinator.status import readable_time  # noqa: PLC0415

    with closing(_registry(find_home(folder))) as registry:
        versions = registry.policies()
    rows: list[dict[str, Any]] = [
        {
            "version": one.version,
            "digest": one.digest,
            "recorded": readable_time(one.at),
            "changed": changes(before, one),
        }
        for one, before in zip(versions, [*versions[1:], None], strict=True)
    ]
    if as_json:
        typer.echo(json.dumps({"policies": rows}, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['version']:>4}  {row['digest'][:16]}  {row['recorded']}")
        for change in row["changed"]:
            typer.echo(f"      {change}")


@app.command()
def check(
    path: Annotated[Path | None, typer.Argument(help="Default: the folder's policy.toml.")] = None,
    folder: Dir = None,
) -> None:
    """Say what a policy file would change, and whether it can hold; changes nothing.

    Example: tapestry coordinator policy check proposed.toml --dir fed
    """
    from tapestry.checkpoints.policy import load_policy  # noqa: PLC0415
    from tapestry_coordinator.policy_history import PolicyVersion  # noqa: PLC0415 - imports sqlalchemy

    home = find_home(folder)
    proposed = load_policy(path or home.policy)
    proposed.require_quorum(home.load_settings().rounds.quorum)
    newest = _recorded(home, None)
    proposal = PolicyVersion(
        version=newest.version + 1, digest=proposed.digest, policy=proposed, at=0.0
    )
    changed = changes(newest, proposal)
    typer.echo(f"can hold; SHA-256 {proposed.digest}")
    for change in changed or [f"the same as version {newest.version}"]:
        typer.echo(f"  {change}")


@app.command()
def apply(
    path: Annotated[
        Path | None, typer.Argument(help="Default: the folder's policy.toml, as you edited it.")
    ] = None,
    folder: Dir = None,
) -> None:
    """Record a policy as the newest version; in force when the next round opens.

    May be done while the coordinator runs. A round that is open, or planned again, keeps its own.

    Example: tapestry coordinator policy apply --dir fed
    """
    from tapestry.checkpoints.policy import load_policy  # noqa: PLC0415

    home = find_home(folder)
    policy = load_policy(path or home.policy)
    policy.require_quorum(home.load_settings().rounds.quorum)
    with closing(_registry(home)) as registry:
        before = registry.newest_policy()
        after = registry.adopt_policy(policy, now=Now())
    if path is not None:
        home.save_policy(policy)
    if before is not None and before.version == after.version:
        typer.echo(f"version {after.version} is this policy already; nothing changed")
        return
    typer.echo(f"version {after.version} is recorded, in force when the next round opens")
    for change in changes(before, after):
        typer.echo(f"  {change}")


def changes(before: "PolicyVersion | None", after: "PolicyVersion") -> list[str]:
    """Return a line for each value that `after` changed, such as `aggregation.clip: 1.5 -> 2.0`."""
    if before is None:
        return []
    old, new = before.policy.model_dump(mode="json"), after.policy.model_dump(mode="json")
    return [
        f"{table}.{key}: {json.dumps(old[table][key])} -> {json.dumps(value)}"
        for table, values in new.items()
        for key, value in values.items()
        if old[table][key] != value
    ]


def _registry(home: CoordinatorHome) -> "Registry":
    from tapestry_coordinator.database import database_url  # noqa: PLC0415
    from tapestry_coordinator.registry import Registry  # noqa: PLC0415 - imports sqlalchemy

    return Registry(database_url(home))


def _recorded(home: CoordinatorHome, version: int | None) -> "PolicyVersion":
    with closing(_registry(home)) as registry:
        versions = registry.policies()
    for one in versions:
        if version in (None, one.version):
            return one
    newest = versions[0].version if versions else 0
    raise ConfigError(f"there is no policy version {version}: the newest is {newest}")
