"""Sifted documents into files of tokens: split, tokenized, each source and language in a piece."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tapestry.data.sifting import Sifted, kept_order
from tapestry.data.sources import CorpusSpec
from tapestry.errors import ConfigError
from tapestry.storage.atomic import owned

TRAIN_FILE = "train.bin"
HELD_OUT_FILE = "held_out.bin"
STARTS_FILE = "documents.bin"

_CHARACTERS_AT_ONCE = 2**18

OnProgress = Callable[[int, int], None]
"""Called with bytes of text tokenized and bytes of all that is kept; at the end both are equal."""


@dataclass(frozen=True, slots=True)
class Part:
    """The training documents of one source in one language: a piece of the training tokens."""

    source: str
    language: str
    start: int
    """Where it begins, in tokens."""
    tokens: int
    first_document: int
    documents: int


@dataclass(slots=True)
class Side:
    """One of the two token files."""

    tokens: int = 0
    text_bytes: int = 0
    documents: int = 0
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    """Where each document begins, in tokens."""
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packer:
    """How text becomes tokens."""

    tokenizer: Tokenizer
    dtype: type[np.uint16 | np.uint32]
    end_of_text_id: int
    held_out_fraction: float
    held_out_max_bytes: int

    def pack(
        self, spec: CorpusSpec, sifted: Sifted, folder: Path, on_progress: OnProgress | None
    ) -> tuple[Side, Side]:
        """Write the token files; return the training side and the held-out one.

        Raises:
            ConfigError: There are not two documents, to train on one and measure with the other.
        """
        is_train, is_held_out = self._split(spec, sifted)
        total = int(sifted.records["size"].sum(dtype=np.int64))
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            if on_progress is not None:
                on_progress(min(done, total), total)

        sides = []
        for name, chosen in ((TRAIN_FILE, is_train), (HELD_OUT_FILE, is_held_out)):
            with owned(folder / name) as file:
                sides.append(self._write(spec, sifted, chosen, file, count))
        with owned(folder / STARTS_FILE) as file:
            sides[0].starts.append(sides[0].tokens)
            file.write(sides[0].starts.tobytes())
        if on_progress is not None:
            on_progress(total, total)
        return sides[0], sides[1]

    def _split(
        self, spec: CorpusSpec, sifted: Sifted
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which documents are trained on, and which held out; see `prepare_corpus`."""
        shares = sifted.records["share"]
        if len(np.unique(shares)) < 2:
            paths = [str(path) for source in spec.sources for path in source.paths]
            raise ConfigError(
                f"{', '.join(paths[:3])}: too little text: one document, and needed are two, to "
                "train on one and measure with the other: add text, or part it by blank lines"
            )
        is_held_out = shares < self.held_out_fraction
        if not is_held_out.any():
            is_held_out = shares == shares.min()
        elif is_held_out.all():
            is_held_out = shares < shares.max()
        is_train = ~is_held_out
        numbers = np.flatnonzero(is_held_out)
        by_share = numbers[np.argsort(shares[numbers], kind="stable")]
        sizes = np.cumsum(sifted.records["size"][by_share], dtype=np.int64)
        beyond = by_share[max(1, int(np.searchsorted(sizes, self.held_out_max_bytes, "right"))) :]
        is_held_out[beyond] = False
        return is_train, is_held_out

    def _write(
        self,
        spec: CorpusSpec,
        sifted: Sifted,
        chosen: npt.NDArray[np.bool_],
        file: BinaryIO,
        count: Callable[[int], None],
    ) -> Side:
        side = Side()
        order = kept_order(sifted.records, sifted.languages)
        order = order[chosen[order]]
        keys = sifted.records[["language", "source"]][order]
        bounds = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        for begin, end in zip(bounds, [*bounds[1:], len(order)], strict=True):
            start, first = side.tokens, side.documents
            for texts in _in_batches(sifted.text(int(number)) for number in order[begin:end]):
                count(self._encode(texts, side, file))
            side.parts.append(
                Part(
                    source=spec.sources[int(keys[begin]["source"])].name,
                    language=sifted.languages[int(keys[begin]["language"])],
                    start=start,
                    tokens=side.tokens - start,
                    first_document=first,
                    documents=side.documents - first,
                )
            )
        return side

    def _encode(self, texts: list[str], side: Side, file: BinaryIO) -> int:
        """Append documents to a side; return the bytes of their text."""
        ids: list[int] = []
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            side.starts.append(side.tokens + len(ids))
            ids += encoding.ids
            ids.append(self.end_of_text_id)
        data = np.asarray(ids, self.dtype).tobytes()
        file.write(data)
        side.hash.update(data)
        side.tokens += len(ids)
        side.documents += len(texts)
        size = sum(len(text.encode()) for text in texts)
        side.text_bytes += size
        return size


def smallest_dtype(tokenizer: Tokenizer, end_of_text_id: int) -> type[np.uint16 | np.uint32]:
    """Return the type for the highest id; a vocabulary may have gaps and count fewer tokens."""
    highest = max(end_of_text_id, *tokenizer.get_vocab().values())
    return np.uint16 if highest < 2**16 else np.uint32


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
