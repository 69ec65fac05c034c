"""What a round was trained on, by source: counted here one token at a time."""

from pathlib import Path

import numpy as np

from tapestry.data.batches import TrainingBatches
from tapestry.data.corpus import Corpus, prepare_corpus
from tapestry.data.counting import use_of
from tapestry.data.sources import CorpusSpec, Filters, Mixing, Source
from tapestry.data.tokenizer import byte_tokenizer

TOKENS = 16


def prepared(folder: Path, mixing: Mixing) -> Corpus:
    sources = []
    for name, language, count in (("abc", "fra", 30), ("def", "fra", 9), ("ghi", "eus", 5)):
        documents = [f"{name} {n} " + name * (n % 7) for n in range(count)]
        (folder / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
        path = (folder / f"{name}.txt",)
        sources.append(Source(name=name, paths=path, language=language, category="open"))
    filters = Filters(duplicates="keep", wrong_language="keep")
    return prepare_corpus(
        CorpusSpec(sources=tuple(sources), filters=filters, mixing=mixing),
        byte_tokenizer(),
        end_of_text_id=0,
        cache_folder=folder / "cache",
        sequence_tokens=TOKENS,
    )


def test_tokens_and_documents_are_those_of_the_sequences_drawn(tmp_path: Path) -> None:
    for mixing in (Mixing(), Mixing(languages="unimax", max_epochs=3)):
        corpus = prepared(tmp_path, mixing)
        batches = TrainingBatches(
            corpus.train, None, sequences=2, sequence_tokens=TOKENS, shared_fraction=0.0, seed=4,
            streams=corpus.streams,
        )  # fmt: skip
        owners = np.concatenate([[part.source] * part.tokens for part in corpus.parts])
        numbers = np.cumsum(np.concatenate([[0], corpus.train[:-1] == 0]))
        for first, count in ((0, 1), (3, 7), (0, 60)):
            tokens: dict[str, int] = {}
            documents: dict[str, set[int]] = {}
            for start in batches.own_starts(first, count):
                for at in range(start, start + TOKENS):
                    tokens[owners[at]] = tokens.get(owners[at], 0) + 1
                    documents.setdefault(owners[at], set()).add(int(numbers[at]))
            use = use_of(corpus, batches, first_batch=first, batches_taken=count)
            assert {one.name: one.tokens for one in use.sources} == tokens
            assert {one.name: one.documents for one in use.sources} == {
                name: len(found) for name, found in documents.items()
            }
            assert use.tokens == count * 2 * TOKENS
            assert use.corpus == corpus.digest
            assert {one.category for one in use.sources} == {"open"}


def test_what_comes_from_the_pool_is_not_counted(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, Mixing())
    batches = TrainingBatches(
        corpus.train, corpus.train, sequences=4, sequence_tokens=TOKENS, shared_fraction=0.25,
        seed=0, streams=corpus.streams,
    )  # fmt: skip
    use = use_of(corpus, batches, first_batch=0, batches_taken=2)
    assert use.tokens == 2 * 3 * TOKENS
