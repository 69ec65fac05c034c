"""LoRA adapters as GGUF files, which llama.cpp adds to a model at its start.

llama.cpp multiplies the two factors and scales them by alpha over rank; `*.lora_a` is [rank, in]
and `*.lora_b` is [out, rank], whose rows are reordered as those of the weight are.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from tapestry.errors import ConfigError
from tapestry_finetune.export.architectures import Architecture
from tapestry_finetune.export.gguf_files import TYPES, Described, write_tensors

_PEFT_PREFIX = "base_model.model."
_FACTORS = {".lora_A.weight": "lora_a", ".lora_B.weight": "lora_b"}
_ADVICE = "export the bundle as `merged` or `gguf`, which hold the whole model"


def write_adapter_gguf(
    path: Path,
    adapter: Path,
    architecture: Architecture,
    *,
    described: Described,
    type_name: str,
) -> None:
    """Write the adapter that peft has saved in the folder `adapter`.

    Raises:
        ConfigError: It holds what llama.cpp does not add to a model.
    """
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    for obstacle in _obstacles(settings):
        raise ConfigError(f"a GGUF adapter cannot hold {obstacle}: {_ADVICE}")
    if type_name not in {"f32", "f16"}:
        raise ConfigError(f"--type {type_name}: an adapter is written as f32 or f16")
    tensors = dict(_tensors(load_file(adapter / "adapter_model.safetensors"), architecture))
    alpha = float(settings["lora_alpha"])
    if settings.get("use_rslora"):
        alpha *= math.sqrt(settings["r"])  # alpha / sqrt(rank) = alpha * sqrt(rank) / rank
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        described.add_to(writer, kind="adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        write_tensors(writer, tensors, dict.fromkeys(tensors, TYPES[type_name][0]))
    finally:
        writer.close()


def _obstacles(settings: Mapping[str, Any]) -> Iterator[str]:
    said = {
        "weights that are trained whole (modules_to_save)": settings.get("modules_to_save"),
        "rows of the embedding (trainable_token_indices)": settings.get("trainable_token_indices"),
        "magnitudes (DoRA)": settings.get("use_dora"),
        "ranks that differ (rank_pattern)": settings.get("rank_pattern"),
        "scales that differ (alpha_pattern)": settings.get("alpha_pattern"),
        f"biases ({settings.get('bias')})": settings.get("bias", "none") != "none",
        f"an adapter of kind {settings.get('peft_type')}": settings.get("peft_type") != "LORA",
    }
    yield from (what for what, is_there in said.items() if is_there)


def _tensors(
    factors: Mapping[str, torch.Tensor], architecture: Architecture
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in sorted(factors.items()):
        ending = next((end for end in _FACTORS if name.endswith(end)), None)
        if ending is None or not name.startswith(_PEFT_PREFIX):
            raise ConfigError(f"a GGUF adapter cannot hold {name}: {_ADVICE}")
        weight = f"{name.removeprefix(_PEFT_PREFIX).removesuffix(ending)}.weight"
        theirs = architecture.tensor_name(weight)
        if theirs is None:
            raise ConfigError(f"GGUF has no place for {weight}: {_ADVICE}")
        is_second = _FACTORS[ending] == "lora_b"
        stored = architecture.stored(theirs, tensor) if is_second else tensor
        yield f"{theirs}.{_FACTORS[ending]}", stored


def add_adapter(path: Path, module: Any, architecture: Architecture) -> None:  # noqa: ANN401
    """Add the adapter in a GGUF file to the weights of a transformers module, as llama.cpp does.

    Raises:
        ConfigError: It has a tensor for which the module has no weight.
    """
    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    read = {tensor.name: tensor for tensor in reader.tensors}
    weights = {architecture.tensor_name(name): p for name, p in module.named_parameters()}
    for name in sorted({tensor.rpartition(".")[0] for tensor in read}):
        factors = [read[f"{name}.{factor}"] for factor in ("lora_a", "lora_b")]
        first, second = (_values(factor) for factor in factors)
        if name not in weights:
            raise ConfigError(f"{path}: {name} is no weight of this model")
        change = alpha / first.shape[0] * (second @ first)
        with torch.no_grad():
            weights[name] += architecture.restored(name, change).to(weights[name].device)


def _values(tensor: gguf.ReaderTensor) -> torch.Tensor:
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.array(values, np.float32))
