"""Leaving a federation: take everything along, verified; then end the membership.

Nothing is deleted in the node's folder, and the membership ends last: whatever goes wrong before
leaves a member as it was.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.errors import ConfigError, RejectedError, UnavailableError, UntrustedError
from tapestry.identity.keys import public_bytes
from tapestry.storage.atomic import write_atomic
from tapestry_node.approving import decision_on
from tapestry_node.client import NodeClient
from tapestry_node.consensus import Consensus, Standing
from tapestry_node.delivering import deliver
from tapestry_node.exporting import newest_here
from tapestry_node.home import NodeHome
from tapestry_node.spool import Spooled, find_unsettled

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """What the coordinator had for a member that leaves."""

    obstacle: str
    """Why it could not be asked; empty if it could."""
    card: Path | None
    """Folder of the newest checkpoint's model card."""


def bring_up_to_date(home: NodeHome, client: NodeClient, say: Say) -> Reached:
    """Fetch the newest checkpoint and its card, if the coordinator answers."""
    standing = Standing(home)
    consensus = Consensus(
        home, home.identity.load(), standing, fetcher=lambda: client.fetcher, tell=say
    )
    try:
        envelope, _card = client.fetcher.describe()
        manifest = consensus.take(envelope)
        consensus.checkpoint(manifest, envelope)
    except UnavailableError as error:
        return Reached(obstacle=str(error), card=None)
    return Reached(obstacle="", card=_card_of(home, client, manifest))


def _card_of(home: NodeHome, client: NodeClient, manifest: Manifest) -> Path | None:
    """Fetch the model card of a checkpoint; None if it cannot be had."""
    folder = home.checkpoints / ".card"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tapestry").mkdir(parents=True)
    key = bytes.fromhex(home.identity.load().coordinator_key)
    try:
        client.fetcher.fetch_card(
            folder, manifest.round, key=key, parts=home.checkpoints / ".parts"
        )
    except (RejectedError, UnavailableError, UntrustedError):
        return None
    return folder


def waiting_contributions(home: NodeHome) -> list[Spooled]:
    """Return the finished contributions without a receipt, oldest first; none before round 1."""
    if not home.spooled():
        return []
    layout = open_vector_file(newest_here(home) / MODEL_FILE).layout
    newest = int(home.spooled()[-1].name.rsplit("-", 1)[1])
    key = public_bytes(home.identity.signing_key())
    return find_unsettled(home, layout, key=key, late=range(newest + 1))


def settle_spool(
    home: NodeHome, client: NodeClient, choice: Literal["send", "drop"] | None, say: Say
) -> None:
    """Send what is spooled, or leave it unsent, as was chosen.

    Raises:
        ConfigError: There is something and nothing was chosen, or a person has not approved it.
        UnavailableError: The coordinator does not answer.
    """
    for spooled in waiting_contributions(home):
        what = f"the contribution to round {spooled.contribution.round}"
        if choice is None:
            raise ConfigError(
                f"{what} is finished and not sent: add --spool send, or --spool drop to leave it "
                "unsent"
            )
        if choice == "drop":
            say(f"{what} is not sent, and not exported; it stays in {spooled.folder}")
            continue
        if home.load_settings().policy.approval == "manual":
            decision = decision_on(home, spooled)
            if decision is None or not decision.is_approved:
                raise ConfigError(
                    f"{what} has no approval: `tapestry node approve`, or --spool drop"
                )
        key = bytes.fromhex(home.identity.load().coordinator_key)
        try:
            deliver(client, spooled, home, Standing(home), coordinator_key=key)
            say(f"{what} is sent, with a receipt")
        except RejectedError as error:
            say(f"{what} is not taken: {error}")


def revoke(home: NodeHome, client: NodeClient, *, reason: str, export: Path | None) -> str:
    """End the membership at the coordinator, and note it here; return when, in words.

    Raises:
        UnavailableError: The coordinator does not answer: the membership stands.
    """
    left_at = client.leave(reason)
    when = f"{datetime.fromtimestamp(left_at, UTC):%Y-%m-%d %H:%M} UTC"
    table = {"left_at": left_at, "export": None if export is None else str(export)}
    write_atomic(home.left, json.dumps(table) + "\n")
    return when


def require_member(home: NodeHome) -> None:
    """Refuse what only a member can do.

    Raises:
        ConfigError: This node has left.
    """
    if home.left.is_file():
        federation = home.identity.load().federation
        raise ConfigError(
            f"{home.folder}: this node has left {federation}; to join again, ask for an "
            "invitation and use another --dir. `tapestry node island` works as before"
        )
