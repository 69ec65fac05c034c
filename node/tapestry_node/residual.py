"""The node's residual of error feedback on the disk, one float32 for each parameter.

A contribution in a codec with feedback is spooled with the residual that will hold once it is
taken. It takes the place of the old one, by a rename, after the receipt is durable; if the
contribution is refused, the rule of `tapestry.params.feedback` is applied to it first. Both can be
repeated after a crash at any point, and neither holds more than a few fragments in memory.

Shapes: P parameters of the vector.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tapestry.errors import ConfigError
from tapestry.params.codecs import Codec, Float32Array
from tapestry.params.feedback import encode_compensated, residual_if_refused
from tapestry.params.layout import ParameterLayout
from tapestry.storage.atomic import replacing, sync_path

SPOOLED_RESIDUAL = "residual.f32"
"""In the folder of a spooled contribution."""

FragmentEncoder = Callable[[int, Float32Array], bytes]
"""Index and fragment of the pseudo-gradient -> encoded bytes."""


def open_residual(path: Path, layout: ParameterLayout) -> Float32Array | None:
    """Return the mapped residual at `path`, or None if there is none: zeros.

    Raises:
        ConfigError: It is of another model.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    if size != 4 * layout.elements:
        raise ConfigError(
            f"{path}: has {size:,} bytes, the model needs {4 * layout.elements:,}; remove it, and "
            "what earlier rounds left unsent is forgotten"
        )
    return np.memmap(path, dtype="<f4", mode="r", shape=(layout.elements,))


@contextmanager
def fragment_encoder(
    codec: Codec, *, residual: Path, spool: Path, layout: ParameterLayout
) -> Iterator[FragmentEncoder]:
    """Yield a function that encodes the fragments of a contribution, called in index order.

    With error feedback in a codec that takes it; the residual that the contribution will leave is
    then durable beside it once the block has ended.

    Args:
        codec: Of the contribution.
        residual: The node's residual; not changed.
        spool: Folder of the contribution.
        layout: Of the vector.
    """
    if codec.feedback_decay is None:
        yield lambda _index, delta: codec.encode(delta)
        return
    old = open_residual(residual, layout)
    with (spool / SPOOLED_RESIDUAL).open("wb") as file:

        def encode(index: int, delta: Float32Array) -> bytes:
            start, stop = layout.bounds(index)
            sent = encode_compensated(codec, delta, None if old is None else old[start:stop])
            file.write(sent.residual.astype("<f4", copy=False).data)
            return sent.data

        yield encode
        file.flush()
        os.fsync(file.fileno())


def accept_residual(spool: Path, residual: Path) -> None:
    """Let the residual of a contribution whose receipt is durable replace the old one."""
    spooled = spool / SPOOLED_RESIDUAL
    if spooled.is_file():
        spooled.replace(residual)
        sync_path(residual.parent)


def refuse_residual(
    spool: Path,
    residual: Path,
    *,
    codec: Codec,
    layout: ParameterLayout,
    read_fragment: Callable[[int], bytes],
) -> None:
    """Keep what a contribution that was not taken would have brought: e = decay * e + delta.

    Args:
        spool: Folder of the contribution.
        residual: The node's residual.
        codec: Of the contribution.
        layout: Of the vector.
        read_fragment: Index -> encoded bytes.
    """
    path = spool / SPOOLED_RESIDUAL
    spooled = open_residual(path, layout)
    if spooled is None:
        return
    with replacing(residual, mode=0o600) as file:
        for index in range(layout.fragments):
            start, stop = layout.bounds(index)
            left = np.asarray(spooled[start:stop], np.float32)
            kept = residual_if_refused(codec, read_fragment(index), left)
            file.write(kept.astype("<f4", copy=False).data)
    path.unlink()
    sync_path(spool)
