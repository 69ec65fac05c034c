"""Text into tokens, packed once into memory-mapped files.

```
<cache>/<key>/train.bin      token ids, each document followed by the end-of-text id
<cache>/<key>/held_out.bin   the same for documents that are never trained on
<cache>/<key>/documents.bin  where each document of train.bin begins, in tokens
<cache>/<key>/dropped.jsonl  what was left out: source, file, line, why
<cache>/<key>/corpus.json    sizes, digests, parts, what became of each source
```
The key covers files, sources, filters, tokenizer and split; the folder takes its name only when it
is whole. Only the owner can read it: it is the institution's text in another form.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tapestry.data import sifting
from tapestry.data.files import named, what_is_read
from tapestry.data.mixing import Stream, streams_of
from tapestry.data.packing import (
    HELD_OUT_FILE,
    STARTS_FILE,
    TRAIN_FILE,
    OnProgress,
    Packer,
    Part,
    smallest_dtype,
)
from tapestry.data.sifting import SourceReport
from tapestry.data.sources import CorpusSpec, as_spec
from tapestry.errors import ConfigError
from tapestry.storage.atomic import TEMPORARY_SUFFIX, sync_path, write_atomic

META_FILE = "corpus.json"
_FORMAT = 3
_LOCK_FILE = ".lock"

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A tokenized corpus on disk."""

    folder: Path
    train: Tokens
    """[S], memory-mapped."""
    held_out: Tokens
    """The same for the held-out documents."""
    document_starts: npt.NDArray[np.uint64]
    """Where each training document begins, and at the end S; memory-mapped."""
    parts: tuple[Part, ...]
    """The pieces of `train`, by language and source."""
    streams: tuple[Stream, ...]
    """What batches are drawn from."""
    held_out_bytes: int
    """UTF-8 bytes of the held-out documents' text, without end-of-text tokens."""
    train_bytes: int
    train_documents: int
    held_out_documents: int
    end_of_text_id: int
    sequence_tokens: int
    digest: str
    """Hex SHA-256 over the digests of the tokenizer and of both token files."""
    spec: CorpusSpec

    @property
    def train_tokens(self) -> int:
        """How many tokens there are to train on."""
        return len(self.train)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What `corpus.json` says."""

    dtype: str
    train_tokens: int
    held_out_tokens: int
    train_bytes: int
    held_out_bytes: int
    train_documents: int
    held_out_documents: int
    digest: str
    origin: str
    """Which corpus this is, whatever state its files are in."""
    files: list[tuple[str, str, int, int]]
    """Source, path, size and time of change, as they were when they were read."""
    parts: list[Part]
    sources: list[SourceReport]
    """What became of each source's documents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What determines the content of a packed corpus."""

    spec: CorpusSpec
    files: list[tuple[int, Path]]
    states: list[tuple[str, str, int, int]]
    packer: Packer
    tokenizer_digest: bytes

    def key(self) -> str:
        spec, packer = self.spec, self.packer
        settings = [
            packer.held_out_fraction,
            packer.held_out_max_bytes,
            packer.end_of_text_id,
            _FORMAT,
            spec.filters.model_dump(mode="json"),
            [(source.name, source.language) for source in spec.sources],
        ]
        whole = hashlib.sha256(json.dumps(settings).encode() + self.tokenizer_digest)
        for state in self.states:
            whole.update(json.dumps(state).encode() + b"\n")
        return whole.hexdigest()[:16]


def prepare_corpus(
    text: CorpusSpec | Sequence[Path],
    tokenizer: Tokenizer,
    *,
    end_of_text_id: int,
    cache_folder: Path,
    sequence_tokens: int,
    held_out_fraction: float = 0.05,
    held_out_max_bytes: int = 262_144,
    on_progress: OnProgress | None = None,
    on_read: OnProgress | None = None,
) -> Corpus:
    """Return the corpus of `text`, packed now or by an earlier call.

    A document is held out if the SHA-256 of its text, read as a fraction, is below
    `held_out_fraction`: stable across runs and orders, and duplicates fall on one side. If that
    is none, the one with the smallest hash is; if it is all, the one with the largest is trained
    on. Held-out documents beyond `held_out_max_bytes` (in the order of their hashes; the first
    always counts) are neither measured nor trained on.

    Names of special tokens in the text are text: only the end of a document is an end of text.

    `on_read` is told how many bytes of text were read, and how many the files have: more, or, if
    they are compressed, fewer.

    Files that change while they are read are used as they were read, and packed again at the next
    call; so are files that have changed since.

    Raises:
        ConfigError: The text cannot be read or is too little; the message says how much it is.
    """
    spec, plain = as_spec(text), _plain(tokenizer)
    files = spec.files()
    job = _Job(
        spec=spec,
        files=files,
        states=_states(spec, files),
        packer=Packer(
            tokenizer=plain,
            dtype=smallest_dtype(plain, end_of_text_id),
            end_of_text_id=end_of_text_id,
            held_out_fraction=held_out_fraction,
            held_out_max_bytes=held_out_max_bytes,
        ),
        tokenizer_digest=hashlib.sha256(plain.to_str().encode()).digest(),
    )
    target = cache_folder / job.key()
    meta = read_packed(target) or _build(job, target, on_progress, on_read)
    needed = sequence_tokens + 1
    if meta.train_tokens < needed:
        paths = [path for source in spec.sources for path in source.paths]
        raise ConfigError(
            f"{named(paths)}: too little text: {meta.train_tokens:,} tokens to train "
            f"on, and one sequence needs {needed:,}: add text or set shorter sequences"
        )
    starts = np.memmap(target / STARTS_FILE, np.uint64, mode="r", shape=(meta.train_documents + 1,))
    parts = tuple(meta.parts)
    return Corpus(
        folder=target,
        train=_map(target / TRAIN_FILE, meta.dtype, meta.train_tokens),
        held_out=_map(target / HELD_OUT_FILE, meta.dtype, meta.held_out_tokens),
        document_starts=starts,
        parts=parts,
        streams=streams_of(parts, spec, sequence_tokens=sequence_tokens),
        held_out_bytes=meta.held_out_bytes,
        train_bytes=meta.train_bytes,
        train_documents=meta.train_documents,
        held_out_documents=meta.held_out_documents,
        end_of_text_id=end_of_text_id,
        sequence_tokens=sequence_tokens,
        digest=meta.digest,
        spec=spec,
    )


def hashed_share(text: str) -> float:
    """Return the SHA-256 of a document's text as a fraction, in [0, 1)."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def packed_corpora(cache_folder: Path) -> list[tuple[Path, Packed]]:
    """Return what is packed in a cache, the newest last."""
    found = [
        (path.stat().st_mtime_ns, path.parent, packed)
        for path in cache_folder.glob(f"*/{META_FILE}")
        if (packed := read_packed(path.parent)) is not None
    ]
    return [(folder, packed) for _time, folder, packed in sorted(found, key=lambda one: one[:2])]


def remove_packed(cache_folder: Path, source: str) -> int:
    """Delete every packed corpus that holds text of `source`; return how many.

    What was left half-packed goes too: it may hold text of any source.
    """
    with _locked(cache_folder):
        _remove_unfinished(cache_folder)
        holding = [
            folder
            for folder, packed in packed_corpora(cache_folder)
            if any(one.name == source for one in packed.sources)
        ]
        for folder in holding:
            shutil.rmtree(folder)
        sync_path(cache_folder)
    return len(holding)


def read_packed(folder: Path) -> Packed | None:
    """Return what is packed in `folder`, or None if it is not whole."""
    try:
        table = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        meta = Packed(
            **table
            | {
                "parts": [Part(**part) for part in table["parts"]],
                "files": [tuple(state) for state in table["files"]],
                "sources": [SourceReport(**report) for report in table["sources"]],
            }
        )
        item = np.dtype(meta.dtype).itemsize
        sizes = {
            TRAIN_FILE: item * meta.train_tokens,
            HELD_OUT_FILE: item * meta.held_out_tokens,
            STARTS_FILE: 8 * (meta.train_documents + 1),
        }
        whole = all((folder / n).stat().st_size == size for n, size in sizes.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return meta if whole else None


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that cuts, pads and interprets nothing: all of a text, and only text."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _states(spec: CorpusSpec, files: Sequence[tuple[int, Path]]) -> list[tuple[str, str, int, int]]:
    """Return what tells whether files have changed; a file that is gone has size -1."""
    states = []
    for source, file in files:
        try:
            status = file.stat()
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:
            size, changed = -1, 0
        states.append((spec.sources[source].name, str(file.resolve()), size, changed))
    return states


def _build(
    job: _Job, target: Path, on_progress: OnProgress | None, on_read: OnProgress | None
) -> Packed:
    """Pack into a temporary folder, and give it its name when it is whole and on the disk."""
    cache = target.parent
    with _locked(cache):
        meta = read_packed(target)  # another process may have built it while this one waited
        if meta is not None:
            return meta
        _remove_unfinished(cache)
        shutil.rmtree(target, ignore_errors=True)
        past = [one for one in packed_corpora(cache) if one[1].origin == job.spec.origin]
        if past:
            _log.info("corpus: %s; packing again", _changes(past[-1][1].files, job.states))
        temporary = target.with_name(f".{target.name}{TEMPORARY_SUFFIX}")
        temporary.mkdir(mode=0o700)
        try:
            meta = _pack(job, temporary, on_progress, on_read)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for folder, _packed in past:  # text that the institution has taken away is in there
            shutil.rmtree(folder, ignore_errors=True)
        sync_path(cache)
    return meta


def _remove_unfinished(cache: Path) -> None:
    for left_over in cache.glob(f".*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(left_over, ignore_errors=True)


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


def _pack(
    job: _Job, folder: Path, on_progress: OnProgress | None, on_read: OnProgress | None
) -> Packed:
    """Write the files of a packed corpus."""
    whole = sum(max(0, state[2]) for state in job.states)

    def count(done: int) -> None:
        if on_read is not None:
            on_read(done, max(done, whole))

    with sifting.sifting(job.spec, job.files, folder, on_read=count) as sifted:
        if not any(report.documents for report in sifted.reports):
            paths = [path for source in job.spec.sources for path in source.paths]
            raise ConfigError(f"{named(paths)}: the files hold no text at all; {what_is_read()}")
        train, held_out = job.packer.pack(job.spec, sifted, folder, on_progress)
        reports = sifted.reports
    after = _states(job.spec, job.files)
    if after != job.states:
        _log.warning(
            "corpus: %s while it was read: what was read is used, and packed again at the next "
            "start",
            _changes(job.states, after),
        )
    digests = (job.tokenizer_digest, train.hash.digest(), held_out.hash.digest())
    meta = Packed(
        dtype=np.dtype(job.packer.dtype).name,
        train_tokens=train.tokens,
        held_out_tokens=held_out.tokens,
        train_bytes=train.text_bytes,
        held_out_bytes=held_out.text_bytes,
        train_documents=train.documents,
        held_out_documents=held_out.documents,
        digest=hashlib.sha256(b"".join(digests)).hexdigest(),
        origin=job.spec.origin,
        files=job.states,
        parts=train.parts,
        sources=reports,
    )
    write_atomic(folder / META_FILE, json.dumps(asdict(meta), indent=1), mode=0o600)
    return meta


def _changes(
    before: Sequence[tuple[str, str, int, int]], after: Sequence[tuple[str, str, int, int]]
) -> str:
    """Return in words how files differ."""
    old, new = ({state[1]: state[2:] for state in states} for states in (before, after))
    gone = [path for path in old if new.get(path, (-1, 0))[0] < 0 and old[path][0] >= 0]
    added = [path for path in new if path not in old]
    changed = [path for path in new if path in old and path not in gone and new[path] != old[path]]
    said = [
        f"{len(paths):,} {'file has' if len(paths) == 1 else 'files have'} {what} ({paths[0]})"
        for paths, what in ((changed, "changed"), (gone, "gone"), (added, "come"))
        if paths
    ]
    return ", ".join(said) or "its settings have changed"


def _map(path: Path, dtype: str, tokens: int) -> Tokens:
    mapped: Tokens = np.memmap(path, dtype=dtype, mode="r", shape=(tokens,))
    return mapped
