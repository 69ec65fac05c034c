"""How deep a checkpoint is verified: levels with a name, a cost and an answer each.

| level | needs | costs | answers |
|---|---|---|---|
| `files` | the folder | hashing it twice | is it what the coordinator signed, since genesis? |
| `record` | the folder | milliseconds more | did its round go by the federation's own policy? |
| `ledger` | the folder | milliseconds more | is it in the ledger, and have members seen that? |
| `replay` | an archive of the round | as aggregation | is it what comes of the contributions? |

Each includes those before it. One that is refused ends the run; one that cannot be decided, because
something is not there (yet), does not, but then the whole is not decided either.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tapestry.checkpoints.archive import Archive, MissingError
from tapestry.checkpoints.folder import folder_name
from tapestry.checkpoints.record import VerifiedRound, verify_round
from tapestry.checkpoints.replay import Replayed, replay, sampled
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_checkpoint
from tapestry.errors import UntrustedError
from tapestry.ledger.folder import read_at_most
from tapestry.ledger.heads import origin_of
from tapestry.ledger.proof import MAX_PROOF_BYTES, PROOF_FILE, verify_ledger_proof

Level = Literal["files", "record", "ledger", "replay"]
Verdict = Literal["passed", "refused", "undecided"]
LEVELS: tuple[Level, ...] = get_args(Level)
_FOLDER_NAME = re.compile(r"round-\d{6,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one level came to."""

    level: Level
    verdict: Verdict
    seconds: float
    says: str
    """A sentence: what was found, or the first thing that is wrong or missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be verified."""

    folder: Path
    level: Level = "ledger"
    federation: str | None = None
    at_least: int = 0
    """The round that it must have reached."""
    archive: Path | None = None
    sample: int = 0
    """Fragments to replay; 0: all."""
    head: str = ""
    """Hex root hash that draws them."""
    on_fragment: Callable[[], None] = lambda: None


def verdict_of(answers: Sequence[Answer]) -> Answer:
    """Return the answer that decides: the first that has not passed, the worst first."""
    order: dict[Verdict, int] = {"refused": 0, "undecided": 1, "passed": 2}
    *_others, last = answers
    worst = min(answers, key=lambda answer: order[answer.verdict])
    return last if worst.verdict == "passed" else worst


class Verification:
    """One run through the levels; `checkpoint` is there once the first has passed."""

    def __init__(self, wanted: Wanted) -> None:
        """Nothing is read yet."""
        self._wanted = wanted
        self.checkpoint: VerifiedCheckpoint | None = None
        self._round: VerifiedRound | None = None

    def answers(self) -> Iterator[Answer]:
        """Yield the answer of each level that is wanted; none after one that is refused."""
        steps = {
            "files": self._files,
            "record": self._record,
            "ledger": self._ledger,
            "replay": self._replay,
        }
        for level in LEVELS[: LEVELS.index(self._wanted.level) + 1]:
            began = time.monotonic()
            verdict: Verdict = "passed"
            try:
                says = steps[level]()
            except UntrustedError as error:
                verdict, says = "refused", str(error)
            except MissingError as error:
                verdict, says = "undecided", str(error)
            yield Answer(level=level, verdict=verdict, seconds=time.monotonic() - began, says=says)
            if verdict == "refused":
                return

    def _files(self) -> str:
        wanted = self._wanted
        self.checkpoint = verify_checkpoint(wanted.folder, federation=wanted.federation)
        manifest, card = self.checkpoint.manifest, self.checkpoint.card
        _require_fresh(wanted, manifest.round)
        count = len(manifest.files) + len(card.files)
        return (
            f"{manifest.round + 1} manifests from genesis on, each signed; {count} files have the "
            f"signed SHA-256, none is extra; root {manifest.vector_root[:16]} as signed"
        )

    def _record(self) -> str:
        checkpoint = self._passed()
        self._round = verify_round(self._wanted.folder, checkpoint.lineage)
        if self._round is None:
            return "genesis: made by no round"
        made = checkpoint.manifest.made
        words = "" if made is None or made.reverted is None else "; the round was reverted"
        return (
            f"plan, policy and {len(self._round.contributions)} contributions are signed by whom "
            f"they must be; weights, clip factors and outer step follow from the policy{words}"
        )

    def _ledger(self) -> str:
        checkpoint, lineage = self._passed(), self._passed().lineage
        path = self._wanted.folder / PROOF_FILE
        quorum = 0 if self._round is None else self._round.policy.ledger.witnesses
        if not path.is_file():
            raise MissingError(
                f"{path}: not there: nothing shows that this checkpoint is in the federation's "
                "ledger; fetch it again, or ask the coordinator's operator"
            )
        recorded = verify_ledger_proof(
            read_at_most(path, at_most=MAX_PROOF_BYTES),
            manifest_digest=checkpoint.manifest_digest,
            round_number=checkpoint.manifest.round,
            coordinator_key=lineage.coordinator_key,
            origin=origin_of(lineage.origin.federation, checkpoint.genesis_digest),
            witnesses=lineage.keys,
            quorum=0,
            what=str(path),
        )
        names = ", ".join(recorded.cosigned) or "no member"
        head = recorded.head.head
        if len(recorded.cosigned) < quorum:
            raise MissingError(
                f"{path}: {names} cosigned the head, {quorum} must by the policy: fetch the "
                "checkpoint again later, or ask the coordinator's operator"
            )
        return (
            f"entry {recorded.index} of {head.size} in the ledger {head.origin}, whose head "
            f"{head.root.hex()[:16]} {names} cosigned"
        )

    def _replay(self) -> str:
        checkpoint, wanted = self._passed(), self._wanted
        if self._round is None:
            return "genesis: there is nothing to replay"
        if wanted.archive is None:
            raise MissingError("no archive of the round was given: add --archive FOLDER")
        sample = None
        if wanted.sample:
            vector = open_vector_file(checkpoint.folder / MODEL_FILE)
            sample = sampled(
                vector.layout.fragments,
                wanted.sample,
                manifest=checkpoint.manifest_digest,
                head=wanted.head,
            )
        result = replay(
            checkpoint,
            self._round,
            Archive(wanted.archive),
            sample=sample,
            on_fragment=wanted.on_fragment,
        )
        return _told(result, sample)

    def _passed(self) -> VerifiedCheckpoint:
        if self.checkpoint is None:
            raise ValueError("the first level has not passed")
        return self.checkpoint


def _require_fresh(wanted: Wanted, number: int) -> None:
    """Refuse an old checkpoint in the place of a newer one."""
    name = wanted.folder.resolve().name
    if _FOLDER_NAME.fullmatch(name) and name != folder_name(number):
        raise UntrustedError(
            f"{wanted.folder}: holds checkpoint {number}, which is not what its name says"
        )
    if number < wanted.at_least:
        raise UntrustedError(
            f"{wanted.folder}: checkpoint {number} is older than {wanted.at_least}, which you know "
            "to be published: somebody serves an old one for the newest"
        )


def _told(result: Replayed, sample: tuple[int, ...] | None) -> str:
    which = "" if sample is None else f" ({', '.join(map(str, sample))})"
    state = "" if result.is_state_compared else "; the outer state after it is not in the archive"
    return (
        f"{result.compared} of {result.fragments} fragments{which} made once more of "
        f"{result.contributions} contributions, the same to the bit{state}"
    )
