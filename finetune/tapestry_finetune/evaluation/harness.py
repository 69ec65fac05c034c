"""lm-evaluation-harness as a guest: tasks that lie on this machine, and no network.

It is no dependency. Its `bits_per_byte` is what ours is tested against.
"""

import tapestry.offline  # noqa: F401 - before lm_eval imports datasets

# isort: split
import importlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tapestry.errors import ConfigError
from tapestry_finetune.voices import Voice


def require_harness(tasks: Path) -> None:
    """Refuse at once what could not run.

    Raises:
        ConfigError: The harness is not installed, or there are no tasks.
    """
    try:
        importlib.import_module("lm_eval")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--lm-eval needs lm-evaluation-harness, and {error.name} is not installed: "
            "pip install lm-eval"
        ) from error
    if not tasks.is_dir() or not any(tasks.rglob("*.yaml")):
        raise ConfigError(f"{tasks}: no task here; it must be a folder with tasks in YAML files")


def run_harness(voice: Voice, tasks: Path, *, window_tokens: int | None = None) -> dict[str, Any]:
    """Return the figures of every task in `tasks`, by task and metric.

    Args:
        voice: The model.
        tasks: Folder of YAML files whose data are files on this machine.
        window_tokens: Most tokens at once; None: the model's context.

    Raises:
        ConfigError: A task is faulty, or its data are not here.
    """
    require_harness(tasks)
    from lm_eval import simple_evaluate  # noqa: PLC0415 - an optional guest, slow to import
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        model = HFLM(
            pretrained=voice.module,
            tokenizer=voice.tokenizer,
            backend="causal",
            max_length=window_tokens,
            batch_size=8,
        )
        found = simple_evaluate(
            model, tasks=manager.all_tasks, task_manager=manager, bootstrap_iters=0
        )
    except Exception as error:
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ConfigError(f"{tasks}: lm-evaluation-harness could not run it: {last}") from error
    return {task: _metrics(metrics) for task, metrics in (found or {})["results"].items()}


def _metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and "_stderr" not in name
        and name not in ("alias", "sample_len")
        and math.isfinite(value)
    }


def side_by_side(base: dict[str, Any], localized: dict[str, Any]) -> dict[str, Any]:
    """Return both models' figures by task and metric."""
    return {
        task: {
            metric: {"base": value, "localized": localized[task][metric]}
            for metric, value in metrics.items()
            if metric in localized.get(task, {})
        }
        for task, metrics in base.items()
    }
