"""A round half trained, kept at an interval: a crash costs minutes.

One file, `trainer/unfinished.safetensors`: parameters, buffers, moments, random state. It is taken
up only if plan, base and corpus are the same, and is removed once the contribution is spooled. One
process that goes on from it ends with the same bits as one that was never interrupted.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tapestry.checkpoints.statements import RoundPlan
from tapestry.identity.envelopes import canonical_json
from tapestry.objectives.ranks import Ranks
from tapestry.objectives.training import InnerOptimizer
from tapestry.params.sharding import placed
from tapestry.params.tensor_file import take_part, write_tensors

_log = logging.getLogger(__name__)

_MODEL, _OPTIMIZER, _RANDOM = "model/", "optimizer/", "random/"
_OF_TRAINING = {
    "genesis", "round", "base", "layout", "objective", "inner", "shared", "seed", "statistics",
}  # fmt: skip
"""What a new attempt at the same round has in common."""


class DamagedError(Exception):
    """What was kept cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What an earlier process did of a round."""

    losses: tuple[float, ...] = ()
    seconds: float = 0.0


class Unfinished:
    """Keeps what was done of one round."""

    def __init__(
        self,
        path: Path,
        plan: RoundPlan,
        corpus: str,
        *,
        module: torch.nn.Module,
        optimizer: InnerOptimizer,
        ranks: Ranks,
        every_seconds: float,
        may_keep: Callable[[], bool] = lambda: True,
    ) -> None:
        """Watch over a round's training.

        Args:
            path: Of the file.
            plan: That is trained.
            corpus: What distinguishes its text: a source that was removed is not gone on with.
            module: Changed by training.
            optimizer: Of the module.
            ranks: The processes that train it.
            every_seconds: Between two writes; 0: never.
            may_keep: Whether all of its text may still be used.
        """
        self._path = path
        self._key = _key_of(plan, corpus)
        self._module = module
        self._optimizer = optimizer
        self._ranks = ranks
        self._every = every_seconds
        self._may_keep = may_keep
        self._began = self._kept = time.monotonic()
        self._before = 0.0
        self.keeps_last = False
        """Whether to keep the last step too, when training is ended early."""

    def restore(self) -> Done:
        """Take up what an earlier process did of the same round, if anything.

        Raises:
            DamagedError: The file is gone now; model and moments have to be made anew.
        """
        try:
            with safe_open(self._path, framework="pt") as file:
                table = file.metadata() or {}
                is_it = table.get("round") == self._key
                if is_it:
                    self._take(file, table)
        except FileNotFoundError:
            return Done()
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            self._path.unlink(missing_ok=True)
            raise DamagedError(f"{self._path}: damaged, and removed: {error}") from error
        if not is_it:  # of a round that is over, or of text that is not trained on any more
            self._path.unlink(missing_ok=True)
            return Done()
        self._before = float(table["seconds"])
        losses = tuple(json.loads(table["losses"]))
        _log.info("the round goes on from step %d, which was kept", len(losses))
        return Done(losses=losses, seconds=self._before)

    def is_due(self, *, goes_on: bool) -> bool:
        """Whether to write now."""
        if not self._every:
            return False
        is_due = time.monotonic() - self._kept >= self._every if goes_on else self.keeps_last
        return is_due and self._may_keep()

    def keep(self, losses: Sequence[float]) -> None:
        """Write what was done; a full disk costs the file, not the round."""
        tensors = self._tensors()
        if self._ranks.rank:
            take_part(tensors)
            return
        seconds = self._before + time.monotonic() - self._began
        table = {
            "round": self._key,
            "losses": json.dumps(list(losses)),
            "seconds": repr(seconds),
            **self._optimizer.metadata(),
        }
        try:
            write_tensors(self._path, tensors, table)
        except OSError as error:
            _log.warning("the round cannot be kept half way: %s", error)
        if not self._may_keep():  # a source was forgotten meanwhile
            self._path.unlink(missing_ok=True)
        self._kept = time.monotonic()

    def _tensors(self) -> dict[str, torch.Tensor]:
        state = {name: t.detach() for name, t in _once(self._module).items()}
        random = {"cpu": torch.get_rng_state()}
        if self._optimizer.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self._optimizer.device)
        return {
            **{_MODEL + name: tensor for name, tensor in state.items()},
            **{_OPTIMIZER + name: t for name, t in self._optimizer.tensors().items()},
            **{_RANDOM + name: tensor for name, tensor in random.items()},
        }

    def _take(self, file: Any, table: dict[str, str]) -> None:  # noqa: ANN401
        names = list(file.keys())
        with torch.no_grad():
            for name, tensor in _once(self._module).items():
                tensor.copy_(placed(file.get_tensor(_MODEL + name), tensor))
        moments = [n.removeprefix(_OPTIMIZER) for n in names if n.startswith(_OPTIMIZER)]
        self._optimizer.restore(moments, lambda n: file.get_tensor(_OPTIMIZER + n), table)
        if self._ranks.size == 1:
            torch.set_rng_state(file.get_tensor(_RANDOM + "cpu"))
            if _RANDOM + "cuda" in names and self._optimizer.device.type == "cuda":
                torch.cuda.set_rng_state(file.get_tensor(_RANDOM + "cuda"))


def _once(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a module's state, tied ones under one name."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _key_of(plan: RoundPlan, corpus: str) -> str:
    """Return what distinguishes the training of a round."""
    table = plan.model_dump(mode="json", include=_OF_TRAINING)
    return hashlib.sha256(canonical_json({"plan": table, "corpus": corpus})).hexdigest()
