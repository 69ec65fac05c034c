"""Which text a node trains on: corpus.toml, the node's policy, what was forgotten."""

from datetime import date
from pathlib import Path

import pytest

from tapestry.data.categories import Category
from tapestry.errors import ConfigError
from tapestry_node.forgetting import forget, known_sources, sifted_reports
from tapestry_node.governing import corpus_spec, text_of
from tapestry_node.home import NodeHome
from tapestry_node.policy import NodeSettings, Policy

SOURCE = """
[[source]]
name = "{name}"
path = "../text/{name}.txt"
language = "fra"
licence = "CC0-1.0"
jurisdiction = "FR"
category = "{category}"
consent = "registry 7"
"""


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    made = NodeHome(tmp_path / "node")
    made.make_folders()
    (tmp_path / "text").mkdir()
    for name in ("letters", "press"):
        (tmp_path / "text" / f"{name}.txt").write_text(f"{name}\n\ntwo {name}", encoding="utf-8")
    return made


def describe(home: NodeHome, **categories: str) -> None:
    text = "".join(SOURCE.format(name=n, category=c) for n, c in categories.items())
    (home.folder / "corpus.toml").write_text(text, encoding="utf-8")


def admit(home: NodeHome, *categories: Category) -> None:
    home.save_settings(NodeSettings(policy=Policy(categories=categories)))


def test_the_policy_leaves_out_what_it_does_not_admit(home: NodeHome) -> None:
    describe(home, letters="private", press="open")
    assert [one.name for one in corpus_spec(home).sources] == ["letters", "press"]
    admit(home, Category.OPEN)
    assert home.load_settings().policy.categories == (Category.OPEN,)  # as the file says
    spec = corpus_spec(home)
    assert [one.name for one in spec.sources] == ["press"]
    assert spec.left_out[0].reason == "category private is not among policy.categories"
    admit(home, Category.SOVEREIGN)
    with pytest.raises(ConfigError, match="no source is left to train on"):
        corpus_spec(home)


def test_bare_paths_have_no_category_to_admit(home: NodeHome) -> None:
    text = home.folder.parent / "text"
    assert [one.name for one in corpus_spec(home, [text]).sources] == ["text"]
    admit(home, Category.OPEN, Category.UNIQUE_OPEN)
    with pytest.raises(ConfigError, match="has no category, and the policy admits only open, uni"):
        corpus_spec(home, [text])


def test_text_is_given_once(home: NodeHome) -> None:
    text = home.folder.parent / "text"
    with pytest.raises(ConfigError, match="no text given: add --data PATH"):
        text_of(home, [])
    assert text_of(home, [text]) == [text]
    describe(home, press="open")
    assert text_of(home, []) == [home.folder / "../text/press.txt"]
    with pytest.raises(ConfigError, match="this node's text is described in"):
        text_of(home, [text])


def test_a_forgotten_source_is_left_out_whichever_way_it_is_given(home: NodeHome) -> None:
    describe(home, letters="private", press="open")
    assert known_sources(home) == {"letters": "", "press": ""}
    home.unfinished.write_bytes(b"moments of a round half trained")
    assert forget(home, "letters") == (0, [])
    assert not home.unfinished.exists()
    spec = corpus_spec(home, today=date(2026, 1, 1))
    assert [one.name for one in spec.sources] == ["press"]
    assert spec.left_out[0].reason.startswith("forgotten on 20")
    assert known_sources(home)["letters"].startswith("20")
    (home.folder / "corpus.toml").unlink()
    forget(home, "text")
    with pytest.raises(ConfigError, match="no source is left to train on"):
        corpus_spec(home, [home.folder.parent / "text"])


def test_a_report_before_anything_is_packed_keeps_nothing(home: NodeHome) -> None:
    describe(home, press="open")
    (report,) = sifted_reports(home, corpus_spec(home))
    assert (report.documents, report.kept) == (2, 2)
    assert list(home.corpus.iterdir()) == []
