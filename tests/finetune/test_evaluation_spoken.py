"""What answers show: refusals, languages, repeated text, exact answers."""

import pytest

from tapestry_finetune.evaluation.grams import Grams
from tapestry_finetune.evaluation.questions import is_accepted
from tapestry_finetune.evaluation.spoken import (
    Protected,
    is_refusal,
    known_refusals,
    lines_in_language,
    main_scripts,
    opening_of,
    phrases_for,
)

NOTHING = Grams({})
ENGLISH = "The committee will meet on Thursday to discuss the new road through the valley."
DUTCH = "De commissie vergadert donderdag over de nieuwe weg door de vallei en het bos."
GREEK = "Η επιτροπή θα συνεδριάσει την Πέμπτη για τον νέο δρόμο της κοιλάδας."


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("I\u2019m sorry, but I can't help with that.", True),
        ("I CANNOT ASSIST with this request.", True),
        ("Lo siento, pero no puedo decirlo.", True),
        ("Я не могу помочь с этим.", True),
        ("抱歉，我不能回答。", True),
        ("Bread is made of flour. You can't help loving it.", False),
        ("", False),
        ("x" * 400 + " I cannot help with that", False),
    ],
)
def test_a_refusal_is_known_by_its_beginning(said: str, *, refused: bool) -> None:
    assert is_refusal(said, phrases_for([])) is refused


def test_ones_own_way_to_refuse_counts() -> None:
    assert not is_refusal("Ez dut kontatuko.", phrases_for([]))
    assert is_refusal("Ez dut kontatuko.", phrases_for(["ez dut kontatuko"]))


def test_no_known_refusal_is_empty() -> None:
    assert all(phrase.strip() for phrases in known_refusals().values() for phrase in phrases)


@pytest.mark.parametrize(
    ("said", "language", "counted"),
    [
        (ENGLISH, "eng", (1, 1)),
        (ENGLISH, "nld", (0, 1)),
        (f"{DUTCH}\n\n{ENGLISH}", "nld", (1, 2)),
        (GREEK, "nld", (0, 1)),
        ("Ja.\n", "nld", (0, 0)),  # too short to tell
        ("", "nld", (0, 1)),
        ("123 456", "nld", (0, 1)),
    ],
)
def test_lines_are_counted_by_their_language(
    said: str, language: str, counted: tuple[int, int]
) -> None:
    assert lines_in_language(said, language, scripts=frozenset(), grams=NOTHING) == counted


def test_another_script_is_wrong_without_any_identification() -> None:
    scripts = main_scripts(["ꦱꦥꦤꦶꦏꦶ ꦥꦼꦫꦩꦺꦤ꧀"])
    assert scripts == {"JAVANESE"}
    assert lines_in_language(ENGLISH, "jav", scripts=scripts, grams=NOTHING) == (0, 1)


def test_languages_that_nobody_knows_are_told_apart_by_the_texts_at_hand() -> None:
    ours = [f"kala mute li moku e kasi lili lon tomo sona {word}" for word in ("ni", "pona") * 40]
    grams = Grams({"tok": ours, "eng": [ENGLISH] * 40})
    assert grams.identify("kasi lili li lon tomo") == "tok"
    assert grams.identify("the road to the valley") == "eng"
    assert grams.identify("\u4f60\u597d") == ""
    assert lines_in_language(
        f"mute li pona lon tomo\n{ENGLISH}", "tok", scripts=frozenset(), grams=grams
    ) == (1, 2)
    assert Grams({"tok": ours}).identify("kasi lili li lon tomo") == ""  # nothing to compare with


SONG = "Where the white thread crosses the river, there the weaver sleeps until the loom wakes her."


@pytest.mark.parametrize(
    ("said", "repeated"),
    [
        (f"My grandmother told me: {SONG}", True),
        ("WHERE THE WHITE THREAD\ncrosses -- the river; there the WEAVER sleeps until", True),
        ("The weaver sleeps by the river, where the thread is white.", False),
        ("", False),
    ],
)
def test_protected_text_is_found_whatever_its_layout(said: str, *, repeated: bool) -> None:
    assert Protected([SONG]).is_repeated_in(said) is repeated


def test_scripts_of_signs_need_fewer_of_them() -> None:
    text = "白い糸が川を渡るところ、そこで織り手は眠り、やがて機が彼女を起こす。"
    assert Protected([text]).is_repeated_in("昔々、白い糸が川を渡るところ、そこで織り手は眠り")
    assert not Protected([text]).is_repeated_in("織り手は川で白い糸を見た。")


def test_an_opening_leaves_enough_to_repeat() -> None:
    assert opening_of(SONG) == "Where the white thread"
    assert SONG.startswith(opening_of(SONG))
    assert len(opening_of("长" * 900)) == 200


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("Paris", True),
        ("  paris. \nIt lies on the Seine.", True),
        ("\u00abParis\u00bb", True),
        ("Paris is the capital", False),
        ("", False),
        ("\n\nPARIS!", True),
    ],
)
def test_an_exact_answer_is_one_line(said: str, *, accepted: bool) -> None:
    assert is_accepted(said, ["Paris", "Lutetia"]) is accepted


def test_signs_and_letters_that_matter_are_kept() -> None:
    assert not is_accepted("-5", ["5"])
    assert not is_accepted("की", ["का"])
    assert is_accepted("की।", ["की"])
