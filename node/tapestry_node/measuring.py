"""Checkpoints measured on the node's own held-out text, each once."""

import logging
from collections.abc import Callable
from pathlib import Path

from tapestry.checkpoints.folder import MANIFEST_FILE, read_envelope
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import RejectedError
from tapestry.identity.envelopes import Envelope
from tapestry_node.client import NodeClient
from tapestry_node.consensus import Consensus, Standing
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeSettings
from tapestry_node.progress import ProgressFile
from tapestry_node.tending import TendedTrainer

_log = logging.getLogger(__name__)


class Measuring:
    """Has checkpoints measured, and tells the results if the policy lets it."""

    def __init__(
        self,
        home: NodeHome,
        settings: NodeSettings,
        trainer: TendedTrainer,
        *,
        consensus: Consensus,
        standing: Standing,
        progress: ProgressFile,
        client: Callable[[], NodeClient],
    ) -> None:
        """Measure nothing yet.

        Args:
            home: Of the node.
            settings: Its policy, and the language of its text.
            trainer: Which measures.
            consensus: Where checkpoints come from.
            standing: What was measured already.
            progress: Shows what is measured, and the results.
            client: Returns the connection there is.
        """
        self._home = home
        self._settings = settings
        self._trainer = trainer
        self._consensus = consensus
        self._standing = standing
        self._progress = progress
        self._client = client
        self._candidate = ""
        """Manifest digest of the candidate that this process has measured."""

    def evaluate(self, manifest: Manifest, envelope: Envelope) -> None:
        """Measure a consensus checkpoint on this node's own held-out text, once."""
        if manifest.round <= self._standing.state.evaluated:
            return
        folder = self._consensus.checkpoint(manifest, envelope)
        if payload_digest(envelope) != self._candidate and not self._measure(
            manifest, envelope, folder
        ):
            return
        self._standing.change(evaluated=manifest.round)

    def measure_candidate(self, envelope: Envelope, newest: Envelope, parent: Manifest) -> None:
        """Measure what is to be the next consensus, before it is published, once.

        Raises:
            UntrustedError: It does not follow from the newest checkpoint.
        """
        digest = payload_digest(envelope)
        if digest == self._candidate or not self._settings.policy.report_evaluation:
            return
        manifest = self._consensus.candidate(envelope, newest, parent)
        try:
            if self._measure(manifest, envelope, self._home.candidate):
                self._candidate = digest
        except RejectedError as error:  # decided meanwhile
            _log.warning("candidate %d: %s", manifest.round, error)

    def _measure(self, manifest: Manifest, envelope: Envelope, folder: Path) -> bool:
        """Measure a checkpoint and tell the result; return whether there is text to measure on."""
        if self._trainer.layout is None:
            if manifest.made is None:
                return False
            self._trainer.prepare(folder, manifest.made.inner.sequence_tokens)
            self._measure_parent(manifest)
        self._progress.write(f"measuring checkpoint {manifest.round}")
        result = self._trainer.ready().measure(folder)
        self._progress.now.bits_per_byte[str(manifest.round)] = result.bits_per_byte
        _log.info(
            "checkpoint %d: %.4f bits per byte on %s held-out bytes",
            manifest.round,
            result.bits_per_byte,
            f"{result.text_bytes:,}",
        )
        if self._settings.policy.report_evaluation:
            self._client().submit_evaluation(
                manifest=payload_digest(envelope),
                bits_per_byte=round(result.bits_per_byte, 4),
                held_out_bytes=result.text_bytes,
                language=self._settings.node.language,
            )
        return True

    def _measure_parent(self, manifest: Manifest) -> None:
        """Measure what a checkpoint is compared with, if it is here and was not measured yet.

        Genesis says nothing of how it is measured: a plan does, and who hears none, an observer,
        learns it from the first checkpoint that a round made.
        """
        folder = self._home.checkpoint(manifest.round - 1)
        if (folder / MANIFEST_FILE).is_file():
            envelope = read_envelope(folder / MANIFEST_FILE, what=f"manifest in {folder}")
            self.evaluate(self._consensus.verified(envelope), envelope)
