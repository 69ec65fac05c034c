"""Every published checkpoint made once more, in another folder, from what was recorded of it."""

import shutil
from contextlib import closing
from pathlib import Path

from tapestry.checkpoints.folder import ROUND_FILE
from tapestry.checkpoints.manifest import Manifest
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.events import Published
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.rounds import folded
from tests.coordinator.small import Small


def recomputed(home: CoordinatorHome, registry: Registry, folder: Path) -> list[Envelope]:
    """Return the manifests from genesis on as they come out of contributions, plans and events."""
    folder.mkdir(parents=True)
    for name in ("coordinator.toml", "policy.toml"):
        shutil.copyfile(home.folder / name, folder / name)
    for name in ("identity", "contributions"):
        shutil.copytree(home.folder / name, folder / name, dirs_exist_ok=True)
    again = CoordinatorHome(folder)
    shutil.copytree(home.checkpoint(0), again.checkpoint(0))
    small = Small(again)
    manifests = registry.lineage()[:1]
    with closing(small.store):
        for number in range(1, (registry.newest_round() or 0) + 1):
            events = registry.round_events(number)
            state = folded(number, [(at, e) for at, e in events if not isinstance(e, Published)])
            manifests.append(small.publisher.publish(ClosedRound.recorded(registry, state)))
    return manifests


def substance(envelope: Envelope) -> dict[str, object]:
    """What a round came to, without its times: equal in two runs with equal contributions.

    Plan and contributions as they were signed have times in them.
    """
    manifest = Manifest.parsed(envelope.payload, what="manifest")
    if manifest.made is None:
        return {"vector": manifest.vector_root}
    return {
        "round": manifest.round,
        "vector": manifest.vector_root,
        "state": manifest.made.outer.state_root,
        "files": [(e.name, e.digest) for e in manifest.files if e.name != ROUND_FILE],
        "reverted": manifest.made.reverted is not None,
        "parts": [
            (p.member_id, p.weight, p.clip_factor, p.norm, p.root, p.tokens)
            for p in manifest.made.participation
        ],
        "absent": [(a.member_id, a.reason) for a in manifest.made.absent],
    }
