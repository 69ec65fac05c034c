import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tapestry.errors import ConfigError, UntrustedError
from tapestry_demo.texts import (
    SOURCES,
    Source,
    WrittenText,
    data_files,
    digest_hex,
    documents,
    missing_packages,
    read_verified,
    write_texts,
)

needs_texts = pytest.mark.skipif(bool(missing_packages()), reason="needs the extra `demo`")
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.language)

SCRIPTS = {"ukr": "CYRILLIC", "nya": "LATIN", "hin": "DEVANAGARI", "ind": "LATIN"}
COMMONEST_WORDS = {"ukr": "не", "nya": "ndi", "hin": "है", "ind": "yang"}


@cache
def read_once(source: Source) -> list[str]:
    return documents(source)


@pytest.fixture(scope="module")
def written_texts(tmp_path_factory: pytest.TempPathFactory) -> list[WrittenText]:
    folder = tmp_path_factory.mktemp("texts")
    return write_texts(folder, bytes_per_language=400_000, pool_fraction=0.25)


def pool_of(written: WrittenText) -> Path:
    return written.path.parents[1] / "pool" / f"{written.source.language}.txt"


def stored(path: Path) -> list[str]:
    return path.read_text().removesuffix("\n").split("\n\n")


@needs_texts
@every_source
def test_each_language_has_three_megabytes_of_clean_documents(source: Source) -> None:
    texts = read_once(source)
    sizes = sorted(len(text.encode()) for text in texts)
    assert sum(sizes) > 3_000_000
    assert sizes[0] >= 1_000
    assert sizes[len(sizes) * 9 // 10] < 7_000
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == unicodedata.normalize("NFC", text)
        assert not re.search(r"^\s|\s$|\n\n|  |\t|<|&\w+;", text)


@needs_texts
@every_source
def test_each_text_is_in_its_script_and_language(source: Source) -> None:
    text = "\n".join(read_once(source)[::10])
    scripts = Counter(
        unicodedata.name(letter, "?").split()[0]
        for letter, count in Counter(text).items()
        if letter.isalpha()
        for _ in range(count)
    )
    assert scripts[SCRIPTS[source.language]] > 0.999 * scripts.total()
    words = Counter(re.findall(r"[^\s।,.;:!?()]+", text.lower()))
    assert COMMONEST_WORDS[source.language] in [word for word, _ in words.most_common(8)]


@needs_texts
def test_the_pool_and_the_own_texts_share_no_document(written_texts: list[WrittenText]) -> None:
    for written in written_texts:
        own = stored(written.path)
        pool = stored(pool_of(written))
        assert not set(own) & set(pool)
        assert set(own) | set(pool) <= set(read_once(written.source))
        assert written.documents == len(own)


@needs_texts
def test_own_text_and_pool_together_keep_to_the_limit(written_texts: list[WrittenText]) -> None:
    for written in written_texts:
        assert written.own_bytes == written.path.stat().st_size
        assert written.pool_bytes == pool_of(written).stat().st_size
        assert 380_000 < written.own_bytes + written.pool_bytes <= 400_000
        assert 80_000 < written.pool_bytes <= 100_000  # a quarter


@needs_texts
def test_a_small_text_is_taken_from_the_whole_work(tmp_path: Path) -> None:
    for written in write_texts(tmp_path, bytes_per_language=400_000, pool_fraction=0):
        places = {text: place for place, text in enumerate(read_once(written.source))}
        taken = [places[text] / len(places) for text in stored(written.path)]
        quarters = Counter(int(4 * place) for place in taken)
        assert taken == sorted(taken)
        assert min(quarters[quarter] for quarter in range(4)) > 0.18 * len(taken)
        assert written.pool_bytes == 0


@needs_texts
def test_two_folders_get_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_texts(tmp_path / name, bytes_per_language=200_000, pool_fraction=0.2)
    files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 4 + 4 + 2  # own texts, pool, SOURCES.md and texts.json
    for path in files:
        twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == twin.read_bytes()


@needs_texts
def test_a_second_run_writes_only_what_is_no_longer_right(tmp_path: Path) -> None:
    first = write_texts(tmp_path, bytes_per_language=200_000, pool_fraction=0.2)
    inodes = [text.path.stat().st_ino for text in first]
    content = first[0].path.read_bytes()

    assert write_texts(tmp_path, bytes_per_language=200_000, pool_fraction=0.2) == first
    assert [text.path.stat().st_ino for text in first] == inodes

    first[0].path.write_bytes(content[:-100])
    assert write_texts(tmp_path, bytes_per_language=200_000, pool_fraction=0.2) == first
    assert first[0].path.read_bytes() == content

    larger = write_texts(tmp_path, bytes_per_language=300_000, pool_fraction=0.2)
    assert larger[0].own_bytes > first[0].own_bytes


@needs_texts
def test_the_folder_says_where_each_text_comes_from(written_texts: list[WrittenText]) -> None:
    page = (written_texts[0].path.parents[1] / "SOURCES.md").read_text()
    for source in SOURCES:
        row = next(line for line in page.splitlines() if f"| {source.member_id} |" in line)
        assert f"{source.package} {source.version}" in row
        assert source.licence in row


@needs_texts
@every_source
def test_one_changed_bit_in_a_package_is_refused(source: Source, tmp_path: Path) -> None:
    root, names = data_files(source)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, tmp_path / name)
    pinned = digest_hex({name: (root / name).read_bytes() for name in names})
    assert sorted(read_verified(tmp_path, names, pinned)) == names

    changed = tmp_path / names[-1]
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    with pytest.raises(UntrustedError, match="install its package again"):
        read_verified(tmp_path, names, pinned)

    changed.unlink()
    with pytest.raises(UntrustedError, match="use nothing of it"):
        read_verified(tmp_path, names, pinned)


def test_files_that_change_places_change_the_digest() -> None:
    files = {"1.json": b"a", "2.json": b"b"}
    assert digest_hex(files) != digest_hex({"1.json": b"b", "2.json": b"a"})


def test_another_version_of_a_package_is_not_read() -> None:
    other = replace(SOURCES[0], version="99.0")
    assert missing_packages([other]) == [f"{other.package}==99.0"]
    with pytest.raises(ConfigError, match=r"pip install 'tapestry-fl\[demo\]'.*--data DIR"):
        documents(other)


@needs_texts
def test_settings_that_leave_a_text_empty_say_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set at least 180,001"):  # 3 x 6,000 / 0.1
        write_texts(tmp_path, bytes_per_language=10_000, pool_fraction=0.1)
    for written in write_texts(tmp_path, bytes_per_language=180_001, pool_fraction=0.1):
        assert written.pool_bytes > 0


def test_a_pool_of_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pool_fraction"):
        write_texts(tmp_path, bytes_per_language=10_000, pool_fraction=1.0)
