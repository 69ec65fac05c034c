"""From a verified consensus checkpoint to a community's own model, on a text small enough to learn.

One run of 16 steps is made for all tests that only look at its result.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tapestry.checkpoints.localized import Parentage
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, TapestryError, UntrustedError
from tapestry.objectives.objective import objective_named
from tapestry.objectives.reports import StepReport
from tapestry.params.modules import from_model
from tapestry_finetune.language import LanguageRun, train_language
from tests import threads
from tests.conftest import Federation

STEPS = 16


@pytest.fixture(autouse=True, scope="module")
def torch_threads() -> Iterator[None]:
    """Give the number of threads back that the training has chosen."""
    with threads.threads_given_back():
        yield


def write_text(folder: Path, *, documents: int) -> Path:
    folder.mkdir()
    texts = [f"Ik weet dat de wever weeft, {number}. " * 4 for number in range(documents)]
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> LanguageRun:
    """A run that has not been made yet; its `out` is taken."""
    folder = tmp_path_factory.mktemp("language")
    return LanguageRun(
        checkpoint=federation.newest,
        data=[write_text(folder / "our texts", documents=60)],
        out=folder / "ours",
        steps=STEPS,
        learning_rate=None,
        sequences=4,
        device="cpu",
        seed=0,
        cache=folder / "cache",
    )


def short(run: LanguageRun, out: Path, **changes: object) -> LanguageRun:
    """Return a run of two steps to another folder."""
    return dataclasses.replace(run, **{"out": out, "steps": 2, "sequences": 2, **changes})


@dataclass(frozen=True)
class Localized:
    """A finished run."""

    folder: Path
    parentage: Parentage
    reports: list[StepReport]


@pytest.fixture(scope="module")
def localized(run: LanguageRun) -> Localized:
    reports: list[StepReport] = []

    def look(report: StepReport) -> bool:
        reports.append(report)
        return True

    return Localized(run.out, train_language(run, on_step=look), reports)


def bits_per_byte(run: LanguageRun, folder: Path) -> float:
    """Measure the model in `folder` as whoever got it would, with transformers' own loader."""
    objective = objective_named("causal-lm")
    corpus = objective.prepare(
        list(run.data),
        folder,
        cache=run.cache,
        sequence_tokens=128,
        held_out_fraction=0.05,
        held_out_bytes=262_144,
    )
    module = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return objective.evaluate(module, corpus).bits_per_byte


# A run


def test_held_out_text_becomes_likelier(localized: Localized) -> None:
    measured = localized.parentage.held_out_bits_per_byte
    assert set(measured) == {"before", "after"}
    assert measured["before"] > 7.0  # of 8: the small federation's model knows nothing
    assert measured["after"] < measured["before"] - 2.0


def test_the_figures_are_those_of_the_models_in_the_folders(
    localized: Localized, run: LanguageRun
) -> None:
    measured = localized.parentage.held_out_bits_per_byte
    assert bits_per_byte(run, run.checkpoint) == pytest.approx(measured["before"], rel=1e-5)
    assert bits_per_byte(run, localized.folder) == pytest.approx(measured["after"], rel=1e-5)


def test_transformers_loads_the_result(localized: Localized, federation: Federation) -> None:
    model = AutoModelForCausalLM.from_pretrained(localized.folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(localized.folder, local_files_only=True)
    opened = open_vector_file(localized.folder / MODEL_FILE)
    np.testing.assert_array_equal(from_model(model, opened.layout), opened.vector)
    assert tokenizer.decode(tokenizer("wéver").input_ids) == "wéver"
    base = open_vector_file(federation.newest / MODEL_FILE)
    assert opened.layout == base.layout
    assert not np.array_equal(opened.vector, base.vector)


def test_the_result_names_its_parent_and_no_path(
    localized: Localized, federation: Federation
) -> None:
    table = json.loads((localized.folder / "tapestry-parent.json").read_text(encoding="utf-8"))
    verified = verify_checkpoint(federation.newest)
    assert table["federation"] == verified.genesis_digest
    assert table["manifest"] == verified.manifest_digest
    assert table["round"] == 1
    assert table["steps"] == STEPS
    assert table["tokens"] == STEPS * 4 * 128  # sequences of the run, length of the federation
    assert table["data"] == ["our texts"]
    assert table == dataclasses.asdict(localized.parentage)


def test_the_folder_holds_a_model_and_nothing_that_says_the_federation_signed_it(
    localized: Localized,
) -> None:
    names = sorted(p.relative_to(localized.folder).as_posix() for p in localized.folder.rglob("*"))
    assert names == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tapestry-parent.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with pytest.raises(UntrustedError):
        verify_checkpoint(localized.folder)


def test_every_step_is_reported(localized: Localized) -> None:
    assert [report.step for report in localized.reports] == list(range(1, STEPS + 1))
    assert localized.reports[-1].loss < localized.reports[0].loss - 1.0


def test_the_parent_stays_as_it_is(localized: Localized, federation: Federation) -> None:
    assert verify_checkpoint(federation.newest).manifest_digest == localized.parentage.manifest


# Choices


def vector_of(run: LanguageRun) -> np.ndarray:
    train_language(run)
    return np.array(open_vector_file(run.out / MODEL_FILE).vector)


def test_the_same_seed_gives_the_same_model(run: LanguageRun, tmp_path: Path) -> None:
    first = vector_of(short(run, tmp_path / "first"))
    np.testing.assert_array_equal(vector_of(short(run, tmp_path / "again")), first)
    assert not np.array_equal(vector_of(short(run, tmp_path / "other", seed=1)), first)


def test_half_of_the_federations_learning_rate_is_the_default(
    run: LanguageRun, federation: Federation, tmp_path: Path
) -> None:
    planned = federation.closed.plan.inner.learning_rate
    first = vector_of(short(run, tmp_path / "first"))
    named = vector_of(short(run, tmp_path / "named", learning_rate=planned / 2))
    np.testing.assert_array_equal(named, first)


def test_training_that_is_ended_early_says_how_far_it_came(
    run: LanguageRun, tmp_path: Path
) -> None:
    early = short(run, tmp_path / "early", steps=50)
    parentage = train_language(early, on_step=lambda report: report.step < 3)
    assert (parentage.steps, parentage.tokens) == (3, 3 * 2 * 128)


def test_genesis_can_be_trained_on_too(
    run: LanguageRun, federation: Federation, tmp_path: Path
) -> None:
    parentage = train_language(short(run, tmp_path / "out", checkpoint=federation.genesis))
    assert parentage.round == 0
    assert parentage.manifest == parentage.federation


def test_the_federation_that_is_expected_can_be_named(
    run: LanguageRun, federation: Federation, tmp_path: Path
) -> None:
    identity = verify_checkpoint(federation.newest).genesis_digest
    train_language(short(run, tmp_path / "ours"), federation=identity[:16])
    with pytest.raises(UntrustedError, match="checkpoint of another federation"):
        train_language(short(run, tmp_path / "theirs"), federation="0" * 16)
    assert not (tmp_path / "theirs").exists()


# Refusals


def test_a_folder_that_exists_is_not_written_into(run: LanguageRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already; name a new folder"):
        train_language(short(run, tmp_path))
    assert list(tmp_path.iterdir()) == []


def _flip_a_weight(folder: Path) -> None:
    path = folder / MODEL_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _change_the_configuration(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("Qwen3ForCausalLM", "Qwen3ForCausalLm"))


def _add_a_module(folder: Path) -> None:
    (folder / "modeling_loom.py").write_text("raise SystemExit")


def _remove_the_manifest(folder: Path) -> None:
    (folder / "tapestry" / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (_flip_a_weight, r"model\.safetensors: changed"),
        (_change_the_configuration, r"config\.json: changed"),
        (_add_a_module, r"modeling_loom\.py: not a file of this checkpoint"),
        (_remove_the_manifest, r"manifest\.json cannot be read"),
    ],
)
def test_a_checkpoint_that_does_not_verify_is_not_used(
    run: LanguageRun, tmp_path: Path, tamper: Callable[[Path], None], says: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.checkpoint, copy)
    tamper(copy)
    with pytest.raises(UntrustedError, match=says):
        train_language(short(run, tmp_path / "out", checkpoint=copy))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n\nb", "too little text: 2 tokens to train on, and one sequence needs 129"),
        ("One document, and nothing to measure with. " * 20, "too little text: one document"),
        ("", "no text"),
    ],
)
def test_too_little_text_is_refused_with_how_much_it_is(
    run: LanguageRun, tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        train_language(short(run, tmp_path / "out", data=[path]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "loom"},
        {"data": [Path("nowhere")]},
        {"learning_rate": 5.0},
        {"learning_rate": -0.1},
        {"sequences": -1},
        {"steps": 2_000_000},
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_used_is_refused_in_one_line(
    run: LanguageRun, tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(TapestryError) as caught:
        train_language(short(run, tmp_path / "out", **changes))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()
