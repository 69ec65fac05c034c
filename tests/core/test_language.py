"""Language tags, and telling languages apart."""

import pytest

from tapestry.data.language import can_identify, identify, kin_of, language_tag
from tapestry.errors import ConfigError

TEXTS = {
    "fra": "La bibliothèque garde chaque livre dans sa langue, et personne ne sait qui le lira.",
    "eus": "Liburu bakoitzak bere hizkuntza du, eta inork ez daki nork irakurriko duen bihar.",
    "ukr": "Кожна книга має свою мову, і ніхто не знає, хто її прочитає завтра вранці.",
    "khm": "សៀវភៅនីមួយៗមានភាសារបស់វា ហើយគ្មាននរណាម្នាក់ដឹងថានរណានឹងអានវានៅថ្ងៃស្អែកទេ។",
    "nya": "Buku lililonse lili ndi chilankhulo chake, ndipo palibe amene akudziwa.",
}


@pytest.mark.parametrize(
    ("written", "tag"),
    [("fr", "fra"), ("FRA", "fra"), ("pt-BR", "por-BR"), ("zh-Hant", "zho-Hant"), ("tzm", "tzm")],
)
def test_a_tag_has_one_form(written: str, tag: str) -> None:
    assert language_tag(written) == tag


@pytest.mark.parametrize("written", ["", "french", "f", "fr_FR", "fr-", "français", "xx", "qq-FR"])
def test_what_is_no_tag_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="is no language tag"):
        language_tag(written)


def test_a_language_named_in_english_is_told_its_tag() -> None:
    with pytest.raises(ConfigError, match=r"'Esperanto' is no language tag: did you mean epo\?"):
        language_tag("Esperanto")


@pytest.mark.parametrize("tag", TEXTS)
def test_a_sentence_is_identified(tag: str) -> None:
    assert identify(TEXTS[tag]) == tag
    assert can_identify(tag)


def test_what_cannot_be_told_is_not_told() -> None:
    assert identify("") == identify("12 + 7 = 19") == identify("\x00\x01\ufdd0") == ""
    assert identify("\x00\x0c" + TEXTS["fra"]) == "fra"
    assert not can_identify("tzm")


def test_tags_of_one_language_and_what_a_short_text_does_not_tell_apart_are_kin() -> None:
    assert "zho" in kin_of("cmn")
    assert "ind" in kin_of("msa-Arab")
    assert kin_of("fra") == {"fra"}
