"""Everything about a node that its operator asks, read from its own files: one source for all.

`tapestry node status` and the local page show it. Nothing is asked of the coordinator, nothing of
the text or of what the trainer keeps is opened, and a damaged file is named instead of hiding the
rest.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tapestry.checkpoints.folder import read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import Receipt
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.errors import TapestryError
from tapestry.identity.membership import Membership
from tapestry.storage.locks import holder
from tapestry_node.approving import summary, waiting
from tapestry_node.departed import Departed, Left
from tapestry_node.home import NodeHome, NodeState
from tapestry_node.keeping import read_policy
from tapestry_node.lineage import LineageFile
from tapestry_node.policy import SETTINGS_FILE, NodeSettings
from tapestry_node.progress import Progress, in_words, lasting, read_progress, silence

_T = TypeVar("_T")

_DAY_SECONDS = 86_400
_ROUNDS = 20
_SOON_SECONDS = 7 * _DAY_SECONDS
_MODELS_OF_ROUND = 2
"""What a round still needs of the disk: the next checkpoint and a contribution, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRound:
    """A round of the federation, as its manifest and this node's files tell it."""

    round: int
    took_part: bool
    weight: float
    tokens: int
    left_out: str
    """Why this node had no part in it, or no weight; empty if it had."""
    reverted: str
    """Why the consensus stayed as it was; empty if it did not."""
    bits_per_byte: float | None
    """Of the checkpoint on this node's held-out text."""
    has_receipt: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class InForce:
    """The policy under which something leaves now, or would if the node were started."""

    digest: str
    rules: dict[str, Any]
    is_changed: bool
    """Whether `node.toml` says something else since the node was started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """A node at one moment."""

    folder: str
    time: float
    membership: Membership
    certificate_from: float
    certificate_until: float
    process: int | None
    """That works in the folder now."""
    now: Progress
    state: NodeState
    policy: InForce | None
    """None if it cannot be read."""
    receipt: Receipt | None
    """The newest."""
    rounds: tuple[PastRound, ...]
    """The newest first."""
    left: Left
    waiting: tuple[dict[str, Any], ...]
    """Contributions that a person has to decide on, as `tapestry node approve` shows them."""
    disk_free_bytes: int
    model_bytes: int
    """0 before the first checkpoint."""
    has_left: bool
    damaged: tuple[str, ...]
    """Files that cannot be read, and why."""

    @property
    def is_running(self) -> bool:
        """Whether the daemon is at work."""
        return self.process is not None and self.process == self.now.pid

    @property
    def activity(self) -> str:
        """What the node does, in one line."""
        if self.is_running:
            return in_words(self.now)
        if self.process is not None:
            return f"not running; another command (process {self.process}) works in its folder"
        return "not running"

    @property
    def to_do(self) -> list[str]:
        """What somebody should do, the most urgent first."""
        return list(_to_do(self))

    def table(self) -> dict[str, Any]:
        """Return it for JSON; `docs/institution.md` says what each field is."""
        known = self.membership
        left = {**asdict(self.left), "today_bytes": self.left.today_bytes}
        return {
            "time": self.time,
            "folder": self.folder,
            "member_id": known.member_id,
            "federation": known.federation,
            "identity": known.genesis,
            "coordinator": known.address,
            "certificate": {"from": self.certificate_from, "until": self.certificate_until},
            "is_running": self.is_running,
            "process": self.process,
            "activity": self.activity,
            "now": asdict(self.now),
            "newest_checkpoint": self.state.round,
            "contributed_round": self.state.contributed,
            "receipt": None
            if self.receipt is None
            else {
                "round": self.receipt.round,
                "used_round": self.receipt.used_round or self.receipt.round,
                "accepted_at": self.receipt.accepted_at,
            },
            "rounds": [asdict(one) for one in self.rounds],
            "left": left,
            "waiting": list(self.waiting),
            "policy": None if self.policy is None else asdict(self.policy),
            "disk": {"free_bytes": self.disk_free_bytes, "model_bytes": self.model_bytes},
            "has_left": self.has_left,
            "damaged": list(self.damaged),
            "to_do": self.to_do,
        }


class Observer:
    """Looks at a node again and again; of the ledger, it reads each line once."""

    def __init__(self, home: NodeHome) -> None:
        """Watch the node in `home`.

        Raises:
            ConfigError: Nobody joined a federation there, or its identity is damaged.
        """
        self.home = home
        self._membership = home.identity.load()
        self._validity = home.identity.validity()
        self._departed = Departed(home.egress, home.egress_seen)
        self._rounds: tuple[tuple[str, int], tuple[PastRound, ...]] = (("", 0), ())

    def look(self, *, now: float) -> Overview:
        """Return how the node is at `now`, in Unix seconds."""
        damaged: list[str] = []
        home = self.home
        self._validity = _readable(home.identity.validity, self._validity, damaged)
        begin, end = self._validity
        progress = read_progress(home.progress)
        state = _readable(home.load_state, NodeState(), damaged)
        process = holder(home.folder)
        is_running = process is not None and process == progress.pid
        started = progress.policy if is_running else ""
        policy = _readable(lambda: _in_force(home, started), None, damaged)
        left = self._departed.look(now=now)
        if left.problem:
            damaged.append(left.problem)
        return Overview(
            folder=str(home.folder),
            time=now,
            membership=self._membership,
            certificate_from=begin.timestamp(),
            certificate_until=end.timestamp(),
            process=process,
            now=progress,
            state=state,
            policy=policy,
            receipt=_readable(lambda: self._receipt(state), None, damaged),
            rounds=_readable(lambda: self._past(progress), (), damaged),
            left=left,
            waiting=_readable(lambda: _waiting(home, policy), (), damaged),
            disk_free_bytes=shutil.disk_usage(home.folder).free,
            model_bytes=_model_bytes(home),
            has_left=home.left.is_file(),
            damaged=tuple(damaged),
        )

    def _receipt(self, state: NodeState) -> Receipt | None:
        """Return the newest receipt."""
        path = _receipt_path(self.home, state.contributed)
        if not path.is_file():
            return None
        what = f"{path}: receipt"
        key = bytes.fromhex(self._membership.coordinator_key)
        return Receipt.opened(read_envelope(path, what=what), public_key=key, what=what)

    def _past(self, progress: Progress) -> tuple[PastRound, ...]:
        """Return the newest rounds; manifests are opened again only when there are others."""
        try:
            status = self.home.lineage.stat()
        except FileNotFoundError:
            return ()
        mark = (json.dumps(progress.bits_per_byte), status.st_mtime_ns)
        if self._rounds[0] != mark:
            key = bytes.fromhex(self._membership.coordinator_key)
            manifests = [
                Manifest.opened(one, public_key=key, what=f"{self.home.lineage}: manifest")
                for one in LineageFile(self.home.lineage).tail(_ROUNDS)
            ]
            self._rounds = (mark, tuple(self._round(m, progress) for m in reversed(manifests)))
        return self._rounds[1]

    def _round(self, manifest: Manifest, progress: Progress) -> PastRound:
        own, made = self._membership.member_id, manifest.made
        part = next((p for p in made.participation if p.member_id == own), None) if made else None
        absent = next((a for a in made.absent if a.member_id == own), None) if made else None
        reason = part.reason if part else absent.reason if absent else ""
        return PastRound(
            round=manifest.round,
            took_part=part is not None,
            weight=part.weight if part else 0.0,
            tokens=part.tokens if part else 0,
            left_out=reason,
            reverted=made.reverted.reason if made and made.reverted else "",
            bits_per_byte=progress.bits_per_byte.get(str(manifest.round)),
            has_receipt=_receipt_path(self.home, manifest.round).is_file(),
        )


def _readable(read: Callable[[], _T], otherwise: _T, damaged: list[str]) -> _T:
    """Return what `read` does, or note why it cannot."""
    try:
        return read()
    except (TapestryError, OSError, ValueError) as error:
        damaged.append(str(error))
        return otherwise


def _in_force(home: NodeHome, started: str) -> InForce:
    """Return the policy with the digest `started`, or what `node.toml` says if that is empty."""
    has_file = (home.folder / SETTINGS_FILE).exists()  # it is written at the first start
    said = (home.load_settings() if has_file else NodeSettings()).policy
    if started in ("", said.digest()):
        rules = said.model_dump(mode="json")
        return InForce(digest=said.digest(), rules=rules, is_changed=False)
    rules = read_policy(home.policies / f"{started}.toml")
    return InForce(digest=started, rules=rules, is_changed=True)


def _waiting(home: NodeHome, policy: InForce | None) -> tuple[dict[str, Any], ...]:
    """Return what a person has to decide on: nothing where everything leaves by itself."""
    if policy is not None and policy.rules["approval"] == "automatic":
        return ()
    return tuple(map(summary, waiting(home)))


def _receipt_path(home: NodeHome, number: int) -> Path:
    return home.receipts / f"{home.spool(number).name}.json"


def _model_bytes(home: NodeHome) -> int:
    for folder in sorted(home.checkpoints.glob("round-*"), reverse=True):
        path = folder / MODEL_FILE
        if path.is_file():
            return path.stat().st_size
    return 0


def _to_do(seen: Overview) -> Iterable[str]:
    """Yield what somebody should do, the most urgent first."""
    node = seen.folder
    if seen.has_left:
        yield "this node has left the federation; `tapestry node island` works as before"
        return
    if seen.left.problem:
        yield f"the egress ledger is damaged: keep it, and look: tapestry node audit {node}"
    yield from (f"mend or remove: {one}" for one in seen.damaged if one != seen.left.problem)
    ends_in = seen.certificate_until - seen.time
    if not seen.certificate_from <= seen.time < seen.certificate_until:
        yield (
            "the certificate is not valid now: set the clock, or ask the coordinator's operator "
            "for a new invitation"
        )
    elif ends_in < _SOON_SECONDS:
        yield (f"the certificate ends in {lasting(ends_in)}: a node that is connected renews it")
    yield from (
        f"round {one['round']}: look at what would leave, and decide: tapestry node approve {node}"
        for one in seen.waiting
    )
    if 0 < seen.disk_free_bytes < _MODELS_OF_ROUND * seen.model_bytes:
        yield (
            f"the disk has {seen.disk_free_bytes / 1e9:,.1f} GB left, a round may take "
            f"{_MODELS_OF_ROUND * seen.model_bytes / 1e9:,.1f} GB: free some"
        )
    yield from _of_the_daemon(seen)
    newest = seen.rounds[0] if seen.rounds else None
    if newest is not None and newest.left_out:
        yield (
            f"round {newest.round} went without you ({newest.left_out}); all that the coordinator "
            f"holds against what you sent: tapestry node exclusions {node}"
        )


def _of_the_daemon(seen: Overview) -> Iterable[str]:
    if seen.process is None:
        if seen.now.failure:
            yield f"it ended with: {seen.now.failure}"
        yield f"start it: tapestry node run {seen.folder}"
    elif said := silence(seen.now.silent_since if seen.is_running else 0.0, now=seen.time):
        yield said
    if seen.policy is not None and seen.policy.is_changed:
        yield "node.toml was changed: stop the node and start it again, and it holds"
