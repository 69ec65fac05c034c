"""What a node keeps of what left, so that it can be proved and examined later."""

import hashlib
import shutil
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from tapestry.errors import UntrustedError
from tapestry.identity.envelopes import Envelope, canonical_json, to_json
from tapestry.storage.atomic import write_atomic
from tapestry_node.home import NodeHome
from tapestry_node.policy import Policy
from tapestry_node.spool import CONTRIBUTION_FILE, FRAGMENTS_FILE, Spooled

CONTRIBUTION_SUFFIX = ".contribution"
"""Before `.json`: the signed contribution that the receipt beside it is for."""


def keep_policy(home: NodeHome, policy: Policy) -> None:
    """Write this version of the policy under its digest, by which the egress ledger names it."""
    home.policies.mkdir(mode=0o700, exist_ok=True)
    path = home.policies / f"{policy.digest()}.toml"
    if not path.exists():
        head = "# The policy of this node that the egress ledger names by this file's name.\n"
        write_atomic(path, head + tomli_w.dumps(policy.model_dump(mode="json")), mode=0o600)


def read_policy(path: Path) -> dict[str, Any]:
    """Return a kept policy.

    Raises:
        UntrustedError: It is not the one that its name says.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UntrustedError(f"{path}: cannot be read: {error}") from error
    if hashlib.sha256(canonical_json(table)).hexdigest() != path.stem:
        raise UntrustedError(f"{path}: was changed: its rules have another digest than its name")
    return table


def keep_receipt(home: NodeHome, spooled: Spooled, receipt: Envelope) -> None:
    """Write the coordinator's receipt, and the signed contribution that it acknowledges."""
    name = spooled.folder.name
    write_atomic(
        home.receipts / f"{name}{CONTRIBUTION_SUFFIX}.json",
        to_json(spooled.envelope),
        durable=False,
    )
    write_atomic(home.receipts / f"{name}.json", to_json(receipt))


def keep_contribution(home: NodeHome, spooled: Spooled) -> None:
    """Keep the encoded fragments of a contribution in place of those of the one before."""
    temporary = home.folder / ".kept"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    shutil.copyfile(spooled.folder / FRAGMENTS_FILE, temporary / FRAGMENTS_FILE)
    (temporary / FRAGMENTS_FILE).chmod(0o600)
    write_atomic(temporary / CONTRIBUTION_FILE, to_json(spooled.envelope), durable=False)
    shutil.rmtree(home.kept, ignore_errors=True)
    temporary.rename(home.kept)
