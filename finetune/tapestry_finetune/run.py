"""A run: from a recipe to a bundle, stage by stage, in a folder that says how to repeat it.

```
recipe.toml run.json                the recipe, and what else it takes to do the same again
vocabulary/                         tokens that were added, if any
1-language/ 2-instruct/ 3-values/   metrics.jsonl, checkpoints; trained.safetensors, done.json
loss.png                            loss and what is held out, over all stages
candidate/ held-out/                the bundle before it is judged, and what judges it
evaluation.json evaluation.html     the judgement
```
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry.storage.locks import alone
from tapestry_finetune.adapting import Adapted, adapt
from tapestry_finetune.base import Base, describe, open_base
from tapestry_finetune.choosing import Chosen, choose, stage_settings
from tapestry_finetune.examples import Examples
from tapestry_finetune.gathering import Gathered, gather, replay_share, stage_examples
from tapestry_finetune.keeping import Progress, Watch
from tapestry_finetune.lineage import StageRecord
from tapestry_finetune.loss_plot import plot_losses
from tapestry_finetune.measuring import held_out_measure
from tapestry_finetune.recipe import Recipe, beside, load_recipe
from tapestry_finetune.training import STATE_FILE, StageSettings, train_stage
from tapestry_finetune.vocabulary import Extension, extend_model, extended_tokenizer, make_extension

_PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "tapestry-fl")
_DONE = "done.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Telling:
    """Who is told how a run goes."""

    say: Callable[[str], None] = lambda _: None
    on_reading: Callable[[str, int, int], None] | None = None
    on_step: Callable[[str, Progress], None] = lambda _stage, _progress: None
    on_work: Callable[[str, int, int], None] = lambda _what, _done, _of: None
    """Anything else that takes long: what, how much is done, of how much."""
    is_stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A recipe whose base and data have been looked at."""

    where: Path
    recipe: Recipe
    base: Base
    gathered: Gathered
    chosen: Chosen
    config: Any
    parameters: int

    @property
    def width(self) -> int:
        """Of the model's hidden states."""
        return int(self.config.get_text_config().hidden_size)

    def examples(self, stage: str, tokenizer: Any) -> Examples:  # noqa: ANN401 - not typed
        """Return what a stage learns from, as tokens, with its part of replay.

        Raises:
            ConfigError: No row fits into a sequence.
        """
        return stage_examples(
            stage,
            self.gathered,
            tokenizer,
            self.base,
            self.recipe,
            sequence_tokens=self.chosen.sequence_tokens,
        )

    def settings(self, stage: str, examples: Examples) -> StageSettings:
        """Return how a stage is trained on `examples`, everything decided."""
        return stage_settings(stage, self.recipe, self.chosen, examples, self.width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A run whose stages are done."""

    adapted: Adapted
    extension: Extension | None
    stages: tuple[StageRecord, ...]


def prepare(
    where: Path,
    telling: Telling,
    *,
    unverified: bool = False,
    skip_bad: Path | None = None,
    base: Path | None = None,
    are_gone: bool = False,
) -> Prepared:
    """Read a recipe, verify its base, read its data, decide what it leaves open.

    Args:
        where: The recipe's file.
        telling: Who is told.
        unverified: Take the base whoever made it.
        skip_bad: A folder for bad rows; None refuses them.
        base: Instead of the recipe's.
        are_gone: The recipe's files are no longer there; nothing is learnt from them.

    Raises:
        UntrustedError: The base does not verify.
        ConfigError: Recipe, base or data cannot be used.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - after offline

    recipe = load_recipe(where)
    if not are_gone:
        _require_files(recipe, where)
    opened = open_base(
        base or beside(where, recipe.model.base),
        federation=recipe.model.federation or None,
        unverified=unverified,
    )
    telling.say(f"base: {describe(opened.identity)}")
    gathered = gather(
        recipe, where, skip_bad=skip_bad, on_progress=telling.on_reading, are_gone=are_gone
    )
    for sentence in gathered.said:
        telling.say(sentence)
    config = AutoConfig.from_pretrained(opened.folder, local_files_only=True)
    parameters = _count_parameters(opened.folder)
    text_bytes = sum(len(row.text.encode()) for row in gathered.text)
    chosen = choose(recipe, config, parameters, text_bytes)
    telling.say(chosen.said)
    return Prepared(
        where=where,
        recipe=recipe,
        base=opened,
        gathered=gathered,
        chosen=chosen,
        config=config,
        parameters=parameters,
    )


def _require_files(recipe: Recipe, where: Path) -> None:
    """Look whether everything is there before anything is verified or read, which takes long."""
    for key in ("text", "chats", "preferences"):
        for name in getattr(recipe.data, key):
            if not beside(where, name).exists():
                raise ConfigError(
                    f"{where}: data.{key}: {beside(where, name)}: no such file or folder"
                )
    if recipe.model.charter and not beside(where, recipe.model.charter).is_file():
        raise ConfigError(f"{where}: model.charter: {recipe.model.charter}: no such file")


def train(prepared: Prepared, folder: Path, telling: Telling) -> Finished:
    """Do the stages of a recipe in `folder`, going on from where an earlier call was stopped.

    Raises:
        ConfigError: The folder belongs to another recipe, base or data; a stage cannot be trained.
        StoppedError: Somebody stopped it; what was learnt is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, who="`tapestry finetune run`"):
        _claim(prepared, folder)
        extension, tokenizer = _vocabulary(prepared, folder, telling)
        records: list[StageRecord] = []
        stages = [stage for stage in prepared.recipe.training.stages if stage != "vocab"]
        before: Path | None = None
        for number, stage in enumerate(stages, 1):
            at = folder / f"{number}-{stage}"
            if not (at / _DONE).exists():
                _stage(prepared, stage, tokenizer, extension, at=at, before=before, telling=telling)
            records.append(StageRecord.model_validate_json((at / _DONE).read_bytes()))
            before = at
        plot_losses(folder)
        adapted = _loaded(prepared, extension, before)
        return Finished(adapted=adapted, extension=extension, stages=tuple(records))


def _stage(
    prepared: Prepared,
    stage: str,
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
    extension: Extension | None,
    *,
    at: Path,
    before: Path | None,
    telling: Telling,
) -> None:
    """Train one stage in `at`, from where the one in `before` ended; say there what it was."""
    examples = prepared.examples(stage, tokenizer)
    if warning := examples.counted.warning():
        telling.say(warning)
    settings = prepared.settings(stage, examples)
    adapted = _loaded(prepared, extension, before)  # anew: trl patches what it trains
    watch = Watch(
        on_progress=lambda progress: telling.on_step(stage, progress),
        is_stopped=telling.is_stopped,
        measure=held_out_measure(stage, prepared.gathered, tokenizer, prepared.chosen),
    )
    began = monotonic()
    done = train_stage(adapted, tokenizer, examples, settings, folder=at, watch=watch)
    adapted.save_state(at / STATE_FILE)
    record = StageRecord(
        name=stage,
        method=prepared.chosen.method,
        steps=done.steps,
        tokens=done.tokens,
        rows=len(examples),
        learning_rate=settings.learning_rate,
        replay=replay_share(stage, prepared.recipe) if prepared.base.replay() else 0.0,
    )
    write_atomic(at / _DONE, record.model_dump_json(indent=1) + "\n")
    shutil.rmtree(at / "checkpoints", ignore_errors=True)
    (at / "start.safetensors").unlink(missing_ok=True)
    telling.say(
        f"{stage}: {done.steps} steps, {done.tokens:,} tokens in {monotonic() - began:.0f} s"
    )


def _loaded(prepared: Prepared, extension: Extension | None, state: Path | None) -> Adapted:
    """Return the base with what is trained laid on it, as the stage in `state` left it."""
    module = prepared.base.load(prepared.chosen.machine.device)
    if extension is not None:
        extend_model(module, extension)
    training = prepared.recipe.training
    adapted = adapt(module, prepared.chosen.method, rank=training.rank, seed=training.seed)
    if state is not None:
        adapted.load_state(state / STATE_FILE)
    return adapted


def _vocabulary(prepared: Prepared, folder: Path, telling: Telling) -> tuple[Extension | None, Any]:
    if "vocab" not in prepared.recipe.training.stages:
        return None, prepared.base.tokenizer()
    extension = make_extension(
        prepared.base, prepared.gathered, prepared.recipe, folder, telling.say
    )
    if extension is None:
        return None, prepared.base.tokenizer()
    return extension, extended_tokenizer(prepared.base, extension)


def _claim(prepared: Prepared, folder: Path) -> None:
    """Write what the run is, or refuse a folder that holds another one."""
    path = folder / "run.json"
    table = {
        "recipe": prepared.recipe.training_digest,
        "charter": prepared.gathered.charter.digest if prepared.gathered.charter else None,
        "base": prepared.base.identity.as_json(),
        "sources": [source.model_dump(mode="json") for source in prepared.gathered.sources],
        "method": prepared.chosen.method,
        "sequence_tokens": prepared.chosen.sequence_tokens,
        "batch": prepared.chosen.batch,
        "seed": prepared.recipe.training.seed,
        "versions": versions(),
    }
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in table if before.get(key) != table[key] and key != "versions"]
        if changed:
            raise ConfigError(
                f"{folder}: holds a run with another {', '.join(changed)}; name a new folder "
                "(--run), or remove this one"
            )
    write_atomic(folder / "recipe.toml", prepared.where.read_bytes())  # [floor] may be another
    if path.exists():
        return
    write_atomic(path, json.dumps(table, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of what a run stands on."""
    return {package: version(package) for package in _PACKAGES}


def _count_parameters(folder: Path) -> int:
    from safetensors import safe_open  # noqa: PLC0415

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                size = 1
                for length in opened.get_slice(name).get_shape():
                    size *= length
                total += size
    return total
