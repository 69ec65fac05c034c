"""Founding a federation upon another's model: from a member's export, or a published checkpoint."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tapestry.checkpoints.ancestry import (
    ANCESTRY_FILE,
    ancestry_lines,
    continued,
    read_ancestry,
)
from tapestry.checkpoints.exports import EXPORT_FILE, open_export
from tapestry.checkpoints.folder import MANIFEST_FILE, POLICY_JSON, STATEMENTS, read_lineage
from tapestry.checkpoints.manifest import Lineage
from tapestry.checkpoints.policy import FederationPolicy, published_policy
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_content
from tapestry.errors import ConfigError
from tapestry.objectives.sizes import nearest_size
from tapestry_coordinator.founding import Start, WrittenStart
from tapestry_coordinator.settings import InnerTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """A verified checkpoint of an older federation."""

    checkpoint: Path
    lineage: Lineage
    pool: Path | None

    @property
    def policy(self) -> FederationPolicy:
        """What the older federation had agreed upon; the defaults before its first round."""
        return published_policy(self.checkpoint / POLICY_JSON)

    @property
    def quorum(self) -> int | None:
        """The older federation's, if it has had a round."""
        made = self.lineage.newest.made
        return None if made is None else made.quorum

    def start(self) -> Start:
        """Return the genesis that is this checkpoint."""
        return Start(
            inner=self._inner(),
            settings=self.lineage.origin.settings,
            write=self._write,
            continues=continued(self.lineage),
        )

    def _inner(self) -> InnerTable:
        made = self.lineage.newest.made
        if made is not None:
            return InnerTable(**made.inner.model_dump())
        size = nearest_size(self.lineage.origin.settings, self.lineage.newest.elements)
        return InnerTable(
            steps=size.inner_steps,
            sequences=size.sequences,
            sequence_tokens=size.sequence_tokens,
            learning_rate=size.learning_rate,
        )

    def _write(self, folder: Path) -> WrittenStart:
        """Copy what describes the model, the model itself, and where it comes from."""
        own = [
            entry.name
            for entry in self.lineage.newest.files
            if not entry.name.startswith(f"{STATEMENTS}/")
        ]
        for name in own:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(self.checkpoint / name, folder / name)
        (folder / STATEMENTS).mkdir()
        manifests = [*read_ancestry(self.checkpoint), *read_lineage(self.checkpoint)]
        (folder / ANCESTRY_FILE).write_bytes(ancestry_lines(manifests))
        opened = open_vector_file(folder / MODEL_FILE)
        return WrittenStart(
            layout=opened.layout, vector_root=opened.root(), names=[*own, ANCESTRY_FILE]
        )


def open_origin(folder: Path) -> Origin:
    """Verify what a federation is to be founded upon.

    Args:
        folder: A member's export, or a published checkpoint or a copy of one.

    Raises:
        ConfigError: It is neither.
        UntrustedError: Something in it is missing or changed; the message names it.
    """
    if (folder / EXPORT_FILE).is_file():
        opened = open_export(folder)
        return Origin(checkpoint=opened.checkpoint, lineage=opened.lineage, pool=opened.pool)
    if (folder / MANIFEST_FILE).is_file():
        return Origin(checkpoint=folder, lineage=verify_content(folder), pool=None)
    raise ConfigError(
        f"--from {folder}: neither an export (`tapestry node leave --export`) nor a published "
        "checkpoint's folder"
    )
