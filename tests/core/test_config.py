"""Settings that people write."""

import tomllib
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from tapestry.config import Settings, commented_toml, load_settings, parse_settings
from tapestry.errors import ConfigError


class Loom(Settings):
    """How the loom is set."""

    threads: Annotated[int, Field(ge=1)] = 4
    """How many, counted
    over the whole width."""
    tension: float = 0.5
    colours: tuple[str, ...] = ("madder", 'wo"ad')
    """Of the weft."""
    is_on: bool = True


class Workshop(Settings):
    """The whole file."""

    loom: Loom = Loom()
    spare: Loom = Loom(threads=2)


def write(folder: Path, text: str) -> Path:
    path = folder / "workshop.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as raised:
        load_settings(path, Workshop)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_what_is_not_written_has_its_default(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "[loom]\nthreads = 9\n"), Workshop)
    assert settings == Workshop(loom=Loom(threads=9))


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, ""), Workshop) == Workshop()


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[loom]\nthreds = 3\n", "loom.threds", "threads"),
        ("[loom]\ntensoin = 3\n", "loom.tensoin", "tension"),
        ("[lom]\n", "lom", "loom"),
        ("[spare]\ncolors = []\n", "spare.colors", "colours"),
        ("[loom]\nqqqq = 1\n", "loom.qqqq", ""),
    ],
)
def test_an_unknown_key_names_the_nearest_one(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    assert refusal(tmp_path, text).startswith(f"{key}: unknown key; did you mean {nearest}")


@pytest.mark.parametrize(
    ("text", "key", "complaint"),
    [
        ('[loom]\nthreads = "many"\n', "loom.threads", "valid integer"),
        ("[loom]\nthreads = 0\n", "loom.threads", "greater than or equal to 1"),
        ("[loom]\nthreads = 1.5\n", "loom.threads", "valid integer"),
        ('[loom]\ncolours = "red"\n', "loom.colours", "valid tuple"),
        ("[loom]\ncolours = [1]\n", "loom.colours (number 1)", "valid string"),
        ('[loom]\nis_on = "perhaps"\n', "loom.is_on", "valid boolean"),
        ("loom = 3\n", "loom", "valid dictionary"),
    ],
)
def test_a_wrong_value_names_its_key(tmp_path: Path, text: str, key: str, complaint: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{key}: ")
    assert complaint in message


def test_all_faults_are_named_at_once_unknown_keys_first(tmp_path: Path) -> None:
    path = write(tmp_path, "[loom]\nthreads = 0\ntensoin = 3\ncolours = [1]\n")
    with pytest.raises(ConfigError) as raised:
        load_settings(path, Workshop)
    lines = str(raised.value).splitlines()
    assert [line.removeprefix(f"{path}: ").split(": ")[0] for line in lines] == [
        "loom.tensoin",
        "loom.threads",
        "loom.colours (number 1)",
    ]


@pytest.mark.parametrize("text", ["threads: 3\n", "[loom\n", "[loom]\nthreads = 1\nthreads = 2\n"])
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text).startswith("not valid TOML: ")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(tmp_path / "file", Workshop)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_settings(tmp_path / "nothing", Workshop)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Workshop().loom.threads = 3  # type: ignore[misc]


def test_where_begins_the_message() -> None:
    with pytest.raises(ConfigError, match=r"^--set: loom\.threads: "):
        parse_settings({"loom": {"threads": 0}}, Workshop, where="--set")


@pytest.mark.parametrize(
    "settings",
    [
        Workshop(),
        Workshop(loom=Loom(threads=7, tension=1e-9, colours=(), is_on=False)),
        Workshop(loom=Loom(colours=("# not a comment", "back\\slash", "línea\nnueva"))),
    ],
)
def test_commented_settings_are_read_back(tmp_path: Path, settings: Workshop) -> None:
    text = commented_toml(settings, head="What this workshop does.")
    assert load_settings(write(tmp_path, text), Workshop) == settings


def test_every_key_stands_under_what_it_means() -> None:
    text = commented_toml(Workshop(), head="What this workshop does.")
    assert text.startswith("# What this workshop does.\n\n# How the loom is set.\n[loom]\n")
    assert "# How many, counted over the whole width.\nthreads = 4\n" in text
    assert tomllib.loads(text)["spare"]["threads"] == 2
