"""What a recipe leaves open, decided by data and machine, and said in one line."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tapestry.errors import ConfigError
from tapestry.objectives.training import choose_device, usable_cores
from tapestry_finetune.adapting import TrainedMethod
from tapestry_finetune.examples import Examples
from tapestry_finetune.recipe import Precision, Recipe, StageTable
from tapestry_finetune.training import StageSettings

_RATES: dict[str, float] = {"lora": 2e-4, "lora+embeddings": 5e-4, "full": 5e-5}
_RATE_WIDTH = 768
"""Where the rates above are meant for: Adam's best rate falls with the width (Yang et al., 2022,
arXiv 2203.03466)."""
_VALUES_SHARE = 0.05
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of processors, in /proc/cpuinfo: x86 and ARM."""
_MUCH_TEXT_BYTES = 5_000_000
_FEWEST_STEPS = 100
_MOST_EPOCHS_OF_TEXT = 4
"""Text that is repeated more often is worth less and less (Muennighoff et al., 2023)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What there is to train on."""

    device: str
    name: str
    memory_bytes: int
    multiplies_bfloat16: bool = False
    """By instructions of its own, faster than float32."""

    @property
    def is_gpu(self) -> bool:
        """Whether it is an accelerator."""
        return self.device != "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What holds for all stages."""

    machine: Machine
    method: TrainedMethod
    sequence_tokens: int
    batch: int
    micro_batch: int
    said: str
    """One line: what was chosen, and how to choose otherwise."""


def this_machine(device: str) -> Machine:
    """Look at this machine.

    Raises:
        ConfigError: The device is not there.
    """
    found = choose_device(device)
    if found.type == "cuda":
        memory = torch.cuda.mem_get_info(found)[1]
        return Machine(
            device=str(found),
            name=torch.cuda.get_device_name(found),
            memory_bytes=memory,
            multiplies_bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return Machine(
        device=found.type,
        name=f"{usable_cores()} cores",
        memory_bytes=memory,
        multiplies_bfloat16=not _BFLOAT16_FLAGS.isdisjoint(_processor_flags()),
    )


def _processor_flags() -> set[str]:
    """Return what Linux says that the processor can do; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    said = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(said, "").split())


def choose(
    recipe: Recipe,
    config: Any,  # noqa: ANN401
    parameters: int,
    text_bytes: int,
) -> Chosen:
    """Decide what `recipe` leaves open.

    Args:
        recipe: What is to be made.
        config: The base's, of transformers.
        parameters: How many the base has.
        text_bytes: How much running text there is to learn from.

    Raises:
        ConfigError: The recipe asks for more than the base can do.
    """
    training = recipe.training
    machine = this_machine(training.device)
    context = int(getattr(config, "max_position_embeddings", 2048))
    if training.sequence_tokens > context:
        raise ConfigError(
            f"training.sequence_tokens = {training.sequence_tokens}: the base reads {context}"
        )
    sequence = training.sequence_tokens or min(context, 1024 if machine.is_gpu else 256)
    batch = training.batch or (16 if machine.is_gpu else 8)
    method = _method(recipe, machine, parameters, text_bytes)
    micro = training.micro_batch or largest_micro_batch(
        method, config, parameters, machine, sequence_tokens=sequence, most=min(8, batch)
    )
    said = (
        f"{machine.name}, {machine.memory_bytes / 1e9:.0f} GB: method {method}, sequences of "
        f"{sequence} tokens, {batch} a step, {min(micro, batch)} at once; change it in [training]"
    )
    if training.precision == "auto" and machine.multiplies_bfloat16 and not machine.is_gpu:
        said += '; precision = "bfloat16" there is faster on this processor'
    return Chosen(
        machine=machine,
        method=method,
        sequence_tokens=sequence,
        batch=batch,
        micro_batch=min(micro, batch),
        said=said,
    )


def _method(recipe: Recipe, machine: Machine, parameters: int, text_bytes: int) -> TrainedMethod:
    asked = recipe.training.method
    if asked != "auto":
        return asked
    if not {"vocab", "language"} & set(recipe.training.stages):
        return "lora"
    fits = 16 * parameters < machine.memory_bytes / 2
    is_quick = machine.is_gpu or parameters < 50_000_000
    much = text_bytes > _MUCH_TEXT_BYTES
    return "full" if much and fits and is_quick else "lora+embeddings"


def needed_bytes(
    method: TrainedMethod,
    config: Any,  # noqa: ANN401
    parameters: int,
    *,
    sequence_tokens: int,
    micro_batch: int,
    activation_checkpointing: bool = False,
) -> int:
    """Return about how much memory a training step takes.

    Float32 weights, and for what is trained gradients and two moments of Adam; activations by the
    count of Korthikanti et al. (2022, arXiv 2205.05198), and the logits of one micro-batch.
    """
    text = config.get_text_config()
    width, layers, vocabulary = text.hidden_size, text.num_hidden_layers, text.vocab_size
    tokens = sequence_tokens * micro_batch
    embedding = width * vocabulary
    trained = {
        "lora": parameters // 25,
        "lora+embeddings": parameters // 25 + embedding,
        "full": parameters,
    }[method]
    heads = getattr(text, "num_attention_heads", max(1, width // 64))
    a_layer = tokens * width * 34 * 2 + 4 * heads * tokens * sequence_tokens
    kept = layers * tokens * width * 4 + a_layer if activation_checkpointing else layers * a_layer
    return int(4 * parameters + 12 * trained + kept + 3 * 4 * tokens * vocabulary)


def largest_micro_batch(
    method: TrainedMethod,
    config: Any,  # noqa: ANN401
    parameters: int,
    machine: Machine,
    *,
    sequence_tokens: int,
    most: int,
) -> int:
    """Return the largest power of two of sequences that fits into two thirds of the memory."""
    size = 1
    while (
        size * 2 <= most
        and needed_bytes(
            method, config, parameters, sequence_tokens=sequence_tokens, micro_batch=size * 2
        )
        < machine.memory_bytes * 2 // 3
    ):
        size *= 2
    return size


def stage_settings(
    stage: str, recipe: Recipe, chosen: Chosen, examples: Examples, width: int
) -> StageSettings:
    """Return how a stage is trained, everything decided."""
    table: StageTable = getattr(recipe, stage)
    rate = _RATES[chosen.method]
    if stage == "instruct":
        rate = min(rate, _RATES["lora"])
    rate *= max(1.0, _RATE_WIDTH / width)
    if stage == "values":
        rate *= _VALUES_SHARE
    return StageSettings(
        learning_rate=table.learning_rate or rate,
        epochs=table.epochs or _epochs(stage, examples, chosen),
        steps=table.steps,
        batch=chosen.batch,
        micro_batch=chosen.micro_batch,
        sequence_tokens=chosen.sequence_tokens,
        seed=recipe.training.seed,
        device=chosen.machine.device,
        in_bfloat16=in_bfloat16(recipe.training.precision, chosen.machine),
        activation_checkpointing=recipe.training.activation_checkpointing,
        beta=recipe.values.beta,
        sft_weight=recipe.values.sft_weight,
    )


def in_bfloat16(precision: Precision, machine: Machine) -> bool:
    """Return whether matrix products are made in bfloat16."""
    if precision == "auto":
        return machine.is_gpu and machine.multiplies_bfloat16
    return precision == "bfloat16"


def steps_of(settings: StageSettings, examples: Examples) -> int:
    """Return how many optimizer steps a stage takes, to within what packing saves or loses."""
    if settings.steps:
        return settings.steps
    return max(1, math.ceil(settings.epochs * steps_an_epoch(settings.batch, settings, examples)))


def steps_an_epoch(batch: int, settings: StageSettings | Chosen, examples: Examples) -> int:
    """Return how many optimizer steps see everything once."""
    sequences = len(examples)
    if examples.kind == "tokens":
        sequences = math.ceil(examples.counted.tokens / settings.sequence_tokens)
    return max(1, math.ceil(sequences / batch))


def _epochs(stage: str, examples: Examples, chosen: Chosen) -> float:
    if stage != "language":
        return 3.0
    once = steps_an_epoch(chosen.batch, chosen, examples)
    return float(min(_MOST_EPOCHS_OF_TEXT, max(1, math.ceil(_FEWEST_STEPS / once))))
