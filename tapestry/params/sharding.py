"""Tensors of which every process holds a part (torch's `DTensor`), beside ordinary ones.

A module that is trained by several processes can be sharded over them (FSDP2). Whoever reads or
fills its parameters goes through here. `whole` is a collective call: every process of the group
makes it, in the same order.
"""

from typing import Any

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process holds only a part of `tensor`."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of `tensor`; one that is not sharded is returned as it is."""
    if not is_sharded(tensor):
        return tensor.detach()
    sharded: Any = tensor.detach()
    gathered: torch.Tensor = sharded.full_tensor()
    return gathered


def placed(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return `values` on the device of `like`, and of it the part that `like` holds.

    Nothing is sent: every process has all the values.
    """
    if not is_sharded(like):
        return values.to(like.device)
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - takes its time

    sharded: Any = like
    on_device = values.to(sharded.device)
    part: torch.Tensor = distribute_tensor(
        on_device, sharded.device_mesh, sharded.placements, src_data_rank=None
    )
    return part
