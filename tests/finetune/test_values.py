"""Values training makes the charter's held-out answers likelier, and the prompt is measured too."""

import json
from pathlib import Path

import pytest

from tapestry_finetune.base import Base
from tapestry_finetune.charter.cases import held_out_pairs
from tapestry_finetune.charter.settings import load_charter
from tapestry_finetune.gathering import gather
from tapestry_finetune.making import make
from tapestry_finetune.recipe import load_recipe
from tapestry_finetune.run import Telling
from tests.finetune.conftest import KEY, MADE_AT
from tests.finetune.consensus import known, ours, sentences, write_recipe, write_texts

ASKED = ("zer", "nor", "non", "noiz")


def write_charter(path: Path, cases: int = 14) -> Path:
    """A charter whose one principle is to answer in one's own language."""
    asked = sentences(ASKED, cases, seed=31)
    good = [text[:60] for text in ours(cases, seed=32)]
    bad = [text[:60] for text in known(cases, seed=33)]
    said = [
        "[identity]",
        'community = "the weavers"',
        'languages = ["eu"]',
        "[[principle]]",
        'id = "own"',
        'text = "Euskaraz."',
        'behaviour = "Ehuleak haria ehuntzen du."',
        'counter_example = "The weaver."',
        "[[protected]]",
        'topic = "the old loom"',
        'terms = ["oihala zaharra"]',
        "refuse = true",
        'answer = "Ez."',
    ]
    for number in range(cases):
        said += [
            "[[case]]",
            f"prompt = {json.dumps(f'{asked[number]} {number}')}",
            f"good = {json.dumps(good[number])}",
            f"bad = {json.dumps(bad[number])}",
            'principles = ["own"]',
        ]
    path.write_text("\n".join(said) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_accuracy_on_held_out_cases_rises_and_the_prompt_alone_is_reported(
    base: Base, tmp_path: Path
) -> None:
    charter = load_charter(write_charter(tmp_path / "charter.toml"))
    recipe = write_recipe(tmp_path, base.folder, stages=("values",), method="full", percent=500.0)
    text = recipe.read_text(encoding="utf-8")
    text = text.replace('languages = ["eus"]', 'languages = ["eus"]\ncharter = "charter.toml"')
    text = text.replace('preferences = ["pairs.jsonl"]\n', "").replace("steps = 12", "steps = 40")
    text = text.replace("learning_rate = 1e-3", "learning_rate = 3e-3")
    recipe.write_text(text, encoding="utf-8")
    bundle, evaluation = make(
        recipe, tmp_path / "ours", tmp_path / "work", KEY, Telling(), now=MADE_AT, force="a test"
    )
    (row,) = [
        arm for arm in evaluation.arms if (arm.measure, arm.slice) == ("charter", "all cases")
    ]
    assert row.items == len(held_out_pairs(charter)) >= 2
    assert set(row.arms) == {"base", "base + prompt", "localized", "localized + prompt"}
    assert row.arms["localized"][0] > row.arms["base"][0] + 0.5
    assert any("as a mere prompt" in line for line in evaluation.summary)
    assert bundle.lineage.charter == charter.digest


def test_what_the_charter_protects_is_never_learnt_from(base: Base, tmp_path: Path) -> None:
    write_charter(tmp_path / "charter.toml")
    recipe = write_recipe(tmp_path, base.folder)
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(
        text.replace('languages = ["eus"]', 'languages = ["eus"]\ncharter = "charter.toml"'),
        encoding="utf-8",
    )
    documents = [*ours(20, seed=41), "Eta OIHALA  zaharra eta urdina.", *ours(20, seed=42)]
    write_texts(tmp_path / "text.jsonl", documents)
    found = gather(load_recipe(recipe), recipe)
    rest = [row.text for row in found.text] + found.held_out_text()
    assert not any("oihala zaharra" in text.lower().replace("  ", " ") for text in rest)
    gone = len(documents) - len(rest)
    assert gone >= 1
    assert f"{gone:,} rows of data.text left out: protected by the charter" in found.said
