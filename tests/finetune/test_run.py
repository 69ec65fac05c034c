"""A whole run, as a person starts it: it goes on where it was stopped, and is judged at the end."""

import dataclasses
import json
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tapestry.data.language import identify
from tapestry.errors import ConfigError, UntrustedError
from tapestry_finetune.base import Base
from tapestry_finetune.bundle import open_bundle
from tapestry_finetune.charter.cases import pair_rows
from tapestry_finetune.charter.settings import load_charter
from tapestry_finetune.examples import chat_examples, split, text_examples, with_replay
from tapestry_finetune.gathering import gather, replay_of
from tapestry_finetune.keeping import Progress, read_metrics
from tapestry_finetune.making import make
from tapestry_finetune.measuring import held_out_measure
from tapestry_finetune.planning import plan
from tapestry_finetune.publishing import BelowFloorError, in_pieces
from tapestry_finetune.recipe import load_recipe
from tapestry_finetune.rows.cost import english as english_text
from tapestry_finetune.rows.kinds import ThumbRow
from tapestry_finetune.run import Telling, prepare
from tapestry_finetune.training import StoppedError
from tests.finetune.conftest import KEY, MADE_AT, Localized
from tests.finetune.consensus import known, write_recipe, write_texts
from tests.finetune.test_values import write_charter
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
    assert localized.evaluation.answers


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


def test_thumbs_that_are_all_alike_are_refused(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("values",), method="lora")
    row = {"prompt": "zer?", "completion": "haria", "label": True}
    lines = [json.dumps(row | {"prompt": f"zer {n}?"}) for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="all 20 answers are good"):
        gather(load_recipe(recipe), recipe)


def test_pairs_beside_thumbs_and_a_charters_cases_are_learnt_as_thumbs(
    base: Base, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("values",), method="lora")
    thumbs = [{"prompt": f"zer {n}?", "completion": "bai", "label": n % 2 == 0} for n in range(20)]
    (tmp_path / "thumbs.jsonl").write_text("\n".join(map(json.dumps, thumbs)), encoding="utf-8")
    charter = load_charter(write_charter(tmp_path / "charter.toml"))
    text = recipe.read_text(encoding="utf-8")
    text = text.replace('["pairs.jsonl"]', '["pairs.jsonl", "thumbs.jsonl"]')
    text = text.replace('languages = ["eus"]', 'languages = ["eus"]\ncharter = "charter.toml"')
    recipe.write_text(text, encoding="utf-8")
    found = gather(load_recipe(recipe), recipe)
    cases = pair_rows(charter)
    assert len(found.preferences) + found.held_out_of("values") == 2 * 60 + 20 + 2 * len(cases)
    assert all(isinstance(row, ThumbRow) for row in found.preferences)
    assert cases
    for case in cases:
        assert [row for row in found.preferences if row.origin == case.origin] == [
            ThumbRow(case.prompt, case.chosen, is_good=True, origin=case.origin),
            ThumbRow(case.prompt, case.rejected, is_good=False, origin=case.origin),
        ]
    assert any("60 pairs are learnt as a good and a bad answer each" in line for line in found.said)


def test_what_is_held_out_of_thumbs_is_measured_between_steps(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("values",), method="lora")
    likely, unlikely = known(24, seed=9), ["\u0b85\u0b95" * 20] * 24

    def measured(good: Sequence[str], bad: Sequence[str]) -> float:
        rows = [
            {"prompt": f"zer {n}?", "completion": text, "label": label}
            for n, both in enumerate(zip(good, bad, strict=True))
            for text, label in zip(both, (True, False), strict=True)
        ]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        prepared = prepare(recipe, Telling())
        tokenizer = base.tokenizer()
        measure = held_out_measure("values", prepared.gathered, tokenizer, prepared.chosen)
        assert measure is not None
        return measure(base.load("cpu"))

    assert measured(likely, unlikely) == 0.0
    assert measured(unlikely, likely) == 1.0


def test_rows_of_another_kind_are_refused(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder)
    text = recipe.read_text(encoding="utf-8").replace('["text.jsonl"]', '["chats.jsonl"]')
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.text: these files hold chat, expected text"):
        gather(load_recipe(recipe), recipe)


# What is learnt from


def test_what_is_held_out_is_the_same_on_every_run_and_never_learnt(
    base: Base, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, base.folder)
    first, second = (gather(load_recipe(recipe), recipe) for _ in range(2))
    assert first.held_out == second.held_out != []
    assert not {row.text for row in first.text} & set(first.held_out_text())
    assert len(first.text) + len(first.held_out) == 80


def test_rows_longer_than_a_sequence_are_counted_and_named(base: Base) -> None:
    tokenizer = base.tokenizer()

    def said(length: int) -> list[dict[str, str]]:
        answer = {"role": "assistant", "content": "warp " * length}
        return [{"role": "user", "content": "?"}, answer]

    dialogues = [said(2), said(2), said(90), said(2)]
    names = [f"chats.jsonl:{n}" for n in (1, 2, 3, 4)]
    made = chat_examples(tokenizer, dialogues, names, sequence_tokens=64)
    assert (len(made), made.counted.dropped) == (3, ["chats.jsonl:3"])
    assert made.counted.warning() == (
        "longer than a sequence and dropped, 1 row (25%): chats.jsonl:3; raise "
        "training.sequence_tokens, or shorten them"
    )
    with pytest.raises(ConfigError, match=r"all 1 rows are longer than 64 tokens \(first: a:1\)"):
        chat_examples(tokenizer, [said(90)], ["a:1"], sequence_tokens=64)


def test_long_text_is_cut_and_nothing_is_lost(base: Base) -> None:
    tokenizer = base.tokenizer()
    made = text_examples(tokenizer, known(3), sequence_tokens=16)
    ids = [token for piece in made.columns["input_ids"] for token in piece]
    assert tokenizer.decode(ids) == "".join(f"{text}<|endoftext|>" for text in known(3))
    assert max(map(len, made.columns["input_ids"])) == 16
    assert made.counted.cut == len(made) - 3


def test_replay_makes_its_share_of_the_tokens(base: Base) -> None:
    tokenizer = base.tokenizer()
    own = text_examples(tokenizer, known(60, seed=5), sequence_tokens=32)
    replay = text_examples(tokenizer, replay_of(base).learnt, sequence_tokens=32)
    mixed = with_replay(own, replay, 0.25, seed=1)
    added = mixed.counted.tokens - own.counted.tokens
    assert added / mixed.counted.tokens == pytest.approx(0.25, abs=0.01)
    assert mixed.columns == with_replay(own, replay, 0.25, seed=1).columns
    assert mixed.columns != with_replay(own, replay, 0.25, seed=2).columns
    found = replay_of(base)
    measured = [text for texts in found.measured.values() for text in texts]
    assert set(found.learnt) & set(measured) == set()
    assert measured


def test_every_language_of_the_replay_is_measured_and_replayed(base: Base, tmp_path: Path) -> None:
    said = {
        "eng": "The library opens its doors at nine in the morning, and everybody may read there.",
        "fra": "La bibliothèque ouvre ses portes à neuf heures du matin, et chacun peut y lire.",
        "ell": "Η βιβλιοθήκη ανοίγει τις πόρτες της στις εννέα το πρωί και όλοι διαβάζουν εκεί.",
    }
    documents = [f"{text} {number}." for text in said.values() for number in range(3)]
    (tmp_path / "replay.txt").write_text("\n\n".join(documents), encoding="utf-8")
    found = replay_of(dataclasses.replace(base, folder=tmp_path))
    assert sorted(
        found.learnt + [text for texts in found.measured.values() for text in texts]
    ) == sorted(documents)
    assert {identify(text) for text in found.learnt} == set(said)
    assert found.measured.keys() == said.keys()


def test_a_document_in_a_language_of_its_own_is_not_judged_by(base: Base, tmp_path: Path) -> None:
    """It is mistaken for it: Malay where all others are Indonesian, Danish where nothing is."""
    indonesian = (
        "Perpustakaan membuka pintunya pada pukul sembilan pagi karena semua orang bisa membaca "
        "di sana, kata pengurus kota kemarin siang."
    )
    malay = (
        "Perpustakaan dibuka pada pukul sembilan pagi kerana kerajaan negeri memberitahu bahawa "
        "semua orang boleh membaca di situ, kata beliau."
    )
    danish = "Biblioteket åbner klokken ni om morgenen, og alle må læse bøgerne dér hele dagen."
    assert [identify(text) for text in (indonesian, malay, danish)] == ["ind", "msa", "dan"]
    documents = [f"{indonesian} {number}." for number in range(12)] + [malay, danish]
    (tmp_path / "replay.txt").write_text("\n\n".join(documents), encoding="utf-8")
    found = replay_of(dataclasses.replace(base, folder=tmp_path))
    assert found.measured.keys() <= {"ind", "und"}
    assert "ind" in found.measured


def test_several_rows_are_always_on_both_sides() -> None:
    for count in (2, 3, 10):
        rows = list(range(count))
        for salt in "abcdef":
            kept, out = split(rows, [f"{salt}{n}" for n in rows], 0.05)
            assert kept
            assert out
            assert sorted(kept + out) == rows


def test_a_plan_counts_what_a_run_does(localized: Localized) -> None:
    made = plan(prepare(localized.recipe, Telling()), measure=False)
    assert [stage.stage for stage in made.stages] == ["language", "instruct", "values"]
    assert [stage.steps for stage in made.stages] == [60, 20, 12]
    language, instruct, values = made.stages
    assert language.learnt == language.tokens > 0
    assert 0 < instruct.learnt < instruct.tokens
    learnt = [piece for piece, is_learnt in values.shown if is_learnt]
    assert learnt[0].endswith("<|im_end|>")
    assert made.memory_bytes > made.needed_bytes > 0
    assert made.largest_micro_batch >= 4


def test_text_in_another_language_than_declared_is_warned_of(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder)
    english = english_text().split(". ")
    write_texts(tmp_path / "text.jsonl", [f"{sentence}." for sentence in english])
    text = recipe.read_text(encoding="utf-8")
    for declared, is_warned in (("tam", True), ("eng", False)):
        changed = text.replace('languages = ["eus"]', f'languages = ["{declared}"]')
        recipe.write_text(changed, encoding="utf-8")
        said = "\n".join(gather(load_recipe(recipe), recipe).said)
        assert ("of data.text is not in tam but in English" in said) == is_warned


def test_few_long_documents_are_measured_in_pieces() -> None:
    """Of all their letters, in their order, cut at blanks where there are any."""
    prose = " ".join(f"word{number}" for number in range(900))
    for documents in ([prose], [prose, "short"], ["字" * 5_000], [f"{prose}\n\n{prose}"]):
        pieces = in_pieces(documents)
        assert "".join(pieces) == "".join(documents)
        assert 10 <= len(pieces) <= 14
    assert all(piece.endswith(" ") for piece in in_pieces([prose])[:-1])
    assert in_pieces(["short", "shorter"]) == ["short", "shorter"]
    many = [f"text {number}" * 99 for number in range(12)]
    assert in_pieces(many) == many
