"""The judge: margins are those of an independent walk, and a model that knows better scores so."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tapestry.cli.main import main
from tapestry.errors import ConfigError
from tapestry_finetune.base import Base
from tapestry_finetune.charter import speakers
from tapestry_finetune.charter.cases import HeldOutPair, held_out_pairs
from tapestry_finetune.charter.judge import PairScore, score_charter, summed_up
from tapestry_finetune.charter.prompt import render
from tapestry_finetune.charter.questions import read_questions
from tapestry_finetune.charter.settings import Charter, load_charter
from tapestry_finetune.charter.written import WrittenAnswers, written_file
from tapestry_finetune.dialogue import encode_masked
from tapestry_finetune.voices import Voice
from tests.finetune.charters import SECRET, table, written
from tests.finetune.tiny_assistant import COLOURS, THINGS, make_tiny_base, voice_of
from tests.threads import one_thread

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    with one_thread():
        yield make_tiny_base(tmp_path_factory.mktemp("judge") / "base", steps=60)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A charter of colours: those that the tiny model was taught are the good ones."""
    names = ("true", "kind")
    cases = [
        {
            "prompt": f"What colour is the {thing}?",
            "good": f"The {thing} is {COLOURS[at % 4]}.",
            "bad": f"The {thing} is {COLOURS[(at + 1) % 4]}.",
            "principles": [names[at % 2]],
            "held_out": True,
        }
        for at, thing in enumerate(THINGS)
    ]
    cases[3]["paraphrases"] = ["And the weaver?"]
    principles = [
        {"id": name, "text": name, "weight": weight} for weight, name in enumerate(names, 1)
    ]
    content = table(*cases, principle=principles, protected=[SECRET])
    return written(tmp_path_factory.mktemp("charter") / "charter.toml", content)


@pytest.fixture(scope="module")
def charter(path: Path) -> Charter:
    return load_charter(path)


def walked(voice: Voice, messages: list[dict[str, str]], answer: str) -> tuple[float, int]:
    """Return sum of log p and tokens of an answer, through the template and without batches."""
    asked = voice.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    said = [*messages, {"role": "assistant", "content": answer}]
    whole = voice.tokenizer.apply_chat_template(said, tokenize=False).rstrip("\n")
    ids = voice.tokenizer(whole, add_special_tokens=False).input_ids
    before = len(voice.tokenizer(asked, add_special_tokens=False).input_ids)
    with torch.inference_mode():
        logp = voice.module(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    nats = sum(float(logp[at - 1, ids[at]]) for at in range(before, len(ids)))
    return nats, len(ids) - before


@pytest.mark.parametrize("with_prompt", [False, True])
def test_margins_are_those_of_an_independent_walk(
    base: Base, charter: Charter, *, with_prompt: bool
) -> None:
    voice = voice_of(base)
    if with_prompt:
        voice = dataclasses.replace(voice, system=render(charter))
    pairs = held_out_pairs(charter)
    scored = score_charter(voice, pairs)
    for pair, score in zip(pairs, scored.pairs, strict=True):
        told = [{"role": "system", "content": voice.system}] if with_prompt else []
        messages = [*told, *map(dict, pair.prompt)]
        good, good_tokens = walked(voice, messages, pair.chosen)
        bad, bad_tokens = walked(voice, messages, pair.rejected)
        assert score.raw_margin == pytest.approx(good - bad, abs=1e-3)
        assert score.token_margin == pytest.approx(good / good_tokens - bad / bad_tokens, abs=1e-4)


def taught(base: Base, pairs: list[HeldOutPair], *, steps: int) -> Voice:
    """Return the tiny model after steps towards the good answers and away from the bad ones."""
    voice = voice_of(base)
    optimizer = torch.optim.AdamW(voice.module.parameters(), lr=1e-3)

    def loss(pair: HeldOutPair, answer: str) -> torch.Tensor:
        ids, learnt = encode_masked(
            voice.tokenizer, [*pair.prompt, {"role": "assistant", "content": answer}]
        )
        labels = [token if own else -100 for token, own in zip(ids, learnt, strict=True)]
        return voice.module(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss

    for _step in range(steps):
        for pair in pairs:
            torch.nn.functional.softplus(
                loss(pair, pair.chosen) - loss(pair, pair.rejected)
            ).backward()
        optimizer.step()
        optimizer.zero_grad()
    return voice


def test_a_model_that_is_taught_the_good_answers_keeps_the_charter(
    base: Base, charter: Charter
) -> None:
    pairs = held_out_pairs(charter)
    before = score_charter(voice_of(base), pairs).overall
    voice = taught(base, pairs, steps=15)
    after = score_charter(voice, pairs).overall
    assert after.token_margin > before.token_margin + 0.1
    assert after.token_accuracy == 1.0
    contrary = [dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) for p in pairs]
    turned = score_charter(voice, contrary).overall
    assert turned.token_accuracy == 0.0
    assert turned.raw_margin == pytest.approx(-after.raw_margin, rel=1e-4)


def test_the_command_scores_and_tells_it_as_json(
    base: Base, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetune", "charter", "score", str(path), str(base.folder), "--unverified"]
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["overall"]["pairs"] == 9
    assert set(told["by_principle"]) == {"true", "kind"}
    assert main([*arguments, "--device", "cpu", "--with-prompt"]) == 0
    assert "by the principles' weights: " in capsys.readouterr().out
    assert main(arguments[:-1]) == 1
    assert "not a published checkpoint" in capsys.readouterr().err


def test_two_answers_are_written_and_kept_for_the_next_time(
    base: Base, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    lines = [f"What colour is the {thing}?" for thing in THINGS]
    prompts.write_text("\n".join([*lines, "What of mask night?"]), encoding="utf-8")
    out = tmp_path / "choices.jsonl"
    arguments: list[Any] = [
        "finetune",
        "charter",
        "collect",
        path,
        "--out",
        out,
        "--prompts",
        prompts,
    ]
    arguments += ["--base", base.folder, "--unverified", "--device", "cpu"]
    arguments += ["--sheet", tmp_path / "sheet.html"]
    assert main(list(map(str, arguments))) == 0
    said = capsys.readouterr().err
    assert "1 protected" in said
    kept = tmp_path / "choices.questions.jsonl"
    before = kept.read_bytes()
    questions = read_questions(kept)
    assert 1 <= len(questions) <= 8
    assert main(list(map(str, arguments))) == 0
    assert "going on with the answers" in capsys.readouterr().err
    assert kept.read_bytes() == before


def test_ctrl_c_while_answers_are_written_loses_none_of_them(
    base: Base,
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "choices.jsonl"
    prompts.write_text("\n".join(f"What colour is the {thing}?" for thing in THINGS))
    arguments = [
        *("finetune", "charter", "collect", path, "--out", out, "--prompts", prompts),
        *("--base", base.folder, "--unverified", "--device", "cpu"),
        *("--sheet", tmp_path / "sheet.html"),
    ]
    asked: list[str] = []
    write = speakers.answer

    def interrupted(voice: Any, messages: Any, **how: Any) -> str:
        if len(asked) == len(THINGS) + 2:
            raise KeyboardInterrupt
        asked.append(messages[-1]["content"])
        return write(voice, messages, **how)

    monkeypatch.setattr(speakers, "answer", interrupted)
    assert main(list(map(str, arguments))) == 130
    said = capsys.readouterr().err
    assert f"stopped; {len(asked)} answers are kept, the same command goes on" in said
    with written_file(out).open("ab") as file:
        file.write(b'["half')

    def counted(voice: Any, messages: Any, **how: Any) -> str:
        asked.append(messages[-1]["content"])
        return write(voice, messages, **how)

    monkeypatch.setattr(speakers, "answer", counted)
    assert main(list(map(str, arguments))) == 0
    assert f"going on after {len(THINGS) + 2} answers" in capsys.readouterr().err
    assert len(asked) == 2 * len(THINGS), "none is asked for twice"
    resumed = (tmp_path / "choices.questions.jsonl").read_bytes()
    assert not written_file(out).exists()
    (tmp_path / "choices.questions.jsonl").unlink()
    assert main(list(map(str, arguments))) == 0
    assert (tmp_path / "choices.questions.jsonl").read_bytes() == resumed
    assert len(asked) == 4 * len(THINGS)


def test_answers_of_another_model_are_not_taken_for_its_own(tmp_path: Path) -> None:
    with (tmp_path / "answers.jsonl").open("a+b") as file:
        WrittenAnswers(file).keep("one", "Why?", "So.")
        again = WrittenAnswers(file)
        assert (again.get("one", "Why?"), again.get("two", "Why?")) == ("So.", None)
        assert len(again) == 1


def test_no_held_out_cases_and_nothing_to_score(base: Base) -> None:
    with pytest.raises(ConfigError, match="no held-out cases"):
        score_charter(voice_of(base), [])


def test_shares_by_hand() -> None:
    pairs = [
        PairScore(1, ("a",), raw_margin=2.0, token_margin=-0.5),
        PairScore(1, ("a",), raw_margin=1.0, token_margin=0.5),
        PairScore(2, ("a", "b"), raw_margin=-1.0, token_margin=0.25),
        PairScore(3, ("b",), raw_margin=0.0, token_margin=0.0),
    ]
    score = summed_up(pairs, weights={"b": 3.0}, seed=1)
    assert (score.overall.raw_accuracy, score.overall.token_accuracy) == (0.5, 0.5)
    assert (score.overall.raw_margin, score.overall.token_margin) == (0.5, 0.0625)
    assert score.by_principle["a"].token_accuracy == pytest.approx(2 / 3)
    assert score.weighted_accuracy == pytest.approx((2 / 3 + 3 * 0.5) / 4)
    assert score == summed_up(pairs, weights={"b": 3.0}, seed=1)
    low, high = score.overall.token_interval
    assert low < 0.5 < high
    one_case = summed_up(pairs[:2], weights={}, seed=0).overall  # resampled, it is always itself
    assert one_case.token_interval == (0.5, 0.5)
