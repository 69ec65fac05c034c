"""A checkpoint's folder as a tar file, made while it is sent."""

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 2**20
_BLOCK_BYTES = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class _Opened:
    file: BinaryIO
    header: bytes
    size: int

    @property
    def padding(self) -> int:
        """Zeros after the content."""
        return -self.size % _BLOCK_BYTES


class Archive:
    """A folder's files as they were when it was opened, even if they are replaced meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Open every file of `folder`.

        Raises:
            OSError: The folder is not there any more.
        """
        self._stack = ExitStack()
        with ExitStack() as stack:
            paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]
            self._files = [self._open(stack, folder, path) for path in paths]
            self._stack = stack.pop_all()

    def _open(self, stack: ExitStack, folder: Path, path: Path) -> _Opened:
        file = stack.enter_context(path.open("rb"))
        info = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
        info.size = file.seek(0, 2)
        info.mtime = int(path.stat().st_mtime)
        file.seek(0)
        return _Opened(file, info.tobuf(tarfile.PAX_FORMAT), info.size)

    @property
    def size_bytes(self) -> int:
        """Of the whole tar file."""
        content = sum(len(one.header) + one.size + one.padding for one in self._files)
        return content + 2 * _BLOCK_BYTES

    def chunks(self) -> Iterator[bytes]:
        """Yield the tar file, once; closes everything."""
        with self._stack:
            for one in self._files:
                yield one.header
                left = one.size
                while left:
                    data = one.file.read(min(left, _CHUNK_BYTES))
                    if not data:
                        raise OSError("a file became shorter while it was read")
                    left -= len(data)
                    yield data
                yield bytes(one.padding)
            yield bytes(2 * _BLOCK_BYTES)

    def close(self) -> None:
        """Close the files of an archive that nobody reads."""
        self._stack.close()
