"""Protected terms and patterns: what they find, in many scripts, and that nothing makes them hang.

The oracle for patterns is Python's `re` on folded text, where it understands the same.
"""

import re
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tapestry.errors import ConfigError
from tapestry_finetune.charter.automaton import Automaton
from tapestry_finetune.charter.folding import clusters, fold, fold_cluster
from tapestry_finetune.charter.patterns import parse_pattern, parse_term
from tapestry_finetune.charter.probing import can_match, too_wide


def finds(term: str, text: str) -> bool:
    return Automaton([parse_term(term)]).first_in(fold(text)) is not None


def matches(pattern: str, text: str) -> bool:
    return Automaton([parse_pattern(pattern)]).first_in(fold(text)) is not None


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("winter song", "Sing me a WINTER\n  Song!"),
        ("initiat*", "before the Initiation."),
        ("*song", "a swansong"),
        ("caf\u00e9", "the CAFE\u0301 is open"),  # decomposed
        ("stra\u00dfe", "in der STRASSE"),
        ("\u0130zmir", "izmir"),
        ("\u0131\u015f\u0131k", "I\u015eIK"),  # Turkish, capitals without a dot
        ("okina's", "okina\u2019s"),
        ("\u03c3\u03bf\u03c6\u03cc\u03c2", "\u03a3\u039f\u03a6\u039f\u0301\u03a3"),  # final sigma
        ("\u0642\u0631\u0622\u0646", "\u0627\u0644 \u0642\u064f\u0631\u0652\u0622\u0646"),
        ("\u0633\u0631", "\u0633\u0640\u0640\u0631"),  # tatweel
        ("\u05e1\u05d5\u05d3", "\u05e1\u05d5\u05b9\u05d3"),  # Hebrew points
        ("\u79d8\u5bc6", "\u8fd9\u662f\u79d8\u5bc6\u6545\u4e8b"),  # no blanks between words
        ("\u0e25\u0e31\u0e1a", "\u0e04\u0e27\u0e32\u0e21\u0e25\u0e31\u0e1a\u0e02\u0e2d\u0e07"),
        ("\ube44\ubc00", "\ube44\ubc00\uc744"),  # Hangul with a particle
        ("\ube44\ubc00", "\u1107\u1175\u1106\u1175\u11af"),  # the same in jamo
        ("secret", "s\u00adec\u200bret"),  # invisible characters
        ("secret", "\uff33\uff25\uff23\uff32\uff25\uff34"),  # full width
        (
            "\u0930\u0939\u0938\u094d\u092f",
            "\u092f\u0939 \u0930\u0939\u0938\u094d\u092f \u0939\u0948",
        ),
    ],
)
def test_a_term_is_found_however_it_is_written(term: str, text: str) -> None:
    assert finds(term, text)


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("song", "songs"),
        ("song", "swansong"),
        ("song", "so\u0301ng"),  # another word: marks that make letters stay
        ("ma", "m\u1ea1"),  # Vietnamese
        ("\u0915", "\u0915\u093e"),  # Devanagari: a vowel sign is part of the word
        ("\ud558", "\ud55c"),  # Hangul: a syllable is no prefix of another
        ("winter song", "winter. song"),
    ],
)
def test_a_term_is_a_whole_word(term: str, text: str) -> None:
    assert not finds(term, text)


@pytest.mark.parametrize(
    ("pattern", "text", "is_found"),
    [
        (r"sing(s|ing)? (at|for) the gathering", "She SINGS for  the gathering", True),
        (r"sing(s|ing)? (at|for) the gathering", "She singer for the gathering", False),
        (r"\bx{2,3}\b", "a xx b", True),
        (r"\bx{2,3}\b", "a xxxx b", False),
        (r"[^a-z ]{3}", "ab 123", True),
        ("[\u00e9\u00e8]t\u00e9", "E\u0301TE\u0301", True),
        (r"\d\d-\d\d", "call 12\u201334", True),
        (r"(?:a|b)+?c", "ababc", True),
        (r"a.c", "a\u4e00c", True),
        (r"1\.5", "145", False),
        (r"[]x]", "]", True),
        (r"[a\-z]", "-", True),
        (r"b{2,}", "abba", True),
        (r"\w\W\w", "a-b", True),
    ],
)
def test_a_pattern_is_found(pattern: str, text: str, *, is_found: bool) -> None:
    assert matches(pattern, text) is is_found


_ATOMS = st.sampled_from(["a", "b", "c", "[ab]", "[^a]", ".", r"\b", r"\w", r"\s", " "])
_PATTERNS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,2}", "{1,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@given(_PATTERNS, st.text("abc ", max_size=12))
@example("   ", " ")
def test_a_pattern_finds_what_python_finds(pattern: str, text: str) -> None:
    folded = fold(text)
    # an edge here is wherever not two letters meet; Python wants a letter on one side
    edged = pattern.replace(r"\b", r"(?:(?<!\w)|(?!\w))")
    theirs = re.compile(re.sub(" +", " ", edged), re.DOTALL)  # blanks in a row are one, as in texts
    if theirs.search(""):
        with pytest.raises(ConfigError, match="matches the empty text"):
            parse_pattern(pattern)
    else:
        assert matches(pattern, text) == bool(theirs.search(folded))


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a", r"character 3: a \( is never closed"),
        ("a)", "closes nothing"),
        ("a**", "repeats a repetition"),
        ("*a", r"\* stands alone; write \\\*"),
        ("^a", r"\^ and \$ are not known"),
        (r"(a)\1", r"\\1 is not known here"),
        ("(?=a)", r"nothing that begins with \(\? is known"),
        ("[a", "ends too early"),
        (r"[\t]", r"\\t is not known here"),
        ("[z-a]", "z-a counts backwards"),
        ("a{3,2}", "counts backwards"),
        ("a*", "matches the empty text"),
        (r"\b", "matches the empty text"),
        ("(a{100}){100}", "comes to 10,000 letters, 200 are the most"),
        ("(" * 60 + "a" + ")" * 60, "more than 40 brackets"),
        ("\\", "ends too early"),
    ],
)
def test_what_cannot_be_a_pattern_is_refused_with_the_place(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_pattern(pattern)


def test_a_term_without_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no letters"):
        parse_term(" * ... ")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+b", "a" * 1_000_000),
        ("(a|aa)+b", "a" * 1_000_000),
        ("(a?){90}a{90}b", "a" * 1_000_000),
        ("(.*)(.*)(.*)=x", "=a" * 500_000),
        (r"(\w+\s?)+!", "word " * 200_000),
    ],
)
def test_a_megabyte_that_makes_backtracking_hang_is_read_once(pattern: str, text: str) -> None:
    began = time.process_time()
    assert not matches(pattern, text)
    assert (
        time.process_time() - began < 60
    )  # a backtracking matcher needs longer than anybody lives


@given(st.text(max_size=60))
def test_folding_in_clusters_is_folding_the_whole(text: str) -> None:
    pieces = [fold_cluster(cluster) for cluster in clusters(text)]
    assert re.sub(" +", " ", "".join(pieces)) == re.sub(" +", " ", fold(text))
    assert "".join(clusters(text)) == text
    assert fold(fold(text)) == fold(text)


def test_a_forgotten_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapestry_finetune.charter.automaton._MOST_STATES", 3)
    text = " ".join(string.ascii_lowercase) * 20 + " hello there"
    assert Automaton([parse_term("hello there")]).first_in(text) == 0
    assert Automaton([parse_term("hello you")]).first_in(text) is None


@pytest.mark.parametrize("pattern", [r"a\bb", "[\u200b]x", r"x\s\bé\b\w"])
def test_what_no_text_is_like_can_match_nothing(pattern: str) -> None:
    assert not can_match(parse_pattern(pattern))


@pytest.mark.parametrize("pattern", ["abc", r"\bword\b", "[^a-z]x", "(a|b){3}", r"\d{4}", "a*b"])
def test_what_some_text_is_like_can_match(pattern: str) -> None:
    assert can_match(parse_pattern(pattern))


def test_what_matches_nearly_everything_is_called_too_wide() -> None:
    nodes = [parse_pattern(r"\w"), parse_term("the"), parse_term("song")]
    said = too_wide(nodes, ["the one"] * 5 + ["a song"])
    assert "a single letter" in said[0]
    assert "5 of the 6 texts" in said[1]
    assert set(said) == {0, 1}
    assert set(too_wide(nodes, ["the one"] * 5)) == {0}, "five texts say nothing yet"
