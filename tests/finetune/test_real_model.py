"""A model that others have pre-trained is adopted, localized in a few steps, and answers."""

import json
from dataclasses import dataclass

import pytest
import torch

from tapestry.objectives.objective import objective_named
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_finetune.assistants import load_assistant
from tapestry_finetune.base import Base, open_base
from tapestry_finetune.bundle import Bundle, open_bundle, require_base
from tapestry_finetune.dialogue import answer
from tapestry_finetune.evaluation.evaluating import Evaluation
from tapestry_finetune.making import make
from tapestry_finetune.run import Telling
from tapestry_finetune.training import StoppedError
from tests.coordinator.small import FOUNDED_AT, settings_for
from tests.finetune.conftest import KEY, MADE_AT
from tests.pretrained import smollm2

pytestmark = pytest.mark.slow

RECIPE = """\
[model]
name = "sirimiri"
base = "{base}"
languages = ["eus"]

[data]
text = ["text.txt"]
chats = ["chats.jsonl"]

[training]
stages = ["language", "instruct"]
method = "lora"
device = "cpu"
sequence_tokens = 64
batch = 1

[language]
steps = 3
learning_rate = 2e-3
[instruct]
steps = 3
learning_rate = 2e-3

[evaluation]
most_tokens = 4
answers = 1
documents = 1

[floor]
bits_per_byte_percent = 100
"""

TEXT = (
    "Egun on guztioi. Gaur eguraldi ona dugu eta itsasoa bare dago.",
    "Etxea mendian dago, ibaiaren ondoan, eta sutondoan amonak ipuinak kontatzen ditu.",
    "Euria ari du; sirimiria da, isila eta mehea, eta kaleak hutsik daude.",
    "Arrantzaleak goizean irteten dira portutik eta arratsean itzultzen dira.",
)
CHATS = (
    ("Zer moduz zaude?", "Ondo, eskerrik asko. Eta zu?"),
    ("Nola duzu izena?", "Sirimiri da nire izena."),
    ("Zer eguraldi dago?", "Euria ari du, sirimiria."),
    ("Non bizi zara?", "Itsasoaren ondoan bizi naiz."),
)


@dataclass(frozen=True)
class Real:
    """What was made of the model of others."""

    base: Base
    bundle: Bundle
    evaluation: Evaluation
    stopped: StoppedError
    resumed: list[int]
    """Steps that the second call took."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """A run that is stopped in the stage instruct, and gone on with."""
    folder = tmp_path_factory.mktemp("real")
    founding = Founding(
        federation="sea",
        objective=objective_named("causal-lm"),
        create={"model": str(smollm2())},
        pool=[],
        seed=1,
    )
    found(folder / "fed", founding, settings_for, now=FOUNDED_AT)
    base = open_base(CoordinatorHome(folder / "fed").checkpoint(0))
    (folder / "text.txt").write_text("\n\n".join(TEXT), encoding="utf-8")
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in CHATS
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(base=base.folder), encoding="utf-8")
    taken: list[int] = []

    def run(telling: Telling) -> tuple[Bundle, Evaluation]:
        return make(recipe, folder / "bundle", folder / "work", KEY, telling, now=MADE_AT)

    with pytest.raises(StoppedError) as stopped:
        run(Telling(on_step=lambda _, p: taken.append(p.step), is_stopped=lambda: len(taken) == 4))
    taken.clear()
    bundle, evaluation = run(Telling(on_step=lambda _, p: taken.append(p.step)))
    return Real(base, bundle, evaluation, stopped.value, taken)


def test_the_run_goes_on_where_it_was_stopped(real: Real) -> None:
    assert "stopped after step 2" in str(real.stopped)
    assert real.resumed == [3]
    assert [stage.steps for stage in real.bundle.lineage.stages] == [3, 3]


def test_the_bundle_verifies_and_names_the_model(real: Real) -> None:
    opened = open_bundle(real.bundle.folder)
    require_base(opened, real.base)
    assert opened.lineage.base.manifest == real.base.identity.manifest
    assert (opened.lineage.name, opened.lineage.languages) == ("sirimiri", ("eus",))


def test_six_steps_make_its_own_text_likelier(real: Real) -> None:
    (row,) = [row for row in real.evaluation.rows if row.measure == "bits_per_byte"]
    assert row.slice == "eus"
    assert row.base < 6, "it is a trained model; a new one has eight bits a byte"
    assert row.candidate < row.base


def test_it_answers_otherwise_than_its_base_which_answers_as_before(real: Real) -> None:
    assistant = load_assistant(real.base, {"sirimiri": real.bundle}, device="cpu")
    asked = [{"role": "user", "content": CHATS[1][0]}]
    said: list[str] = []
    for name in (None, "sirimiri", None):
        with assistant.speaking_as(name) as voice, torch.inference_mode():
            said.append(answer(voice, asked, most_tokens=12))
    assert said[0] == said[2] != ""
    assert said[1] not in {"", said[0]}
