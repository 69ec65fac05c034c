"""Local finish: from the consensus a few steps on with the node's own text; nothing is sent."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.localized import Parentage, write_localized
from tapestry.checkpoints.manifest import Manifest
from tapestry.errors import ConfigError
from tapestry.objectives.objective import OnPreparing
from tapestry.objectives.reports import StepReport
from tapestry.params.modules import fragment_of
from tapestry_node.alone import train_alone
from tapestry_node.home import NodeHome
from tapestry_node.trainer import Trainer


def finish_locally(
    home: NodeHome,
    data: Sequence[Path],
    out: Path,
    *,
    steps: int | None,
    on_packing: OnPreparing | None = None,
    on_step: Callable[[StepReport, int], None] | None = None,
) -> Parentage:
    """Train the newest consensus here on the node's own text and write the result to `out`.

    Raises:
        ConfigError: No trained checkpoint is here yet, or `out` exists.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists already; name a new folder")
    state, membership = home.load_state(), home.identity.load()
    folder = home.checkpoint(state.round)
    if state.round < 1 or not folder.is_dir():
        raise ConfigError(f"{home.folder}: no consensus checkpoint is here yet: run the node first")
    envelope = read_envelope(folder / MANIFEST_FILE, what="manifest")
    key = bytes.fromhex(membership.coordinator_key)
    manifest = Manifest.opened(envelope, public_key=key, what="manifest")
    if manifest.made is None:
        raise ConfigError(f"{folder}: is genesis; nothing to finish")
    if steps is not None and steps < 1:
        raise ConfigError(f"{steps} steps: expected 1 or more")
    inner = manifest.made.inner
    inner = inner.model_copy(update={"steps": steps or inner.steps})
    settings = home.load_settings().node
    trainer = Trainer(
        home,
        settings,
        state.objective,
        folder,
        data,
        sequence_tokens=inner.sequence_tokens,
        on_packing=on_packing,
    )
    base = trainer.load(folder)
    before = trainer.objective.evaluate(trainer.module, trainer.corpus)
    train_alone(
        trainer,
        inner,
        state=home.trainer_state(state.contributed),
        on_step=lambda report: on_step is None or on_step(report, inner.steps) is None,
    )
    after = trainer.objective.evaluate(trainer.module, trainer.corpus)
    parentage = Parentage(
        federation=membership.genesis,
        manifest=state.manifest,
        round=state.round,
        steps=inner.steps,
        tokens=inner.tokens,
        data=[path.name for path in data],
        held_out_bits_per_byte={"before": before.bits_per_byte, "after": after.bits_per_byte},
    )
    write_localized(
        out,
        base=folder,
        manifest=manifest,
        layout=trainer.layout,
        extras=base.extras,
        read_fragment=lambda index: fragment_of(trainer.module, trainer.layout, index),
        parentage=parentage,
    )
    return parentage
