"""Fitting a model to its machine: number formats, memory, compilation, several processes.

None of it changes what is computed, beyond the order and the width of floats.
"""

import os
import shutil
import sys
from typing import Any, Literal

import torch

from tapestry.errors import ConfigError
from tapestry.objectives.ranks import Group

Precision = Literal["auto", "bf16", "fp16", "fp32"]

SHARDED_ELEMENTS = 500_000_000
"""From this many parameters on, each of several processes keeps a part of the model only: with its
moments and gradients a whole one takes 16 bytes for each."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_precision(name: Precision, device: torch.device) -> torch.dtype:
    """Return what `device` multiplies in; parameters, moments and sums are float32 throughout.

    `auto` takes bfloat16 where a GPU multiplies it fast, float16 (with scaled losses) on older
    ones, and float32 on CPUs.

    Raises:
        ConfigError: The device cannot do that.
    """
    is_cuda = device.type == "cuda"
    has_bf16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return _DTYPES[("bf16" if has_bf16 else "fp16") if is_cuda else "fp32"]
    if name == "bf16" and is_cuda and not has_bf16:
        raise ConfigError('this GPU has no bfloat16: set [node] precision = "auto" or "fp16"')
    return _DTYPES[name]


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers of a model: the members of its outermost lists."""
    if isinstance(module, torch.nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in blocks_of(child)]


def checkpoint_activations(module: torch.nn.Module) -> None:
    """Keep the inputs of layers only, and compute the rest again: less memory, a third slower.

    Raises:
        ConfigError: The model cannot do that.
    """
    switch: Any = getattr(
        module,
        "activation_checkpointing_enable",  # its new name in transformers
        getattr(module, "gradient_checkpointing_enable", None),
    )
    if switch is None or not getattr(module, "supports_gradient_checkpointing", True):
        raise ConfigError(
            f"{type(module).__name__} has no gradient checkpointing: set "
            "[node] gradient_checkpointing = false"
        )
    switch({"use_reentrant": False})


def compile_blocks(module: torch.nn.Module) -> None:
    """Have the layers compiled when they are first used; they are alike: one compilation serves.

    Raises:
        ConfigError: There is no compiler for C++, which torch would say in the middle of a step.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"[node] compile = true needs a compiler for C++, and there is no {compiler}: install "
            "it, name another in the variable CXX, or set compile = false"
        )
    for block in blocks_of(module) or [module]:
        block.compile()


def shard(module: torch.nn.Module, group: Group) -> None:
    """Keep a part of every parameter in each process; layers are gathered when they are used."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - take their time
    from torch.distributed.fsdp import FSDPModule, fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(group.device.type, (group.size,))
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for part in module.modules():
        if isinstance(part, FSDPModule):  # our shares add up to the mean: sum, and divide by 1
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(enable=True)
