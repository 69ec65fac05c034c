"""Text into tokens, packed once into memory-mapped files.

```
<cache>/<key>/train.bin     token ids, each document followed by the end-of-text id
<cache>/<key>/held_out.bin  the same for documents that are never trained on
<cache>/<key>/corpus.json   sizes and digests
```
The key covers files, tokenizer and split; the folder takes its name only when it is whole.
Only the owner can read it: it is the institution's text in another form.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tapestry.data.reading import list_files, read_documents
from tapestry.errors import ConfigError

_FORMAT = 1
_DOCUMENTS_AT_ONCE = 256
_TRAIN_FILE = "train.bin"
_HELD_OUT_FILE = "held_out.bin"
_META_FILE = "corpus.json"

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

OnProgress = Callable[[int, int], None]
"""Called with bytes of text read and bytes of the files in all."""


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
    """Hex SHA-256 over both token files."""


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
    smallest_share: float
    """Smallest hash of a document, as a fraction."""


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
    is none, the one with the smallest hash is. Held-out documents beyond `held_out_max_bytes` are
    neither measured nor trained on.

    Raises:
        ConfigError: The text cannot be read or is too little; the message says how much it is.
    """
    files = list_files(paths)
    settings = [held_out_fraction, held_out_max_bytes, end_of_text_id, _FORMAT]
    key = _cache_key(files, tokenizer, settings)
    target = cache_folder / key
    meta = _read_meta(target)
    if meta is None:
        shutil.rmtree(target, ignore_errors=True)
        cache_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        pack = partial(
            _pack,
            files,
            tokenizer,
            target,
            end_of_text_id=end_of_text_id,
            max_bytes=held_out_max_bytes,
            on_progress=on_progress,
        )
        meta = pack(fraction=held_out_fraction)
        if meta.held_out_documents == 0 and meta.train_documents > 1:
            shutil.rmtree(target)
            meta = pack(fraction=math.nextafter(meta.smallest_share, 1.0))
    needed = sequence_tokens + 1
    if meta.train_tokens < needed or meta.held_out_tokens == 0:
        raise ConfigError(
            f"{', '.join(map(str, paths))}: too little text: {meta.train_tokens:,} tokens to train "
            f"on and {meta.held_out_documents} documents to measure with; needed are {needed:,} "
            "tokens (one sequence) and one document: add text, or part it by blank lines"
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


def _pack(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    target: Path,
    *,
    end_of_text_id: int,
    fraction: float,
    max_bytes: int,
    on_progress: OnProgress | None,
) -> _Meta:
    """Write the token files into a temporary folder and give it its name."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    total = sum(file.stat().st_size for file in files)
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    done, smallest = 0, 1.0
    try:
        with (
            (temporary / _TRAIN_FILE).open("wb") as train_file,
            (temporary / _HELD_OUT_FILE).open("wb") as held_out_file,
        ):
            train, held_out = _Part(train_file, dtype), _Part(held_out_file, dtype)
            for texts in _in_batches(document.text for document in read_documents(files)):
                encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                for text, encoding in zip(texts, encoded, strict=True):
                    size = len(text.encode())
                    done += size
                    ids = [*encoding.ids, end_of_text_id]
                    share = hashed_share(text)
                    smallest = min(smallest, share)
                    if share >= fraction:
                        train.add(ids, size)
                    elif held_out.documents == 0 or held_out.text_bytes + size <= max_bytes:
                        held_out.add(ids, size)
                if on_progress is not None:
                    on_progress(done, total)
        digest = hashlib.sha256(train.hash.digest() + held_out.hash.digest()).hexdigest()
        meta = _Meta(
            dtype=np.dtype(dtype).name,
            train_tokens=train.tokens,
            held_out_tokens=held_out.tokens,
            train_bytes=train.text_bytes,
            held_out_bytes=held_out.text_bytes,
            train_documents=train.documents,
            held_out_documents=held_out.documents,
            digest=digest,
            smallest_share=smallest,
        )
        (temporary / _META_FILE).write_text(json.dumps(asdict(meta), indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o600)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return meta


def hashed_share(text: str) -> float:
    """Return the SHA-256 of a document's text as a fraction, in [0, 1)."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _in_batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        yield batch


def _cache_key(files: Sequence[Path], tokenizer: Tokenizer, settings: Sequence[float]) -> str:
    whole = hashlib.sha256(json.dumps(settings).encode())
    for file in files:
        status = file.stat()
        whole.update(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    whole.update(tokenizer.to_str().encode())
    return whole.hexdigest()[:16]


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
