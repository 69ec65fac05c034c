"""A whole run, as a person starts it: it goes on where it was stopped, and is judged at the end."""

import json
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapestry.errors import ConfigError, UntrustedError
from tapestry_finetune.base import Base
from tapestry_finetune.bundle import open_bundle
from tapestry_finetune.keeping import Progress, read_metrics
from tapestry_finetune.making import make
from tapestry_finetune.publishing import BelowFloorError
from tapestry_finetune.recipe import load_recipe
from tapestry_finetune.run import Telling, prepare
from tapestry_finetune.training import StoppedError
from tests.finetune.conftest import KEY, MADE_AT, Localized
from tests.finetune.consensus import write_recipe
from tests.forking import Forks

SHORT = "\n[evaluation]\nmost_tokens = 8\n"


def short(recipe: Path, **steps: int) -> Path:
    text = recipe.read_text(encoding="utf-8")
    for stage, count in steps.items():
        before = {"language": 60, "instruct": 20, "values": 12}[stage]
        text = text.replace(f"[{stage}]\nsteps = {before}", f"[{stage}]\nsteps = {count}")
    recipe.write_text(text, encoding="utf-8")
    return recipe


def weights(folder: Path) -> dict[str, str]:
    said = open_bundle(folder).lineage
    return {e.name: e.digest for e in said.files if e.name.endswith(".safetensors")}


def test_a_run_says_what_it_did(localized: Localized) -> None:
    said = "\n".join(localized.said)
    for part in (
        "base: consensus of round 0",
        "read 80 rows of text.jsonl as text",
        "method lora+embeddings, sequences of 128 tokens, 4 a step",
        "language: 60 steps",
        "values: 12 steps",
    ):
        assert part in said
    table = json.loads((localized.work / "run.json").read_text(encoding="utf-8"))
    assert set(table) >= {"recipe", "base", "sources", "method", "seed", "versions"}
    assert (localized.work / "recipe.toml").read_bytes() == localized.recipe.read_bytes()
    assert (localized.work / "loss.png").read_bytes().startswith(b"\x89PNG")
    for stage, steps in (("1-language", 60), ("2-instruct", 20), ("3-values", 12)):
        lines = read_metrics(localized.work / stage)
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        measured = [line["held_out"] for line in lines if "held_out" in line]
        assert len(measured) >= 8
        assert measured[-1] <= measured[0]


def test_the_evaluation_measures_own_language_and_what_could_be_forgotten(
    localized: Localized,
) -> None:
    rows = {(row.measure, row.slice): row for row in localized.evaluation.rows}
    own = rows["bits_per_byte", "eus"]
    assert own.verdict == "improved"
    assert own.candidate < 0.6 * own.base
    assert any(m == "bits_per_byte" and s != "eus" for m, s in rows)
    answers = rows["answer_bits", "chats"]
    assert answers.items == len(localized.evaluation.answers)
    assert answers.candidate < 0.6 * answers.base


def test_a_run_that_is_done_gives_the_same_bundle_without_training(
    localized: Localized, tmp_path: Path
) -> None:
    steps: list[Progress] = []
    telling = Telling(on_step=lambda _stage, progress: steps.append(progress))
    bundle, _ = make(
        localized.recipe, tmp_path / "again", localized.work, KEY, telling, now=MADE_AT
    )
    assert steps == []
    assert weights(bundle.folder) == weights(localized.bundle.folder)


def test_a_stopped_run_goes_on_to_the_same_bundle(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("language", "values"), more=SHORT)
    short(recipe, language=6, values=4)
    taken: list[str] = []

    def made(work: str, stop_at: int | None) -> Path:
        telling = Telling(
            on_step=lambda stage, _: taken.append(stage),
            is_stopped=lambda: stop_at is not None and len(taken) == stop_at,
        )
        target = tmp_path / f"bundle-{work}-{stop_at}"
        return make(recipe, target, tmp_path / work, KEY, telling, now=MADE_AT)[0].folder

    whole = weights(made("whole", None))
    for stop_at in (3, 7):
        taken.clear()
        with pytest.raises(StoppedError):
            made("parts", stop_at if stop_at == 3 else 5)
    assert weights(made("parts", None)) == whole


@pytest.mark.slow
def test_ctrl_c_stops_in_order_and_the_same_command_goes_on(
    base: Base, tmp_path: Path, forks: Forks
) -> None:
    where: dict[str, Any] = {"cwd": tmp_path, "environment": {"COLUMNS": "200", "TERM": "dumb"}}

    def tapestry(*arguments: str) -> tuple[int, str, str]:
        return forks.call(["finetune", *arguments], tmp_path, **where)

    def stopped_when(is_time: Callable[[str], bool]) -> str:
        """Run until it is time for Ctrl-C; return what was said on stderr."""
        errors = tmp_path / "errors.log"
        running = forks.start(["finetune", *command], tmp_path / "out.log", errors=errors, **where)
        until = time.monotonic() + 300
        while not is_time(errors.read_text(encoding="utf-8")):
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        assert running.wait(300) == 130
        return errors.read_text(encoding="utf-8")

    write_recipe(tmp_path, base.folder, more=SHORT)
    command = ["run", "recipe.toml", "--run", "our work", "--key", "key"]
    metrics = tmp_path / "our work" / "1-language" / "metrics.jsonl"
    said = stopped_when(
        lambda _: metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") >= 3
    )
    told = said.rpartition("go on with: ")[2].strip()
    assert told == "tapestry finetune run recipe.toml --run 'our work' --key key"
    assert shlex.split(told)[2:] == command
    assert not (tmp_path / "ours").exists()
    said = stopped_when(lambda said: "\nmeasuring " in f"\n{said}")
    assert "stopped; what was learnt is kept; go on with: tapestry finetune run" in said
    code, out, err = tapestry(*command)
    assert code == 0, err
    assert "bits per byte of held-out text" in out
    assert open_bundle(tmp_path / "ours").lineage.stages[0].steps == 60
    code, _out, err = tapestry(*command)
    assert code == 1
    assert "ours: exists already; name a new folder with --out" in err
    code, out, _err = tapestry("verify", "ours", "--base", str(base.folder))
    assert code == 0
    assert "it lies on the consensus of round 0" in out


def test_below_its_floor_it_is_published_only_by_force_that_everybody_reads(
    base: Base, tmp_path: Path
) -> None:
    recipe = short(write_recipe(tmp_path, base.folder, percent=0.0, more=SHORT), language=8)
    recipe.write_text(
        recipe.read_text(encoding="utf-8").replace("[training]", "[training]\nreplay = 0.0"),
        encoding="utf-8",
    )

    def made(target: Path, force: str = "") -> Path:
        return make(
            recipe, target, tmp_path / "work", KEY, Telling(), now=MADE_AT, force=force
        )[0].folder  # fmt: skip

    with pytest.raises(
        BelowFloorError, match=r'Nothing is published.*--force "WHY" publishes'
    ) as no:
        made(tmp_path / "ours")
    assert "keeps other languages (training.replay = 0.1, it is 0), and so do" in str(no.value)
    named = r"below the floor: bits per byte of held-out text \(\w+(, \w+)*\)[.;]"
    assert re.search(named, str(no.value))
    assert not (tmp_path / "ours").exists()
    assert (tmp_path / "work" / "evaluation.html").exists()
    strict = recipe.read_text(encoding="utf-8")
    tolerant = strict.replace("bits_per_byte_percent = 0.0", "bits_per_byte_percent = 500.0")
    recipe.write_text(tolerant, encoding="utf-8")
    trained: list[str] = []
    telling = Telling(on_step=lambda stage, _progress: trained.append(stage))
    folder = make(
        recipe, tmp_path / "tolerant", tmp_path / "work", KEY, telling, now=MADE_AT
    )[0].folder  # fmt: skip
    assert open_bundle(folder).lineage.forced == ""
    assert trained == [], "another floor needs no other training"
    assert (tmp_path / "work" / "recipe.toml").read_text(encoding="utf-8") == tolerant
    recipe.write_text(strict, encoding="utf-8")
    folder = made(tmp_path / "ours", force="the board knows")
    assert open_bundle(folder).lineage.forced == "the board knows"
    assert "**Published below its own quality floor.** the board knows" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")


# What a recipe may not say


def _set(before: str, after: str) -> Callable[[str], str]:
    return lambda text: text.replace(before, after)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            _set("[training]", "[training]\nbacth = 3"),
            r"training\.bacth: unknown key; did you mean batch",
        ),
        (_set('["language"]', '["values", "language"]'), "in the order vocab, language"),
        (_set('["language"]', "[]"), "stages is empty"),
        (_set('["language"]', '["poetry"]'), r"training\.stages"),
        (_set('text = ["text.jsonl"]\n', ""), r"the stage language has nothing .* data\.text"),
        (_set('["language"]', '["vocab"]\nmethod = "lora"'), "."),
        (_set('method = "lora+embeddings"', 'method = "qlora"'), r"training\.method"),
        (_set('name = "ours"', 'name = "Our Model"'), r"model\.name"),
        (_set("[model]", "[model"), "not valid TOML"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_one_line(
    base: Base, tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    recipe = write_recipe(tmp_path, base.folder)
    recipe.write_text(change(recipe.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(recipe)
    assert len(str(caught.value).splitlines()) == 1


def test_the_run_of_another_recipe_is_not_gone_on_with(
    localized: Localized, base: Base, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(localized.work, work)
    recipe = write_recipe(tmp_path, base.folder, stages=("language",))
    with pytest.raises(ConfigError, match=r"holds a run with another recipe.*--run"):
        make(recipe, tmp_path / "ours", work, KEY, Telling(), now=MADE_AT)


def test_a_run_is_not_gone_on_with_under_another_charter(
    localized: Localized, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(localized.work, work)
    table = json.loads((work / "run.json").read_text(encoding="utf-8"))
    assert table["charter"] is None
    (work / "run.json").write_text(json.dumps(table | {"charter": "0" * 64}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds a run with another charter"):
        make(localized.recipe, tmp_path / "ours", work, KEY, Telling(), now=MADE_AT)


def test_an_unverified_base_is_refused(base: Base, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(base.folder, plain, ignore=shutil.ignore_patterns("tapestry"))
    recipe = write_recipe(tmp_path, plain)
    with pytest.raises(UntrustedError, match="not a published checkpoint"):
        prepare(recipe, Telling())
    assert prepare(recipe, Telling(), unverified=True).base.identity.manifest is None
