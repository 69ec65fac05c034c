"""Island mode: what a node does on its own, with no coordinator and no network.

```
island/round-000012/local-000003/            after three rounds of one upon consensus checkpoint 12
island/round-000012/optimizer.safetensors    the inner optimizer's state of that line
```
A local checkpoint is a model that transformers loads. It is no consensus: its README says so, and
`tapestry-parent.json` names the consensus checkpoint and the local one before it. What the node
keeps for the federation stays untouched, so that it can take part again at any time.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tapestry.checkpoints.folder import folder_name
from tapestry.checkpoints.localized import PARENT_FILE, Parentage, write_localized
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import InnerSettings
from tapestry.errors import ConfigError
from tapestry.identity.membership import Membership
from tapestry.objectives.objective import OnPreparing
from tapestry.objectives.reports import StepReport
from tapestry.objectives.sizes import SIZES
from tapestry.params.modules import fragment_of
from tapestry_node.alone import train_alone
from tapestry_node.exporting import manifest_here
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeSettings
from tapestry_node.trainer import Trainer

_OPTIMIZER = "optimizer.safetensors"
_WARMUP_STEPS = 20
_README = """# LOCAL, not a consensus checkpoint

Trained by *{member}* alone, in island mode: {number} rounds of one upon checkpoint {round} of the
federation *{federation}*. Nobody else has seen it, and the federation has not signed it.
`tapestry-parent.json` names the consensus checkpoint by its digest:

    {manifest}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalParentage(Parentage):
    """Where a local checkpoint stands in the node's own line."""

    local: int
    """Rounds of one since the consensus checkpoint."""
    previous: str
    """SHA-256 of the `tapestry-parent.json` of the local checkpoint before; empty for the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Island:
    """A node on its own; everything that needs its keys' folder has been read."""

    home: NodeHome
    membership: Membership
    settings: NodeSettings
    manifest: Manifest
    digest: str
    consensus: Path
    """Folder of the newest consensus checkpoint that is here."""

    @classmethod
    def of(cls, home: NodeHome, membership: Membership) -> "Island":
        """Read what there is; the membership was read before its folder was given up.

        Raises:
            ConfigError: No checkpoint is here.
        """
        key = bytes.fromhex(membership.coordinator_key)
        manifest, digest, folder = manifest_here(home, key)
        return cls(
            home=home,
            membership=membership,
            settings=home.load_settings(),
            manifest=manifest,
            digest=digest,
            consensus=folder,
        )

    @property
    def line(self) -> Path:
        """Where the node's own line upon this consensus is."""
        return self.home.island / folder_name(self.manifest.round)

    def locals(self) -> list[Path]:
        """Return the local checkpoints of the line, oldest first."""
        return sorted(self.line.glob("local-*"))

    @property
    def newest(self) -> Path:
        """The newest local checkpoint, or the consensus if there is none."""
        return (self.locals() or [self.consensus])[-1]

    def all(self) -> list[Path]:
        """Return every checkpoint that is here, consensus first."""
        consensus = sorted(self.home.checkpoints.glob("round-*"))
        return [*consensus, *sorted(self.home.island.glob("round-*/local-*"))]

    def named(self, name: str | None) -> Path:
        """Return the checkpoint with a name as `list` shows it; None: the newest.

        Raises:
            ConfigError: There is none.
        """
        found = {self.name_of(path): path for path in self.all()}
        if name is None:
            return self.newest
        if name not in found:
            raise ConfigError(f"no checkpoint {name!r:.40} is here: there are {', '.join(found)}")
        return found[name]

    def name_of(self, path: Path) -> str:
        """Return how people call a checkpoint: `12`, or `12/local-3` for one of this node alone."""
        if path.parent == self.home.checkpoints:
            return str(int(path.name.removeprefix("round-")))
        number = int(path.parent.name.removeprefix("round-"))
        return f"{number}/local-{int(path.name.removeprefix('local-'))}"


def inner_settings(island: Island, steps: int | None) -> InnerSettings:
    """Return the inner settings of a round of one: the federation's newest, under this policy.

    Raises:
        ConfigError: The node's own policy forbids it; the message names the setting.
    """
    made, policy = island.manifest.made, island.settings.policy
    if made is not None:
        inner = made.inner
    else:
        size = SIZES["tiny"]
        inner = InnerSettings(
            steps=size.inner_steps,
            sequences=size.sequences,
            sequence_tokens=size.sequence_tokens,
            learning_rate=1e-3,
            warmup_steps=_WARMUP_STEPS,
        )
    if steps is not None:
        inner = InnerSettings(**{**inner.model_dump(), "steps": steps})
    if not policy.min_inner_steps <= inner.steps <= policy.max_inner_steps:
        raise ConfigError(
            f"this node's policy takes {policy.min_inner_steps:,} to {policy.max_inner_steps:,} "
            f"inner steps, not {inner.steps:,}: choose --steps, or change node.toml"
        )
    if inner.tokens > policy.max_tokens:
        raise ConfigError(
            f"this node's policy has max_tokens = {policy.max_tokens:,}, the round would take "
            f"{inner.tokens:,}: choose fewer --steps, or change node.toml"
        )
    return inner


def open_trainer(
    island: Island,
    data: Sequence[Path],
    inner: InnerSettings,
    *,
    on_packing: OnPreparing | None = None,
) -> Trainer:
    """Build the model and pack the corpus.

    Raises:
        ConfigError: The data cannot be used, or the policy does not list the objective.
    """
    objective = island.home.load_state().objective
    if objective not in island.settings.policy.objectives:
        raise ConfigError(f"this node's policy does not list the objective {objective!r}")
    return Trainer(
        island.home,
        island.settings.node,
        objective,
        island.consensus,
        data,
        sequence_tokens=inner.sequence_tokens,
        on_packing=on_packing,
    )


def train_one(
    island: Island,
    trainer: Trainer,
    inner: InnerSettings,
    data: Sequence[Path],
    *,
    keep: int,
    on_step: Callable[[StepReport], bool] | None = None,
    rows: int = 0,
) -> LocalParentage | None:
    """Take one round alone; return what it made, None if `on_step` ended it early.

    Args:
        island: The node on its own.
        trainer: Of its consensus checkpoint.
        inner: How many steps, and how.
        data: For the record: names only.
        keep: Newest local checkpoints that stay; 0: all.
        on_step: Called after each step; False ends the training.
        rows: Sequences that are held in memory at once; 0: all of a micro-batch.
    """
    base_folder, number = island.newest, _number(island) + 1
    base = trainer.load(base_folder)
    before = trainer.objective.evaluate(trainer.module, trainer.corpus)
    own = island.line / _OPTIMIZER
    kept = own if number > 1 else island.home.trainer_state(island.home.load_state().contributed)
    optimizer, losses = train_alone(trainer, inner, state=kept, on_step=on_step, rows=rows)
    if len(losses) < inner.steps:
        return None
    after = trainer.objective.evaluate(trainer.module, trainer.corpus)
    island.line.mkdir(mode=0o700, parents=True, exist_ok=True)
    parentage = LocalParentage(
        federation=island.membership.genesis,
        manifest=island.digest,
        round=island.manifest.round,
        steps=inner.steps,
        tokens=inner.tokens,
        data=[path.name for path in data],
        held_out_bits_per_byte={"before": before.bits_per_byte, "after": after.bits_per_byte},
        local=number,
        previous=_digest(base_folder / PARENT_FILE) if number > 1 else "",
    )
    optimizer.save(own)
    write_localized(
        island.line / f"local-{number:06d}",
        base=island.consensus,
        manifest=island.manifest,
        layout=trainer.layout,
        extras=base.extras,
        read_fragment=lambda index: fragment_of(trainer.module, trainer.layout, index),
        parentage=parentage,
        readme=_README.format(
            member=island.membership.member_id,
            number=number,
            round=island.manifest.round,
            federation=island.membership.federation,
            manifest=island.digest,
        ),
    )
    for past in island.locals()[:-keep] if keep else []:
        shutil.rmtree(past)
    return parentage


def _number(island: Island) -> int:
    found = island.locals()
    return int(found[-1].name.removeprefix("local-")) if found else 0


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forget_line(island: Island) -> None:
    """Remove the line upon this consensus: the next round of one begins from it again."""
    shutil.rmtree(island.line, ignore_errors=True)
