"""Strings that a community translates: what is left out is English, what is wrong is named."""

import string
from pathlib import Path

import pytest

from tapestry.errors import ConfigError
from tapestry_finetune.wording import load_wording, shipped_languages


def test_every_shipped_language_says_everything() -> None:
    english = load_wording()
    assert shipped_languages() == ["en", "es"]
    for tag in shipped_languages():
        wording = load_wording(tag)
        assert wording.language == tag
        assert wording.texts.keys() == english.texts.keys()
        for key, text in wording.texts.items():
            places = {name for _t, name, _s, _c in string.Formatter().parse(text) if name}
            in_english = {
                name for _t, name, _s, _c in string.Formatter().parse(english.texts[key]) if name
            }
            assert places == in_english, key
    assert load_wording("es").texts["chat.new"] != english.texts["chat.new"]


def test_a_file_of_ones_own_may_be_half_done(tmp_path: Path) -> None:
    path = tmp_path / "isl.toml"
    path.write_text('[chat]\nunknown = "Ekkert {command} hér."\n', encoding="utf-8")
    wording = load_wording(path)
    assert wording("chat.unknown", command="/x") == "Ekkert /x hér."
    assert wording("chat.stopped") == "(stopped)"
    assert wording.direction == "ltr"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[chat", "not valid TOML"),
        ('stray = "a"', "stray: stands outside a table"),
        ("[chat]\nnew = 3", r"chat\.new: expected text in quotes"),
        ('[chat]\nstoped = "a"', r"chat\.stoped: unknown key; did you mean chat\.stopped\?"),
        (
            '[chat]\nunknown = "{comand}"',
            r"nothing is put in for \{comand\}; there is: \{command\}",
        ),
        ('[chat]\nnew = "{"', "write {{ for a brace"),
        ('[language]\ndirection = "up"', "'up'; write ltr or rtl"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as refused:
        load_wording(path)
    assert str(refused.value).startswith(str(path))


def test_no_such_language_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="languages that come with the program: en, es"):
        load_wording("tlh")
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[chat]\nnew = "\xe9"\n')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_wording(path)
