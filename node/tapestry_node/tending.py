"""The trainer as the daemon has it: one process after the other, whichever is alive."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from tapestry.checkpoints.statements import RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.errors import ConfigError
from tapestry.objectives.reports import StepReport
from tapestry.params.layout import ParameterLayout
from tapestry_node.consensus import Standing
from tapestry_node.home import NodeHome
from tapestry_node.launching import Launching
from tapestry_node.memory import fewer_rows
from tapestry_node.policy import NodeTable
from tapestry_node.progress import ProgressFile
from tapestry_node.trainer_process import OutOfMemoryError, TrainerLostError, TrainerProcess

_log = logging.getLogger(__name__)

_MOST_DEATHS = 3
"""Of the trainer, one after the other; then a person has to look."""


class TendedTrainer:
    """Starts a trainer's process, has it prepared, and replaces it when it has died."""

    def __init__(
        self,
        home: NodeHome,
        settings: NodeTable,
        data: Sequence[Path],
        standing: Standing,
        progress: ProgressFile,
        *,
        on_blocked: Callable[[str, str], None],
    ) -> None:
        """Start none yet.

        Args:
            home: Of the node.
            settings: How this machine trains.
            data: The institution's text.
            standing: Says what the federation trains.
            progress: Shows what the trainer does.
            on_blocked: Told when the trainer has tried to reach a network: the call, and where to.
        """
        self._home = home
        self._settings = settings
        self._data = list(data)
        self._standing = standing
        self._progress = progress
        self._on_blocked = on_blocked
        self._process: TrainerProcess | None = None
        self._launching: Launching | None = None
        """Where a launcher starts the trainer's processes."""
        self.layout: ParameterLayout | None = None
        """Of the vector, once the trainer is ready."""
        self._rows = 0
        """Sequences that the trainer holds at once; 0: as the plan says."""
        self._deaths = 0

    @property
    def is_launched(self) -> bool:
        """Whether a launcher starts the trainer's processes."""
        return self._launching is not None

    def begin(self) -> None:
        """Start the first process, or wait for a launcher's."""
        if self._settings.launch == "external":
            self._launching = Launching(self._home, self._settings)
        self._start()

    def end(self) -> None:
        """End the process, or let the launcher's end."""
        if self._launching is not None:
            self._launching.end()
        if self._process is not None:
            self._process.stop()

    def _start(self) -> None:
        """Start a process, which has nothing to do yet."""
        self.layout = None
        self._process = TrainerProcess(
            self._home,
            on_blocked=self._on_blocked,
            on_packing=self._progress.packing,
            launching=self._launching,
        )

    def replace(self, error: TrainerLostError) -> None:
        """Start another process after one has died; with less in memory if that was why.

        Raises:
            ConfigError: That does not help.
        """
        if self._process is not None:
            self._process.stop()
        self._deaths += 1
        if isinstance(error, OutOfMemoryError):
            self._rows = fewer_rows(self._rows or self._progress.now.rows, error)
            _log.warning("training goes on with %d sequences at a time", self._rows)
        elif self._deaths >= _MOST_DEATHS:
            raise ConfigError(f"{error}, {self._deaths} times; see its messages above") from error
        self._start()

    def ready(self) -> TrainerProcess:
        """Return the process that is alive.

        Raises:
            TrainerLostError: None was started.
        """
        if self._process is None:
            raise TrainerLostError("there is no trainer")
        return self._process

    def prepare(self, checkpoint: Path, sequence_tokens: int) -> ParameterLayout:
        """Have the model built and the corpus packed; return the vector's layout."""
        self._progress.write("reading and packing the corpus")
        opened = open_vector_file(checkpoint / MODEL_FILE)
        layout = opened.layout
        if opened.extras:
            _log.info("%s of %s elements are trained", layout.elements, opened.model_elements)
        self.ready().open(
            self._settings,
            self._standing.state.objective,
            checkpoint,
            self._data,
            sequence_tokens=sequence_tokens,
        )
        self._progress.now.trainer = self.ready().isolation
        self.layout = layout
        return layout

    def train(
        self,
        plan: RoundPlan,
        checkpoint: Path,
        *,
        on_step: Callable[[StepReport], bool],
        keeps_last: Callable[[], bool],
    ) -> tuple[int, float, float]:
        """Have the plan's inner steps taken, with as much in memory as there was room for.

        Args:
            plan: What to train.
            checkpoint: Its base.
            on_step: As in `TrainerProcess.train`.
            keeps_last: As there.

        Returns:
            Steps taken, the first loss and the last.
        """
        whole = math.ceil(plan.inner.sequences / self._settings.processes)
        self._progress.now.rows = self._rows or whole

        def tell(report: StepReport) -> bool:
            if self._launching is not None:  # a queue may take its hosts back again and again
                self._deaths = 0
            return on_step(report)

        done = self.ready().train(
            plan,
            checkpoint,
            previous_state=self._newest_state(),
            on_step=tell,
            rows=self._rows,
            keeps_last=keeps_last,
        )
        self._deaths = 0
        return done

    def _newest_state(self) -> Path | None:
        """Return the inner optimizer's state after the newest contribution with a receipt."""
        contributed = self._standing.state.contributed
        return self._home.trainer_state(contributed) if contributed else None
