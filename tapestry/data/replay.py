"""A part of the open pool that every checkpoint carries: what further training replays.

Training on one's own text alone forgets the rest; a tenth of every batch from this text buys most
of it back (Ibrahim et al., 2024, arXiv 2403.08763). It lies in the checkpoint as `replay.txt`:
UTF-8, a blank line between documents.
"""

from pathlib import Path

from tapestry.data.reading import read_documents
from tapestry.storage.atomic import replacing

REPLAY_FILE = "replay.txt"
_MOST_BYTES = 2**20


def write_replay(target: Path, pool: Path, *, most_bytes: int = _MOST_BYTES) -> None:
    """Write documents from all over `pool`, about `most_bytes` of them; the same for one pool.

    Args:
        target: The file to write.
        pool: The open pool, a text file with blank lines between documents.
        most_bytes: Of text; a document is taken whole.
    """
    total = max(1, pool.stat().st_size)
    share = min(1.0, most_bytes / total)
    seen = taken = 0
    with replacing(target) as file:
        for document in read_documents([pool]):
            data = document.text.strip().encode() + b"\n\n"
            seen += len(data)
            if taken + len(data) <= seen * share or taken == 0:
                file.write(data)
                taken += len(data)


def read_replay(checkpoint: Path) -> list[str]:
    """Return the documents that `checkpoint` carries for replay; none if its federation has none.

    Raises:
        ConfigError: The file is there and cannot be read.
    """
    path = checkpoint / REPLAY_FILE
    if not path.is_file():
        return []
    return [document.text for document in read_documents([path])]
