"""What a language costs: against texts whose true cost is known, since they say the same."""

import re
from collections.abc import Callable
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer

from tapestry.data.tokenizer import byte_tokenizer, train_tokenizer
from tapestry_finetune.doctor import few_tokens
from tapestry_finetune.rows.cost import CountTokens, cost_of, english

PROSE = [topics[name] for name in sorted(topics) if len(topics[name]) > 1_500]
TAMIL = "கஙசஜஞடணதநனபமயரறலளழவஶஷஸஹஅஆஇ"
GREEK = "αβγδεζηθικλμνξοπρστυφχψωάέή"


def counter(tokenizer: Tokenizer) -> CountTokens:
    return lambda text: len(tokenizer.encode(text).ids)


def in_script(letters: str) -> Callable[[str], str]:
    """Return what writes a text in another script: it says the same, in as many letters."""
    return lambda text: text.lower().translate({ord("a") + n: letters[n] for n in range(26)})


def in_ideographs(text: str) -> str:
    """Write a text with a sign for every two letters: it says the same, in half of the letters."""

    def sign(pair: re.Match[str]) -> str:
        first, second = (ord(letter) - ord("a") for letter in pair[0])
        return chr(0x4E00 + 26 * first + second)

    return re.sub("[a-z]{2}", sign, text.lower())


SCRIPTS = {"tamil": in_script(TAMIL), "greek": in_script(GREEK), "ideographs": in_ideographs}


@pytest.fixture(scope="module")
def trained() -> CountTokens:
    """Count as a tokenizer that has seen English only."""
    return counter(train_tokenizer(PROSE[::2], vocabulary_size=2_000))


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("which", ["trained", "bytes"])
def test_the_cost_of_other_texts_is_near_that_of_the_same_text(
    script: str, which: str, trained: CountTokens
) -> None:
    count = trained if which == "trained" else counter(byte_tokenizer())
    ciphered = SCRIPTS[script]
    known, other = PROSE[1::4], PROSE[3::4]
    true = sum(count(ciphered(text)) for text in known) / sum(map(count, known))
    cost = cost_of([ciphered(text) for text in other], "tam", count)
    prose = cost_of(other, "eng", count)
    assert cost.times_english is not None
    assert prose.times_english is not None
    assert cost.times_english / prose.times_english == pytest.approx(true, rel=0.15)
    size = sum(len(ciphered(text).encode()) for text in other)
    tokens = sum(count(ciphered(text)) for text in other)
    assert cost.bytes_per_token == pytest.approx(size / tokens, rel=0.1)


def test_english_costs_one(trained: CountTokens) -> None:
    paragraphs = english().split("\n\n")
    assert cost_of(paragraphs, "eng", trained).times_english == pytest.approx(1.0, abs=0.02)


def test_of_little_text_nothing_is_claimed(trained: CountTokens) -> None:
    cost = cost_of(["A few words.", "A few more."] * 500, "eng", trained)
    assert cost.times_english is None
    assert cost.bytes_per_token > 1


@pytest.mark.parametrize("script", ["tamil", "ideographs"])
def test_a_script_that_is_spelt_in_bytes_is_hardly_known_however_english_fares(script: str) -> None:
    greek = [SCRIPTS["greek"](text) for text in PROSE]
    count = counter(train_tokenizer(greek[::2], vocabulary_size=2_000))  # knows no English
    bytes_per_token = len(english().encode()) / count(english())
    cost = cost_of(map(SCRIPTS[script], PROSE[1::4]), "tam", count)
    assert cost.bytes_per_token > bytes_per_token / 2
    assert few_tokens(cost, bytes_per_token)
    assert not few_tokens(cost_of(greek[1::4], "ell", count), bytes_per_token)
    assert not few_tokens(cost_of(PROSE[1::4], "eng", count), bytes_per_token)
