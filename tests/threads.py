"""How many threads torch computes with: the whole process, so it is given back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_given_back() -> Iterator[None]:
    """Give back the number that training in the block has chosen."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one, much faster than two for models this small."""
    with threads_given_back():
        torch.set_num_threads(1)
        yield
