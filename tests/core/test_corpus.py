"""Packed corpora: the split, the cache, and what the token files hold."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tapestry.data.corpus import (
    Corpus,
    hashed_share,
    packed_corpora,
    prepare_corpus,
    remove_packed,
)
from tapestry.data.sources import CorpusSpec, Filters, Source
from tapestry.data.tokenizer import byte_tokenizer, train_tokenizer
from tapestry.errors import ConfigError

DOCUMENTS = [f"Document {n} says {n * n}, ភាសា." for n in range(400)]
END = 0

Prepare = Callable[..., Corpus]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Return a function that packs `tmp_path / "text"` with few settings to repeat."""

    def call(
        *paths: Path | CorpusSpec, tokenizer: Tokenizer | None = None, **settings: Any
    ) -> Corpus:
        text = paths[0] if paths and isinstance(paths[0], CorpusSpec) else paths
        given: dict[str, Any] = {
            "end_of_text_id": END,
            "cache_folder": tmp_path / "cache",
            "sequence_tokens": 8,
        }
        return prepare_corpus(
            text or [tmp_path / "text"], tokenizer or byte_tokenizer(), **(given | settings)
        )

    return call


def written(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def decoded(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    ends = np.flatnonzero(tokens == END)
    assert ends[-1] == len(tokens) - 1
    parts = np.split(tokens, ends + 1)[:-1]
    return [tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts]


def test_every_document_is_on_the_side_that_its_hash_says(tmp_path: Path, prepare: Prepare) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    tokenizer = train_tokenizer(DOCUMENTS, vocabulary_size=300)
    corpus = prepare(tokenizer=tokenizer, held_out_fraction=0.2)
    held_out = [text for text in DOCUMENTS if hashed_share(text) < 0.2]
    train = [text for text in DOCUMENTS if hashed_share(text) >= 0.2]
    assert 40 < len(held_out) < 120
    assert decoded(corpus.held_out, tokenizer) == held_out
    assert decoded(corpus.train, tokenizer) == train
    assert (corpus.train_documents, corpus.held_out_documents) == (len(train), len(held_out))
    assert corpus.held_out_bytes == sum(len(text.encode()) for text in held_out)
    assert corpus.train_bytes == sum(len(text.encode()) for text in train)
    assert corpus.train_tokens == len(corpus.train)
    assert isinstance(corpus.train, np.memmap)
    assert corpus.train.dtype == np.uint16


def test_the_share_of_a_document_is_the_head_of_its_sha256() -> None:
    # FIPS 180-2, appendix B.1: SHA-256("abc") starts with ba7816bf8f01
    assert hashed_share("abc") == 0xBA7816BF8F01 / 2**48


def test_the_split_does_not_depend_on_files_or_their_order(
    tmp_path: Path, prepare: Prepare
) -> None:
    one = prepare(written(tmp_path / "one.txt", DOCUMENTS))
    first = written(tmp_path / "b.txt", DOCUMENTS[:150])
    second = written(tmp_path / "a.txt", DOCUMENTS[150:])
    two = prepare(first, second)
    assert sorted(decoded(one.held_out, byte_tokenizer())) == sorted(
        decoded(two.held_out, byte_tokenizer())
    )
    swapped = prepare(second, first)
    assert swapped.digest == two.digest != one.digest
    assert swapped.folder == two.folder


def test_duplicates_fall_on_one_side(tmp_path: Path, prepare: Prepare) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS * 2)
    corpus = prepare(held_out_fraction=0.5)
    sides = (corpus.train, corpus.held_out)
    train, held_out = (set(decoded(side, byte_tokenizer())) for side in sides)
    assert not train & held_out
    assert train | held_out == set(DOCUMENTS)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.0, 1), (1e-9, 1), (1.0, 2)])
def test_each_side_gets_a_document(
    tmp_path: Path, prepare: Prepare, fraction: float, held_out: int
) -> None:
    documents = sorted(DOCUMENTS[:3], key=hashed_share)
    written(tmp_path / "text" / "a.txt", DOCUMENTS[:3])
    corpus = prepare(held_out_fraction=fraction)
    assert set(decoded(corpus.held_out, byte_tokenizer())) == set(documents[:held_out])
    assert set(decoded(corpus.train, byte_tokenizer())) == set(documents[held_out:])
    assert prepare(held_out_fraction=fraction).digest == corpus.digest


def test_held_out_text_beyond_the_limit_is_neither_measured_nor_trained_on(
    tmp_path: Path, prepare: Prepare
) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    whole = prepare(held_out_fraction=0.2)
    capped = prepare(held_out_fraction=0.2, held_out_max_bytes=500)
    assert 400 < capped.held_out_bytes <= 500
    assert np.array_equal(capped.train, whole.train)
    one = prepare(held_out_fraction=0.2, held_out_max_bytes=1)
    assert one.held_out_documents == 1


def test_names_of_special_tokens_in_the_text_are_text(tmp_path: Path, prepare: Prepare) -> None:
    odd = "Written <|endoftext|> by a person <|padding|>"
    written(tmp_path / "text" / "a.txt", [odd, "The other one."])
    corpus = prepare()
    both = np.concatenate([corpus.train, corpus.held_out])
    assert (both == END).sum() == 2
    assert len(both) - 2 == corpus.train_bytes + corpus.held_out_bytes
    assert odd in decoded(both, byte_tokenizer())


def test_truncation_and_padding_of_a_tokenizer_are_left_alone_and_without_effect(
    tmp_path: Path, prepare: Prepare
) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    assert prepare(tokenizer=tokenizer).digest == prepare().digest
    assert tokenizer.truncation is not None
    assert tokenizer.padding is not None


def test_large_token_ids_take_four_bytes_even_in_a_small_vocabulary(
    tmp_path: Path, prepare: Prepare
) -> None:
    written(tmp_path / "text" / "a.txt", ["far far far far far", "far", "far far"])
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "far": 70_000}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    corpus = prepare(tokenizer=tokenizer, sequence_tokens=1)
    assert corpus.train.dtype == np.uint32
    assert set(corpus.train.tolist()) == {0, 70_000}


def test_a_second_call_packs_nothing(tmp_path: Path, prepare: Prepare) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    told: list[tuple[int, int]] = []
    first = prepare(on_progress=lambda done, total: told.append((done, total)))
    total = sum(len(text.encode()) for text in DOCUMENTS)
    assert told == sorted(told)
    assert told[-1] == (total, total)
    made = (first.folder / "train.bin").stat()
    again = prepare(on_progress=lambda *_: pytest.fail("packed again"))
    assert (again.folder / "train.bin").stat().st_ino == made.st_ino
    assert (again.digest, again.held_out_bytes) == (first.digest, first.held_out_bytes)


def test_whatever_changes_the_tokens_makes_another_corpus(tmp_path: Path, prepare: Prepare) -> None:
    file = written(tmp_path / "text" / "a.txt", DOCUMENTS)
    corpora = [
        prepare(),
        prepare(tokenizer=train_tokenizer(DOCUMENTS, vocabulary_size=300)),
        prepare(held_out_fraction=0.3),
        prepare(held_out_fraction=0.3, held_out_max_bytes=100),
        prepare(end_of_text_id=1),
    ]
    os.utime(file, ns=(0, 0))
    touched = prepare()
    assert len({corpus.folder for corpus in [*corpora, touched]}) == 6
    assert len({corpus.digest for corpus in corpora}) == 5
    assert touched.digest == corpora[0].digest


def test_a_link_may_lead_to_a_file_with_another_name(tmp_path: Path, prepare: Prepare) -> None:
    written(tmp_path / "store" / "f00d", DOCUMENTS)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").symlink_to(tmp_path / "store" / "f00d")
    corpus = prepare()
    assert corpus.train_documents + corpus.held_out_documents == len(DOCUMENTS)


@pytest.mark.parametrize("name", ["corpus.json", "train.bin", "held_out.bin"])
@pytest.mark.parametrize("damage", ["missing", "short", "nonsense"])
def test_a_damaged_cache_is_built_again(
    tmp_path: Path, prepare: Prepare, name: str, damage: str
) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    first = prepare()
    file, whole = first.folder / name, (first.folder / name).read_bytes()
    match damage:
        case "missing":
            file.unlink()
        case "short":
            file.write_bytes(whole[:-1])
        case _:
            file.write_bytes(b"[]")
    assert prepare().digest == first.digest
    assert file.read_bytes() == whole


def test_only_the_owner_can_read_the_packed_text(tmp_path: Path, prepare: Prepare) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    before = os.umask(0)
    try:
        corpus = prepare()
    finally:
        os.umask(before)
    for path in (corpus.folder.parent, *corpus.folder.parent.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_build_that_was_killed_is_neither_used_nor_kept(tmp_path: Path, prepare: Prepare) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from tapestry.data.corpus import prepare_corpus
        from tapestry.data.tokenizer import byte_tokenizer
        prepare_corpus([Path(sys.argv[1])], byte_tokenizer(), end_of_text_id=0,
            cache_folder=Path(sys.argv[2]), sequence_tokens=8,
            on_progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    """
    cache = tmp_path / "cache"
    killed = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "text", cache],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=False,
    )
    assert killed.returncode == -9
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".part"]
    corpus = prepare()
    assert corpus.train_documents + corpus.held_out_documents == len(DOCUMENTS)
    assert [path for path in cache.iterdir() if path.is_dir()] == [corpus.folder]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, prepare: Prepare) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    (tmp_path / "text" / "b.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"b\.txt:1: not UTF-8 after letter 0"):
        prepare()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_two_that_want_the_same_corpus_at_once_both_get_it(
    tmp_path: Path, prepare: Prepare
) -> None:
    written(tmp_path / "text" / "a.txt", DOCUMENTS)
    built: list[Corpus] = []
    packed: list[int] = []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        built.append(prepare(on_progress=lambda done, total: packed.append(done == total)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 4
    assert len({corpus.digest for corpus in built}) == 1
    assert packed.count(1) <= 2  # the last batch and the end, of one build


def test_too_little_text_is_counted(tmp_path: Path, prepare: Prepare) -> None:
    file = written(tmp_path / "text" / "a.txt", ["abc", "abcd"])
    held_out = min("abc", "abcd", key=hashed_share)
    tokens = 3 + 4 + 1 - len(held_out)
    expected = f"{file}: too little text: {tokens} tokens to train on, and one sequence needs 33"
    with pytest.raises(ConfigError, match=expected):
        prepare(file, sequence_tokens=32)
    assert prepare(file, sequence_tokens=tokens - 1).train_tokens == tokens


@pytest.mark.parametrize("documents", [["only one"], ["the same", "the same"]])
def test_one_document_cannot_be_split(
    tmp_path: Path, prepare: Prepare, documents: list[str]
) -> None:
    written(tmp_path / "text" / "a.txt", documents)
    with pytest.raises(ConfigError, match="too little text: one document, and needed are two"):
        prepare()


def test_one_large_file_without_blank_lines_is_split_too(tmp_path: Path, prepare: Prepare) -> None:
    written(tmp_path / "text" / "a.txt", ["A line of a long file.\n" * 9_000 + "The end."])
    corpus = prepare()
    assert corpus.held_out_documents >= 1
    assert corpus.train_documents >= 1


# Sources


SENTENCE = "the traveller wrote home from the far north about ice, dogs and the long light of"


def letter(number: int) -> str:
    return " ".join(f"{SENTENCE} {number * 31 + n * n}." for n in range(12))


def described(folder: Path, **settings: Any) -> CorpusSpec:
    sources = [
        Source(name=path.stem, paths=(path,), language=path.stem.split("-")[0])
        for path in sorted(folder.iterdir())
    ]
    filters = Filters(**{"wrong_language": "keep", **settings})
    return CorpusSpec(sources=tuple(sources), filters=filters, origin="corpus.toml")


def test_each_language_and_source_is_one_piece_in_an_order_of_names(
    tmp_path: Path, prepare: Prepare
) -> None:
    for name, numbers in (("fra-b", range(20)), ("eus-a", range(20, 40)), ("fra-a", range(40, 60))):
        written(tmp_path / "text" / f"{name}.txt", [letter(n) for n in numbers])
    corpus = prepare(described(tmp_path / "text"))
    assert [(p.language, p.source) for p in corpus.parts] == [
        ("eus", "eus-a"), ("fra", "fra-a"), ("fra", "fra-b"),
    ]  # fmt: skip
    for part in corpus.parts:
        texts = decoded(corpus.train[part.start : part.start + part.tokens], byte_tokenizer())
        assert len(texts) == part.documents
        first = {"fra-b": 0, "eus-a": 20, "fra-a": 40}[part.source]
        assert set(texts) <= {letter(n) for n in range(first, first + 20)}
    starts = corpus.document_starts
    assert starts[-1] == corpus.train_tokens
    assert list(corpus.train[starts[1:].astype(int) - 1]) == [END] * corpus.train_documents


def test_near_duplicates_are_on_neither_side_and_their_first_on_one(
    tmp_path: Path, prepare: Prepare
) -> None:
    documents = [letter(n) for n in range(40)] + [letter(n) + " Again!" for n in range(40)]
    written(tmp_path / "text" / "eng.txt", documents)
    corpus = prepare(described(tmp_path / "text"), held_out_fraction=0.3)
    sides = [set(decoded(side, byte_tokenizer())) for side in (corpus.train, corpus.held_out)]
    assert sides[0] | sides[1] == {letter(n) for n in range(40)}
    assert not sides[0] & sides[1]
    assert sides[1] == {letter(n) for n in range(40) if hashed_share(letter(n)) < 0.3}


def test_when_files_have_changed_it_is_said_and_the_old_copy_goes(
    tmp_path: Path, prepare: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "text"
    for name in ("eng-a", "eng-b", "eng-c"):
        written(folder / f"{name}.txt", [letter(hash(name) % 999 + n) for n in range(9)])
    first = prepare(described(folder))
    with (folder / "eng-a.txt").open("a") as file:
        file.write("\n\nIt has grown.")
    (folder / "eng-b.txt").unlink()
    written(folder / "eng-d.txt", [letter(5000)])
    assert len(first.train) == first.train_tokens  # still mapped, whatever became of the files
    second = prepare(described(folder))
    for name, what in (("a", "changed"), ("b", "gone"), ("d", "come")):
        assert f"1 file has {what} ({folder}/eng-{name}.txt)" in caplog.text
    assert "packing again" in caplog.text
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [second.folder]
    assert not first.folder.exists()


def test_a_file_that_grows_while_it_is_read_is_packed_again_at_the_next_call(
    tmp_path: Path, prepare: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path / "text" / "eng.txt", [letter(n) for n in range(9)])

    def grow(_done: int, _total: int) -> None:
        if "grown" not in file.read_text():
            with file.open("a") as opened:
                opened.write("\n\nIt has grown.")

    first = prepare(described(tmp_path / "text"), on_progress=grow)
    assert "1 file has changed" in caplog.text
    assert "what was read is used, and packed again at the next start" in caplog.text
    second = prepare(described(tmp_path / "text"))
    count = first.train_documents + first.held_out_documents
    assert second.train_documents + second.held_out_documents == count + 1 == 10


def test_what_is_packed_of_a_source_is_deleted_with_all_that_is_half_packed(
    tmp_path: Path, prepare: Prepare
) -> None:
    for name in ("one", "two"):
        written(tmp_path / name / f"{name}.txt", [letter(len(name) * n) for n in range(9)])
    both = prepare(tmp_path / "one", tmp_path / "two")
    one = prepare(tmp_path / "one")
    (tmp_path / "cache" / ".half.part").mkdir()
    assert remove_packed(tmp_path / "cache", "two") == 1
    assert not both.folder.exists()
    assert [folder for folder, _packed in packed_corpora(tmp_path / "cache")] == [one.folder]
    assert not (tmp_path / "cache" / ".half.part").exists()
