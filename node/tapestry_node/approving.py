"""A person's approval of what would leave, where the institution's policy asks for one.

Decisions lie in a folder that the trainer's process cannot write to.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tapestry.checkpoints.statements import Contribution, payload_digest
from tapestry.errors import ConfigError
from tapestry.identity.envelopes import Envelope, from_json
from tapestry.storage.atomic import write_atomic
from tapestry_node.corpus_history import made_of, read_history
from tapestry_node.home import NodeHome
from tapestry_node.spool import CONTRIBUTION_FILE, FRAGMENTS_FILE, Spooled


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a person said to a contribution that waits."""

    contribution: str
    """SHA-256 of the signed payload: no other is meant."""
    is_approved: bool
    by: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A contribution that waits for a person."""

    folder: Path
    contribution: Contribution
    digest: str
    """SHA-256 of the signed payload."""
    size_bytes: int
    sources: list[dict[str, Any]]
    """Of the institution's text that it was made of, as the corpus's history has them."""


def waiting(home: NodeHome) -> list[Waiting]:
    """Return the contributions that nobody has decided on, the oldest first.

    Raises:
        UntrustedError: The history that says what they were made of was changed.
    """
    found: list[Waiting] = []
    history: list[dict[str, Any]] | None = None
    for folder in home.spooled():
        try:
            envelope = from_json((folder / CONTRIBUTION_FILE).read_bytes(), what=folder.name)
            size = (folder / FRAGMENTS_FILE).stat().st_size
        except FileNotFoundError:
            continue  # unfinished, or sent meanwhile
        if _decision(home, folder.name, envelope) is None:
            made = Contribution.parsed(envelope.payload, what=folder.name)
            history = read_history(home.corpus) if history is None else history
            found.append(
                Waiting(
                    folder=folder,
                    contribution=made,
                    digest=payload_digest(envelope),
                    size_bytes=size,
                    sources=made_of(history, made.root),
                )
            )
    return found


def summary(one: Waiting) -> dict[str, Any]:
    """Return what would leave, for programs, and for `facts`."""
    made = one.contribution
    return {
        "round": made.round,
        "base": made.base,
        "codec": made.codec,
        "bytes": one.size_bytes,
        "fragments": made.fragments,
        "root": made.root,
        "norm": made.norm,
        "steps": made.steps,
        "tokens": made.tokens,
        "sources": one.sources,
        "metrics": made.metrics,
        "statistics": sorted(made.statistics),
        "digest": one.digest,
    }


def facts(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a summary says, for a person: names and what stands behind them."""
    sources = [
        f"{one['name']}: {one['documents']:,} documents, {one['tokens']:,} tokens"
        for one in shown["sources"]
    ]
    metrics = [f"{name} {value:g}" for name, value in shown["metrics"].items()]
    return [
        ("round", f"{shown['round']}, from the checkpoint {shown['base'][:16]}"),
        ("what", f"what {shown['steps']:,} steps over {shown['tokens']:,} tokens changed"),
        ("your text", "; ".join(sources) or "not on record"),
        ("bytes", f"{shown['bytes']:,}, in {shown['fragments']:,} fragments of {shown['codec']}"),
        ("length", f"{shown['norm']:.4g} (norm)"),
        ("told beside", ", ".join([*metrics, *shown["statistics"]]) or "nothing"),
        ("root", f"{shown['root']} (of the fragments, as in the receipt)"),
        ("digest", f"{shown['digest']} (of what this node has signed)"),
    ]


def decide(home: NodeHome, one: Waiting, *, is_approved: bool, by: str, reason: str = "") -> None:
    """Write down what a person has decided; the daemon acts on it."""
    decision = Decision(contribution=one.digest, is_approved=is_approved, by=by, reason=reason)
    home.approvals.mkdir(mode=0o700, exist_ok=True)
    path = home.approvals / f"{one.folder.name}.json"
    write_atomic(path, json.dumps(asdict(decision)) + "\n", mode=0o600)


def decision_on(home: NodeHome, spooled: Spooled) -> Decision | None:
    """Return what a person has said to a contribution; None: nothing yet.

    Raises:
        ConfigError: The decision's file cannot be read.
    """
    return _decision(home, spooled.folder.name, spooled.envelope)


def _decision(home: NodeHome, name: str, envelope: Envelope) -> Decision | None:
    path = home.approvals / f"{name}.json"
    try:
        decision = Decision(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a decision ({error}); remove it and decide again"
        ) from error
    return decision if decision.contribution == payload_digest(envelope) else None
