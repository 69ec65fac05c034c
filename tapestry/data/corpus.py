"""Text into tokens, packed once into memory-mapped files.

```
<cache>/<key>/train.bin     token ids, each document followed by the end-of-text id
<cache>/<key>/held_out.bin  the same for documents that are never trained on
<cache>/<key>/corpus.json   sizes and digests
```
The key covers files, tokenizer and split; the folder takes its name only when it is whole.
Only the owner can read it: it is the institution's text in another form.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tapestry.data.files import list_files
from tapestry.data.reading import read_documents
from tapestry.errors import ConfigError
from tapestry.storage.atomic import TEMPORARY_SUFFIX, sync_path, write_atomic

_FORMAT = 2
_CHARACTERS_AT_ONCE = 2**18
_TRAIN_FILE = "train.bin"
_HELD_OUT_FILE = "held_out.bin"
_META_FILE = "corpus.json"
_LOCK_FILE = ".lock"

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

OnProgress = Callable[[int, int], None]
"""Called with bytes of text packed and bytes of the files in all; at the end both are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A tokenized corpus on disk."""

    folder: Path
    train: Tokens
    """[S], memory-mapped."""
    held_out: Tokens
    """The same for the held-out documents."""
    held_out_bytes: int
    """UTF-8 bytes of the held-out documents' text, without end-of-text tokens."""
    train_bytes: int
    train_documents: int
    held_out_documents: int
    end_of_text_id: int
    sequence_tokens: int
    digest: str
    """Hex SHA-256 over the digests of the tokenizer and of both token files."""

    @property
    def train_tokens(self) -> int:
        """How many tokens there are to train on."""
        return len(self.train)


@dataclass(slots=True)
class _Part:
    """One of the two token files while it is written."""

    file: IO[bytes]
    dtype: type[np.uint16 | np.uint32]
    tokens: int = 0
    text_bytes: int = 0
    documents: int = 0
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add(self, ids: list[int], text_bytes: int) -> None:
        data = np.asarray(ids, self.dtype).tobytes()
        self.file.write(data)
        self.hash.update(data)
        self.tokens += len(ids)
        self.text_bytes += text_bytes
        self.documents += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Meta:
    """Content of `corpus.json`."""

    dtype: str
    train_tokens: int
    held_out_tokens: int
    train_bytes: int
    held_out_bytes: int
    train_documents: int
    held_out_documents: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What determines the content of a packed corpus."""

    files: list[Path]
    tokenizer: Tokenizer
    tokenizer_digest: bytes
    end_of_text_id: int
    held_out_fraction: float
    held_out_max_bytes: int

    def key(self) -> str:
        settings = [self.held_out_fraction, self.held_out_max_bytes, self.end_of_text_id, _FORMAT]
        whole = hashlib.sha256(json.dumps(settings).encode() + self.tokenizer_digest)
        for file in self.files:
            status = file.stat()
            entry = json.dumps([str(file.resolve()), status.st_size, status.st_mtime_ns])
            whole.update(entry.encode() + b"\n")
        return whole.hexdigest()[:16]


def prepare_corpus(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    end_of_text_id: int,
    cache_folder: Path,
    sequence_tokens: int,
    held_out_fraction: float = 0.05,
    held_out_max_bytes: int = 262_144,
    on_progress: OnProgress | None = None,
) -> Corpus:
    """Return the corpus of `paths`, packed now or by an earlier call.

    A document is held out if the SHA-256 of its text, read as a fraction, is below
    `held_out_fraction`: stable across runs and orders, and duplicates fall on one side. If that
    is none, the one with the smallest hash is; if it is all, the one with the largest is trained
    on. Held-out documents beyond `held_out_max_bytes` (in the order of the files' names; the
    first always counts) are neither measured nor trained on.

    Names of special tokens in the text are text: only the end of a document is an end of text.

    Raises:
        ConfigError: The text cannot be read or is too little; the message says how much it is.
    """
    plain = _plain(tokenizer)
    job = _Job(
        files=sorted(list_files(paths), key=Path.resolve),
        tokenizer=plain,
        tokenizer_digest=hashlib.sha256(plain.to_str().encode()).digest(),
        end_of_text_id=end_of_text_id,
        held_out_fraction=held_out_fraction,
        held_out_max_bytes=held_out_max_bytes,
    )
    target = cache_folder / job.key()
    meta = _read_meta(target) or _build(job, target, on_progress)
    needed = sequence_tokens + 1
    if meta.train_tokens < needed:
        raise ConfigError(
            f"{', '.join(map(str, paths))}: too little text: {meta.train_tokens:,} tokens to train "
            f"on, and one sequence needs {needed:,}: add text or set shorter sequences"
        )
    return Corpus(
        folder=target,
        train=_map(target / _TRAIN_FILE, meta.dtype, meta.train_tokens),
        held_out=_map(target / _HELD_OUT_FILE, meta.dtype, meta.held_out_tokens),
        held_out_bytes=meta.held_out_bytes,
        train_bytes=meta.train_bytes,
        train_documents=meta.train_documents,
        held_out_documents=meta.held_out_documents,
        end_of_text_id=end_of_text_id,
        sequence_tokens=sequence_tokens,
        digest=meta.digest,
    )


def hashed_share(text: str) -> float:
    """Return the SHA-256 of a document's text as a fraction, in [0, 1)."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that cuts, pads and interprets nothing: all of a text, and only text."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _build(job: _Job, target: Path, on_progress: OnProgress | None) -> _Meta:
    """Pack into a temporary folder, and give it its name when it is whole and on the disk."""
    with _locked(target.parent):
        meta = _read_meta(target)  # another process may have built it while this one waited
        if meta is not None:
            return meta
        for left_over in target.parent.glob(f".*{TEMPORARY_SUFFIX}"):
            shutil.rmtree(left_over, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        temporary = target.with_name(f".{target.name}{TEMPORARY_SUFFIX}")
        temporary.mkdir(mode=0o700)
        try:
            meta = _pack(job, temporary, on_progress)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_path(target.parent)
    return meta


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from building in `folder`; the lock dies with its process."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _pack(job: _Job, folder: Path, on_progress: OnProgress | None) -> _Meta:
    """Write the three files; once more, with another bound, if one side of the split is empty."""
    train, held_out, shares = _write_tokens(job, folder, job.held_out_fraction, on_progress)
    smallest, largest = shares
    if smallest == largest:
        raise ConfigError(
            f"{', '.join(map(str, job.files[:3]))}: too little text: one document, and needed are "
            "two, to train on one and measure with the other: add text, or part it by blank lines"
        )
    if held_out.documents == 0:
        train, held_out, _ = _write_tokens(job, folder, math.nextafter(smallest, 1.0), on_progress)
    elif train.documents == 0:
        train, held_out, _ = _write_tokens(job, folder, largest, on_progress)
    digests = (job.tokenizer_digest, train.hash.digest(), held_out.hash.digest())
    meta = _Meta(
        dtype=np.dtype(train.dtype).name,
        train_tokens=train.tokens,
        held_out_tokens=held_out.tokens,
        train_bytes=train.text_bytes,
        held_out_bytes=held_out.text_bytes,
        train_documents=train.documents,
        held_out_documents=held_out.documents,
        digest=hashlib.sha256(b"".join(digests)).hexdigest(),
    )
    write_atomic(folder / _META_FILE, json.dumps(asdict(meta), indent=1), mode=0o600)
    return meta


def _write_tokens(
    job: _Job, folder: Path, bound: float, on_progress: OnProgress | None
) -> tuple[_Part, _Part, tuple[float, float]]:
    """Write both token files; return them, and the smallest and largest share seen."""
    dtype = _smallest_dtype(job)
    total = sum(file.stat().st_size for file in job.files)
    done, smallest, largest = 0, 1.0, 0.0
    with _owned(folder / _TRAIN_FILE) as train_file, _owned(folder / _HELD_OUT_FILE) as other_file:
        train, held_out = _Part(train_file, dtype), _Part(other_file, dtype)
        for texts in _in_batches(document.text for document in read_documents(job.files)):
            encoded = job.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for text, encoding in zip(texts, encoded, strict=True):
                size = len(text.encode())
                done += size
                ids = [*encoding.ids, job.end_of_text_id]
                share = hashed_share(text)
                smallest, largest = min(smallest, share), max(largest, share)
                if share >= bound:
                    train.add(ids, size)
                elif not held_out.documents or held_out.text_bytes + size <= job.held_out_max_bytes:
                    held_out.add(ids, size)
            if on_progress is not None:
                on_progress(min(done, total), total)
    if on_progress is not None:
        on_progress(total, total)
    return train, held_out, (smallest, largest)


def _smallest_dtype(job: _Job) -> type[np.uint16 | np.uint32]:
    """Return the type for the highest id; a vocabulary may have gaps and count fewer tokens."""
    highest = max(job.end_of_text_id, *job.tokenizer.get_vocab().values())
    return np.uint16 if highest < 2**16 else np.uint32


@contextmanager
def _owned(path: Path) -> Iterator[IO[bytes]]:
    """Yield an empty file that only its owner can read; at the end it is on the disk."""
    path.touch(mode=0o600)
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of about `_CHARACTERS_AT_ONCE`, which bounds the tokenizer's memory."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_meta(folder: Path) -> _Meta | None:
    """Return what is packed in `folder`, or None if it is not whole."""
    try:
        meta = _Meta(**json.loads((folder / _META_FILE).read_text(encoding="utf-8")))
        item = np.dtype(meta.dtype).itemsize
        sizes = {_TRAIN_FILE: meta.train_tokens, _HELD_OUT_FILE: meta.held_out_tokens}
        whole = all((folder / n).stat().st_size == item * tokens for n, tokens in sizes.items())
    except (OSError, ValueError, TypeError):
        return None
    return meta if whole else None


def _map(path: Path, dtype: str, tokens: int) -> Tokens:
    mapped: Tokens = np.memmap(path, dtype=dtype, mode="r", shape=(tokens,))
    return mapped
