"""From a checkpoint that is here to the next, by the step that the coordinator published.

`tapestry/step.bin` is one encoded fragment after the other, in the codec of the manifest's
downlink. What comes out is the next checkpoint's `model.safetensors`, byte by byte, whose digest is
in its manifest: nobody has to trust the step.
"""

from pathlib import Path
from typing import BinaryIO

from tapestry.checkpoints.folder import STATEMENTS
from tapestry.checkpoints.vector_file import VectorFile, VectorWriter, WrittenVector
from tapestry.errors import RejectedError, UntrustedError
from tapestry.params.downlink import apply_step, downlink_codec_named

STEP_FILE = f"{STATEMENTS}/step.bin"


def write_stepped(parent: VectorFile, step: Path, downlink: str, out: BinaryIO) -> WrittenVector:
    """Write the vector file that `step` makes of `parent` to `out`; holds one fragment.

    Args:
        parent: The checkpoint before, whose tensors beside the vector stay the same.
        step: The published step, verified.
        downlink: Its codec, such as `delta-int8`.
        out: From where it stands.

    Raises:
        UntrustedError: It is not a step of this vector.
    """
    writer = VectorWriter(out, parent.layout, parent.extras)
    try:
        codec = downlink_codec_named(downlink)
        with step.open("rb") as file:
            for index in range(parent.layout.fragments):
                start, stop = parent.layout.bounds(index)
                data = file.read(codec.encoded_bytes(stop - start))
                writer.write(apply_step(codec, parent.read_fragment(index), data))
    except RejectedError as error:
        raise UntrustedError(f"{step}: not a step from {parent.path}: {error}") from error
    return writer.finish()
