"""Whole models as GGUF files, written tensor by tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tapestry_finetune.export.architectures import add_shape, architecture_of, stored_tensors
from tapestry_finetune.export.vocabulary import vocabulary_of

OnWriting = Callable[[int, int], None]
"""Called with the bytes that are written, and all of them."""

_Kind = gguf.GGMLQuantizationType
TYPES = {
    "f32": (_Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (_Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (_Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (_Kind.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_EMBEDDINGS = frozenset({"token_embd.weight", "output.weight"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What a file says of the model in it."""

    name: str
    base_name: str = ""
    base_version: str = ""
    licence: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Our own: digests, by which it is found again where it comes from."""

    def add_to(self, writer: gguf.GGUFWriter, *, kind: str) -> None:
        """Write it; `kind` is `model` or `adapter`."""
        writer.add_type(kind)
        writer.add_name(self.name)
        writer.add_license(self.licence)
        if self.base_name:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, self.base_name)
            if self.base_version:
                writer.add_base_model_version(0, self.base_version)
        for key, value in self.keys.items():
            writer.add_string(f"tapestry.{key}", value)


def write_gguf(
    path: Path,
    module: Any,  # noqa: ANN401 - transformers is not typed
    tokenizer: Any,  # noqa: ANN401
    *,
    described: Described,
    type_name: str,
    on_writing: OnWriting | None = None,
) -> list[str]:
    """Write a model; return what llama.cpp does otherwise than transformers, in words.

    Args:
        path: Of the new file.
        module: Of transformers.
        tokenizer: Of transformers, with its chat template.
        described: What the file says of it.
        type_name: Of the weights, one of `TYPES`; norms are float32 in any.
        on_writing: Told of every tensor.

    Raises:
        ConfigError: llama.cpp does not know such a model or tokenizer.
    """
    config = module.config
    architecture = architecture_of(config)
    vocabulary = vocabulary_of(tokenizer, rows=int(config.vocab_size))
    tensors = stored_tensors(module, architecture)
    wanted, file_type = TYPES[type_name]
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        described.add_to(writer, kind="model")
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_shape(writer, config, architecture)
        vocabulary.add_to(writer)
        kinds = {name: _kind_for(name, tensor, wanted) for name, tensor in tensors.items()}
        write_tensors(writer, tensors, kinds, on_writing=on_writing)
    finally:
        writer.close()
    unfit = sum(kind is _Kind.F16 and wanted is not _Kind.F16 for kind in kinds.values())
    wide = f"{unfit} tensors have rows that are no multiple of 32, and stay 16 bits wide"
    return [*vocabulary.remarks, *([wide] if unfit else [])]


def _kind_for(name: str, tensor: torch.Tensor, wanted: gguf.GGMLQuantizationType) -> Any:  # noqa: ANN401
    """Return how one tensor is stored."""
    if tensor.ndim < 2:
        return _Kind.F32
    if wanted is _Kind.Q4_0 and name in _EMBEDDINGS:
        wanted = _Kind.Q8_0  # four bits for the embedding cost more than they spare
    block, _size = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else _Kind.F16


def write_tensors(
    writer: gguf.GGUFWriter,
    tensors: Mapping[str, torch.Tensor],
    kinds: Mapping[str, Any],
    *,
    on_writing: OnWriting | None = None,
) -> None:
    """Write everything that the writer was told, and the tensors; one is in memory at a time."""
    sizes = {}
    for name, tensor in tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[kinds[name]]
        sizes[name] = tensor.numel() // block * size
        writer.add_tensor_info(
            name, tuple(tensor.shape), np.dtype(np.float32), sizes[name], raw_dtype=kinds[name]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, of = 0, sum(sizes.values())
    for name, tensor in tensors.items():
        values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        writer.write_tensor_data(gguf.quantize(values, kinds[name]))
        done += sizes[name]
        if on_writing is not None:
            on_writing(done, of)
