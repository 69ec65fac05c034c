"""`corpus.toml`: what is refused, all of it at once and with its line, and what is left out."""

from datetime import date
from pathlib import Path

import pytest

from tapestry.data.sources import LeftOut, as_spec, load_corpus, plain_spec, read_table
from tapestry.errors import ConfigError

TODAY = date(2026, 6, 1)
SOURCE = """
[[source]]
name = "{name}"
path = "{path}"
language = "fr"
licence = "CC0-1.0"
jurisdiction = "FR"
category = "open"
"""


def corpus(folder: Path, *sources: str, head: str = "") -> Path:
    path = folder / "corpus.toml"
    path.write_text(head + "".join(sources), encoding="utf-8")
    return path


def source(name: str = "letters", path: str = "letters", **more: str) -> str:
    lines = SOURCE.format(name=name, path=path)
    for key, value in more.items():
        kept = [line for line in lines.splitlines() if not line.startswith(f"{key} =")]
        lines = "\n".join([*kept, f"{key} = {value}", ""])
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("letters/1900/a.txt", "letters/1900/b.txt", "letters/1910/c.md", "press/d.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"one of {name}\n\ntwo", encoding="utf-8")
    return tmp_path


def test_every_fault_is_said_at_once_with_its_line_and_source(tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text(
        """[filter]
[filters]
duplicate = "near"
similarity = 3
[[source]]
name = "Archive One"
path = "x"
language = "french"
licenc = "MIT"
jurisdiction = "FR"
category = "secret"
[[source]]
name = "births"
path = "y"
language = "fr"
licence = "MIT"
jurisdiction = "FR"
category = "private"
""",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        read_table(path)
    said = str(caught.value).replace(f"{path}:", "").splitlines()
    assert said[-1] == "9 faults; nothing was started"
    beginnings = [
        "1: filter: unknown key; did you mean filters?",
        "3: filters.duplicate: unknown key; did you mean duplicates?",
        "4: filters.similarity: has to be less than 1",
        "5: source Archive One: licence: is missing",
        "6: source Archive One: name: has to match",
        "8: source Archive One: language: 'french' is no language tag",
        "9: source Archive One: licenc: unknown key; did you mean licence?",
        "11: source Archive One: category: has to be 'open', 'unique-open', 'controlled'",
        "12: source births: category private needs a consent",
    ]
    assert len(said) == len(beginnings) + 1
    for line, beginning in zip(said, beginnings, strict=False):
        assert line.startswith(beginning)


def test_a_file_without_sources_says_how_to_get_one(tmp_path: Path) -> None:
    for text in ("", "[filters]\n", "source = []\n"):
        with pytest.raises(ConfigError, match=r"1: source: none: add a \[\[source\]\] table"):
            read_table(corpus(tmp_path, head=text))


def test_two_sources_have_two_names(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.toml:11: source letters: another source has"):
        load_corpus(corpus(folder, source(), source(path="press")), today=TODAY)


def test_paths_are_files_folders_or_patterns_beside_the_file(folder: Path) -> None:
    path = corpus(
        folder,
        source("folder", "letters/1910"),
        source("file", "press/d.txt"),
        source("pattern", "letters/**/*.txt"),
        source("absolute", str(folder / "letters" / "19*")),
    )
    spec = load_corpus(path, today=TODAY)
    files = [(spec.sources[n].name, str(file.relative_to(folder))) for n, file in spec.files()]
    assert files == [
        ("folder", "letters/1910/c.md"),
        ("file", "press/d.txt"),
        ("pattern", "letters/1900/a.txt"),
        ("pattern", "letters/1900/b.txt"),
    ]  # what a source above has is not read again
    assert {one.language for one in spec.sources} == {"fra"}


def test_an_expired_consent_leaves_the_source_out_from_the_day_after(folder: Path) -> None:
    private = source("births", "press", category='"private"', consent='"box 4"')
    path = corpus(folder, source(), private + "expires = 2026-06-01\n")
    assert len(load_corpus(path, today=TODAY).sources) == 2
    spec = load_corpus(path, today=date(2026, 6, 2))
    assert [one.name for one in spec.sources] == ["letters"]
    assert spec.left_out == (LeftOut("births", "expired on 2026-06-01"),)


def test_what_is_refused_says_what_would_leave_it_out(folder: Path) -> None:
    gone = source("gone", "nowhere/*.txt")
    path = corpus(folder, source(), gone, source("old", "press") + "expires = 2020-01-01\n")
    with pytest.raises(ConfigError, match=r'12: source gone: .* checks\.on_missing = "leave-out"'):
        load_corpus(path, today=TODAY)
    head = '[checks]\non_missing = "leave-out"\non_expired = "refuse"\n'
    strict = corpus(folder, source(), gone, source("old", "press") + "expires = 2020-01-01\n",
                    head=head)  # fmt: skip
    with pytest.raises(ConfigError, match=r"28: source old: expired on 2020-01-01; checks"):
        load_corpus(strict, today=TODAY)
    lenient = corpus(folder, source(), gone, head='[checks]\non_missing = "leave-out"\n')
    assert load_corpus(lenient, today=TODAY).left_out[0].name == "gone"


def test_bare_paths_are_sources_called_as_they_are(folder: Path) -> None:
    paths = [folder / "press", folder / "letters", folder / "letters" / "1900" / "a.txt"]
    spec = plain_spec(paths)
    assert [one.name for one in spec.sources] == ["letters", "a.txt", "press"]
    assert spec == as_spec(list(reversed(paths)))
    assert as_spec(spec) is spec
    assert len(spec.files()) == 4
    with pytest.raises(ConfigError, match="no such file or folder"):
        plain_spec([folder / "gone"]).files()


def test_a_corpus_of_which_nothing_is_left_says_why(folder: Path) -> None:
    spec = plain_spec([folder / "press"]).without(["press"], reason="forgotten on 2026-05-05")
    with pytest.raises(ConfigError, match=r"no source is left .*press: forgotten on 2026-05-05"):
        spec.require_text("--data")
