"""A bundle is carried over to a newer consensus, with evidence, and names its parent."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tapestry.cli.main import main
from tapestry.errors import ConfigError, UntrustedError
from tapestry_coordinator.home import CoordinatorHome
from tapestry_finetune.base import open_base
from tapestry_finetune.bundle import open_bundle
from tapestry_finetune.carrying import drift_of, require_kin, scaled_deltas
from tapestry_finetune.compared import gain_of
from tapestry_finetune.evaluation.floor import VerdictRow
from tapestry_finetune.following import newer_checkpoints, watch
from tapestry_finetune.rebase import Asked, Rebased, rebase
from tapestry_finetune.run import Telling
from tests.coordinator.small import Small
from tests.finetune.conftest import KEY, MADE_AT, Localized
from tests.finetune.consensus import found_consensus, known, next_round, teach

ROUNDS = 6


@pytest.fixture(scope="module")
def newer(consensus: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same federation six rounds on, each a few gentle steps on its own language."""
    folder = tmp_path_factory.mktemp("newer") / "coordinator"
    shutil.copytree(consensus.home.folder, folder)
    small = Small(CoordinatorHome(folder))
    for number in range(ROUNDS):
        newest = next_round(
            small,
            lambda model, tokenizer, seed=number: teach(
                model, tokenizer, known(seed=50 + seed), steps=3, seed=seed, rate=3e-4
            ),
        )
    return newest


@pytest.fixture(scope="module")
def asked(localized: Localized, newer: Path) -> Asked:
    return Asked(bundle=localized.bundle.folder, onto=newer, recipe=localized.recipe, steps=10)


@pytest.fixture(scope="module")
def rebased(asked: Asked, tmp_path_factory: pytest.TempPathFactory) -> Rebased:
    folder = tmp_path_factory.mktemp("rebased")
    (folder / "work").mkdir()
    given = replace(asked, distil=True)
    return rebase(given, folder / "ours", folder / "work", KEY, Telling(), now=MADE_AT)


def test_an_untouched_copy_keeps_most_of_the_gain_and_a_touch_up_more(
    rebased: Rebased, localized: Localized
) -> None:
    assert rebased.kept_of_gain is not None
    assert rebased.kept_of_gain >= 0.8
    measured = {column.name: column.figures["bits_per_byte:eus"] for column in rebased.columns}
    kept = measured["new base"] - measured["copy x 1"]
    gained = localized.evaluation.rows[0]
    assert (gained.measure, gained.slice) == ("bits_per_byte", "eus")
    was = gained.base - gained.candidate
    assert rebased.kept_of_gain == pytest.approx(kept / was, rel=1e-3)
    bits = {column.name: column.figures["bits_per_byte:eus"] for column in rebased.columns}
    assert set(bits) == {
        *("old base + adapter", "new base", "copy x 0.5", "copy x 0.75", "copy x 1"),
        *("touch-up, 10 steps", "distilled"),
    }
    assert bits["touch-up, 10 steps"] <= bits["copy x 1"]
    assert bits["copy x 1"] < bits["copy x 0.5"] < bits["new base"]


def test_the_gain_is_that_of_the_models_own_language(rebased: Rebased) -> None:
    columns = {column.name: column for column in rebased.columns}
    keys = ("bits_per_byte:eus", "answer_bits:chats")
    figures = columns["new base"].figures
    assert len(figures) > len(keys), "other languages are measured, too"
    for name in ("copy x 0.5", "copy x 1", "touch-up, 10 steps"):
        gains = [1 - columns[name].figures[key] / figures[key] for key in keys]
        assert columns[name].gain == pytest.approx(sum(gains) / 2, rel=1e-6)


def test_a_handful_of_cases_does_not_outweigh_the_language() -> None:
    def row(measure: str, of: str, change: float, low: float, high: float) -> VerdictRow:
        return VerdictRow(measure, of, 2, 1.0, 1.0 + change, change, low, high, 0.02, "kept")

    text = row("bits_per_byte", "eus", -0.33, -0.35, -0.31)
    other = row("bits_per_byte", "eng", 0.5, 0.4, 0.6)
    cases = [row("charter", of, -0.5, -1.0, 0.0) for of in ("all cases", "own", "kind")]
    assert gain_of([text, other, *cases], ["eus"]) == pytest.approx(0.33 / 2)
    surely = [row("charter", of, -0.5, -0.6, -0.4) for of in ("all cases", "own", "kind")]
    assert gain_of([text, other, *surely], ["eus"]) == pytest.approx((0.33 - 0.5) / 2)
    assert gain_of([text, other], []) == pytest.approx((0.33 - 0.5) / 2)
    assert gain_of([], ["eus"]) == 0.0


def test_the_best_candidate_becomes_a_bundle_that_names_its_parent(
    rebased: Rebased, localized: Localized, newer: Path
) -> None:
    said = rebased.bundle.lineage
    assert said.parent == localized.bundle.digest
    assert said.carried_by
    assert said.base.manifest == open_base(newer).identity.manifest
    assert said.base.round == ROUNDS
    above = [c for c in rebased.columns if c.name not in ("new base", "old base + adapter")]
    assert max(above, key=lambda column: column.gain).name == rebased.chosen
    assert open_bundle(rebased.bundle.folder).digest == rebased.bundle.digest


def test_where_the_data_are_gone_the_old_pair_teaches(
    asked: Asked, localized: Localized, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    text = localized.recipe.read_text(encoding="utf-8")
    held_out = localized.work / "held-out" / "text" / "eus.jsonl"
    recipe.write_text(
        f'{text}\n[evaluation]\ntext = {{ eus = ["{held_out}"] }}\n', encoding="utf-8"
    )
    (tmp_path / "work").mkdir()
    given = replace(asked, recipe=recipe)
    with pytest.raises(ConfigError, match=r"text\.jsonl: not there; .* add --distil"):
        rebase(given, tmp_path / "ours", tmp_path / "work", KEY, Telling(), now=MADE_AT)
    given = replace(given, distil=True)
    made = rebase(given, tmp_path / "ours", tmp_path / "work", KEY, Telling(), now=MADE_AT)
    names = [column.name for column in made.columns]
    assert names[-1] == "distilled"
    assert not any("touch-up" in name for name in names)
    assert "bits_per_byte:eus" in made.columns[0].figures


def test_drift_is_told_layer_by_layer(localized: Localized, newer: Path, rebased: Rebased) -> None:
    old, new = open_base(newer.parent / "round-000000"), open_base(newer)
    drift = drift_of(old, new, localized.bundle)
    layers = drift.layers
    before, after = (load_file(base.folder / "model.safetensors") for base in (old, new))
    moved = sum(float((after[name] - before[name]).square().sum()) for name in before)
    whole = (moved / sum(float(tensor.square().sum()) for tensor in before.values())) ** 0.5
    assert rebased.drift == drift.whole == pytest.approx(whole)
    assert 0 < whole < 0.5
    overlaps = [layer.overlap for layer in layers if layer.overlap is not None]
    assert overlaps
    assert all(-1.0 <= overlap <= 1.0 for overlap in overlaps)
    assert {layer.name for layer in layers} >= {"model.embed_tokens.weight"}


def test_a_scale_is_a_dial_on_differences_and_leaves_new_tokens_alone(localized: Localized) -> None:
    deltas = localized.bundle.deltas()
    half = scaled_deltas(deltas, 0.5)
    for name, change in deltas.rows.items():
        assert (half.rows[name].delta == change.delta * 0.5).all()
        assert (half.rows[name].new == change.new).all()


def test_a_bundle_is_not_carried_to_where_it_lies_or_to_strangers(
    asked: Asked, localized: Localized, newer: Path, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    there = replace(asked, onto=newer.parent / "round-000000")
    with pytest.raises(ConfigError, match="lies on the consensus of round 0"):
        rebase(there, tmp_path / "a", tmp_path / "work", KEY, Telling(), now=MADE_AT)
    stranger = found_consensus(tmp_path / "stranger", steps=1)
    with pytest.raises(UntrustedError, match="a checkpoint of another federation"):
        require_kin(localized.bundle, open_base(stranger.home.checkpoint(0)))
    changed = tmp_path / "changed"
    shutil.copytree(newer, changed)
    data = bytearray((changed / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (changed / "model.safetensors").write_bytes(data)
    with pytest.raises(UntrustedError, match=r"model\.safetensors"):
        rebase(
            replace(asked, onto=changed),
            tmp_path / "b",
            tmp_path / "work",
            KEY,
            Telling(),
            now=MADE_AT,
        )


def test_if_no_candidate_is_above_the_floor_the_table_and_the_report_say_so(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in asked.recipe.parent.glob("*.jsonl"):
        shutil.copyfile(file, tmp_path / file.name)
    text = asked.recipe.read_text(encoding="utf-8")
    text = text.replace("bits_per_byte_percent = 200.0", "bits_per_byte_percent = 0.0")
    recipe = tmp_path / "recipe.toml"
    # Without any tolerance English is worse on a new base that learnt nothing but English.
    recipe.write_text(f"{text}\n[evaluation]\nmost_tokens = 8\n", encoding="utf-8")
    code = main(
        [
            *("finetune", "rebase", str(asked.bundle), "--onto", str(asked.onto)),
            *("--recipe", str(recipe), "--steps", "0", "--out", str(tmp_path / "out")),
            *("--key", str(tmp_path / "key")),
        ]
    )
    said = capsys.readouterr()
    assert code == 1
    rows = {line.split("  ")[0]: line.split()[1:] for line in said.out.splitlines() if line}
    assert "copy x 0.75" in said.out.splitlines()[0]
    assert rows["floor"][-3:] == ["BELOW"] * 3
    assert "the best is copy x " in said.out
    report = tmp_path / "out-work" / "evaluation.html"
    assert f"Look at {report}" in said.err
    assert "--retrain for a whole new run" in said.err
    assert report.is_file()
    assert not (tmp_path / "out").exists()


def test_every_new_checkpoint_is_followed_and_a_bad_one_left_alone(
    asked: Asked, localized: Localized, newer: Path, rebased: Rebased, tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for number in (0, 5, 6):
        name = f"round-{number:06d}"
        shutil.copytree(newer.parent / name, folder / name)
    (folder / "round-000005" / "config.json").write_text("{}", encoding="utf-8")
    assert [p.name for p in newer_checkpoints(folder, localized.bundle)] == [
        "round-000005",
        "round-000006",
    ]
    said: list[str] = []
    seen: list[tuple[Path, str]] = []

    def carry(what: Asked, target: Path) -> Rebased:
        seen.append((what.bundle, target.name))
        open_base(what.onto)
        shutil.copytree(rebased.bundle.folder, target)
        return rebased

    out = tmp_path / "out"
    out.mkdir()
    watch(folder, asked, out, carry, Telling(say=said.append), sleep=lambda _: None, once=True)
    assert [name for _, name in seen] == ["round-000005", "round-000006"]
    assert (out / "round-000006").is_dir()
    assert said[0].startswith("round-000005: left alone:")
    watch(folder, asked, out, carry, Telling(), sleep=lambda _: None, once=True)
    assert len(seen) == 2 + 1  # the bad one is looked at again after a restart, the good one not
