"""Safetensors files written tensor by tensor, so that a sharded model is never whole in memory.

The format (https://github.com/huggingface/safetensors) is a length, a JSON header, and one
contiguous data section; any reader of it loads these files.
"""

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import torch

from tapestry.params.sharding import whole
from tapestry.storage.atomic import replacing

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file that is whole or not there, for the owner alone (0600).

    A collective call if some of the tensors are sharded; the others call `take_part`.

    Raises:
        OSError: There is no space for it, which is looked at first, or it cannot be written.
    """
    values = (whole(tensors[name]) for name in sorted(tensors))
    try:
        header = _header(tensors, metadata)
        size = len(header) + sum(t.numel() * t.element_size() for t in tensors.values())
        _require_space(path, size)
        with replacing(path, mode=0o600) as file:
            file.write(header)
            for value in values:
                flat = value.to("cpu").contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
    except OSError:
        deque(values, maxlen=0)  # the other processes are waiting for these calls
        raise


def take_part(tensors: Mapping[str, torch.Tensor]) -> None:
    """Give one's parts of sharded tensors to the process that writes."""
    for name in sorted(tensors):
        whole(tensors[name])


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _require_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: {size:,} bytes are needed, {free:,} are free",
            str(path),
        )
