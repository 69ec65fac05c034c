"""What the last contribution gives away: found on the disk here, measured in a trainer's process.

The measuring process is the trainer's: no network, no keys. Nothing of the result leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import Contribution, InnerSettings, payload_digest
from tapestry.errors import ConfigError
from tapestry.identity.envelopes import Envelope
from tapestry_node.canaries import planted, references
from tapestry_node.home import NodeHome
from tapestry_node.spool import CONTRIBUTION_FILE, FRAGMENTS_FILE
from tapestry_node.trainer_process import TrainerProcess

_REFERENCES = 1023


@dataclass(frozen=True, kw_only=True, slots=True)
class _Last:
    """The last contribution, as far as it is still here."""

    round: int
    fragments: Path | None
    """None: it has to be made again."""
    codec: str
    source: str


def examine_last(
    home: NodeHome,
    data: Sequence[Path],
    *,
    seed: int,
    on_blocked: Callable[[str, str], None],
    on_progress: Callable[[str, int, int, str], None],
) -> dict[str, Any]:
    """Measure what the last contribution gives away.

    Args:
        home: Of the node.
        data: The institution's text, as for `tapestry node run`.
        seed: Draws the batch that is attacked.
        on_blocked: Told when the measuring process has tried to reach a network.
        on_progress: Told what is done, how far that is, of how much, and in what unit.

    Raises:
        ConfigError: Nothing was contributed yet, or its base checkpoint is not here any more.
    """
    key = bytes.fromhex(home.identity.load().coordinator_key)
    last = _last(home)
    base = home.checkpoint(last.round - 1)
    if not base.is_dir():
        raise ConfigError(
            f"{base}: the checkpoint that the contribution to round {last.round} was trained from "
            "is not kept any more; measure right after a round"
        )
    manifests = {
        number: Manifest.opened(_manifest(home, number), public_key=key, what="manifest")
        for number in (last.round - 1, last.round)
        if home.checkpoint(number).is_dir()
    }
    inner = _inner(manifests, last.round)
    canaries = planted(home)
    process = TrainerProcess(
        home,
        on_blocked=on_blocked,
        on_packing=lambda doing, done, of: on_progress(doing, done, of, "bytes"),
    )
    try:
        process.open(
            home.load_settings().node.model_copy(update={"processes": 1, "compile": False}),
            home.load_state().objective,
            base,
            data,
            sequence_tokens=inner.sequence_tokens,
        )
        figures = process.examine(
            base=str(base),
            consensus=str(home.checkpoint(last.round)) if last.round in manifests else None,
            fragments=None if last.fragments is None else str(last.fragments),
            codec=last.codec,
            inner=inner.model_dump_json(),
            canaries=None
            if canaries is None
            else {
                "planted": canaries.planted,
                "references": references(canaries, _REFERENCES),
            },
            seed=seed,
            on_progress=lambda doing, done, of: on_progress(doing, done, of, ""),
        )
        isolation = process.isolation
    finally:
        process.stop()
    figures["round"], figures["source"] = last.round, last.source
    figures["codec"], figures["steps"] = last.codec, inner.steps
    figures["not_kept_from"] = isolation
    if canaries is not None:
        figures["canaries"]["planted"] = len(canaries.planted)
        figures["canaries"]["repeats"] = canaries.repeats
    return figures


def _last(home: NodeHome) -> _Last:
    """Return the newest contribution: waiting to be sent, kept, or known by its receipt only."""
    found = [(folder, "waits in the spool") for folder in home.spooled()]
    found += [(home.kept, "kept as it was sent")]
    options = []
    for folder, source in found:
        if (folder / CONTRIBUTION_FILE).is_file() and (folder / FRAGMENTS_FILE).is_file():
            envelope = read_envelope(folder / CONTRIBUTION_FILE, what=f"contribution in {folder}")
            made = Contribution.parsed(envelope.payload, what=f"contribution in {folder}")
            is_base = _is_base(home, made)
            if is_base:
                options.append(
                    _Last(
                        round=made.round,
                        fragments=folder / FRAGMENTS_FILE,
                        codec=made.codec,
                        source=source,
                    )
                )
    newest = home.load_state().contributed
    if options and max(one.round for one in options) >= newest:
        return max(options, key=lambda one: one.round)
    if newest < 1:
        raise ConfigError(
            f"{home.folder}: nothing was contributed yet: run the node for a round first"
        )
    return _Last(
        round=newest,
        fragments=None,
        codec="float32",
        source=(
            "made again from the checkpoint before it and the text as it is now; the bytes that "
            "left were not kept ([node] keep_last_contribution)"
        ),
    )


def _is_base(home: NodeHome, made: Contribution) -> bool:
    """Whether the checkpoint that a contribution was trained from is here."""
    folder = home.checkpoint(made.round - 1)
    return folder.is_dir() and payload_digest(_manifest(home, made.round - 1)) == made.base


def _manifest(home: NodeHome, number: int) -> Envelope:
    return read_envelope(home.checkpoint(number) / MANIFEST_FILE, what=f"manifest {number}")


def _inner(manifests: dict[int, Manifest], number: int) -> InnerSettings:
    """Return what was trained, from the manifest of the round, or of the one before."""
    for manifest in (manifests.get(number), manifests.get(number - 1)):
        if manifest is not None and manifest.made is not None:
            return manifest.made.inner
    raise ConfigError(f"round {number} is not published yet: measure when it is")
