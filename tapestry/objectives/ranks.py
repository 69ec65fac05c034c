"""Several processes that train one model together: each takes its share of every micro-batch.

The sum of what the processes add to the gradient is that of one process over the whole micro-batch,
up to the order in which floats are added. Small models are kept whole in each process, and their
gradients summed once a step; of large ones each process keeps a part (`fitting.shard`).

Shapes: B sequences in a micro-batch, T tokens in a sequence.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tapestry.objectives.places import Place

_BUCKET_ELEMENTS = 16_000_000
"""Gradients that are summed in one call."""


class Ranks:
    """A process among those that train together; alone, unless a group was formed."""

    rank = 0
    size = 1

    def parts(self, batch: np.ndarray, rows: int) -> Iterator[tuple[np.ndarray, float]]:
        """Yield this process's sequences of a micro-batch, and their share of it.

        Every process gets as many parts: one that has no sequences left takes the first one again,
        with share 0, since the others wait for it.

        Args:
            batch: [B, T + 1].
            rows: Most sequences in a part; 0: all at once.
        """
        total = len(batch)
        own = batch[self.rank * total // self.size : (self.rank + 1) * total // self.size]
        most = -(-total // self.size)
        step = rows or most
        for start in range(0, most, step):
            part = own[start : start + step]
            yield (part, len(part) / total) if len(part) else (batch[:1], 0.0)

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""

    def summed(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a scalar over the processes."""
        return value

    def decided(self, *answers: bool) -> tuple[bool, ...]:
        """Return what the first process answered."""
        return answers


class Group(Ranks):
    """A process of several, over torch's process group."""

    def __init__(self, place: Place, rendezvous: Path | None, device: torch.device) -> None:
        """Form the group, or go on with it; returns when all are there.

        Args:
            place: Of this process.
            rendezvous: A file of this group's that is not there yet; nothing listens anywhere for
                whoever would join. None: as a launcher has said in the environment.
            device: That this process trains on.
        """
        self.rank, self.size = place.rank, place.size
        self.device = device
        if not dist.is_initialized():
            if rendezvous is not None:
                loopback = "lo0" if sys.platform == "darwin" else "lo"
                os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                init_method="env://" if rendezvous is None else f"file://{rendezvous}",
                rank=place.rank,
                world_size=place.size,
            )

    def told(self, says: bytes) -> bytes:
        """Return what the first process says, as many bytes as this one does."""
        data = torch.tensor(list(says), dtype=torch.uint8)
        dist.broadcast(data, src=0)
        return bytes(data.tolist())

    def answers(self, answer: int) -> list[int]:
        """Return what every process answers, by rank."""
        found = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(found, torch.tensor([answer]))
        return [int(one) for one in found]

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum them over the processes, many in one call; sharded ones are summed already."""
        gradients = []
        for parameter in parameters:
            if hasattr(parameter, "full_tensor"):
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            start = 0
            for gradient in bucket:
                stop = start + gradient.numel()
                gradient.copy_(flat[start:stop].view_as(gradient))
                start = stop

    def summed(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a scalar over the processes."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    def decided(self, *answers: bool) -> tuple[bool, ...]:
        """Return what the first process answered."""
        told = torch.tensor(answers, dtype=torch.uint8)
        dist.broadcast(told, src=0)
        return tuple(map(bool, told.tolist()))


def _buckets(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield tensors in the same order, some at a time."""
    bucket: list[torch.Tensor] = []
    filled = 0
    for tensor in tensors:
        if bucket and filled + tensor.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += tensor.numel()
    if bucket:
        yield bucket


ALONE = Ranks()
