"""One stage: resumed to the bit, like trl's own, and stopped where it must."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

from tapestry.errors import ConfigError
from tapestry_finetune.adapting import Adapted, TrainedMethod, adapt, quiet
from tapestry_finetune.base import Base
from tapestry_finetune.choosing import Machine, in_bfloat16
from tapestry_finetune.examples import (
    Examples,
    answer_examples,
    chat_examples,
    text_examples,
)
from tapestry_finetune.keeping import Watch, newest_whole, read_metrics
from tapestry_finetune.recipe import Precision
from tapestry_finetune.scoring import answer_likelihoods, continuation_likelihoods
from tapestry_finetune.training import StageSettings, StoppedError, Trained, train_stage
from tapestry_finetune.voices import Voice
from tests.finetune.consensus import ours

NAMES = [f"chats.jsonl:{number}" for number in range(1, 41)]


def examples(base: Base, kind: str) -> Examples:
    """Rows of one kind, forty of them."""
    tokenizer, texts = base.tokenizer(), ours(40)
    asked = [[{"role": "user", "content": text[:20]}] for text in texts]
    if kind == "text":
        return text_examples(tokenizer, texts, sequence_tokens=64)
    if kind == "chats":
        said = [
            [*q, {"role": "assistant", "content": text[20:60]}]
            for q, text in zip(asked, texts, strict=True)
        ]
        return chat_examples(tokenizer, said, NAMES, sequence_tokens=128)
    rows: list[dict[str, Any]] = [
        {"chosen": text[20:50], "rejected": text[50:80]}
        if kind == "pairs"
        else {"completion": text[20:50], "label": number % 2 == 0}
        for number, text in enumerate(texts)
    ]
    return answer_examples(tokenizer, asked, rows, NAMES, kind=kind, sequence_tokens=128)


def settings(**changes: Any) -> StageSettings:
    given: dict[str, Any] = {
        "learning_rate": 3e-3,
        "epochs": 1.0,
        "steps": 6,
        "batch": 4,
        "micro_batch": 2,
        "sequence_tokens": 128,
        "seed": 1,
        "device": "cpu",
    }
    return StageSettings(**(given | changes))


def trained(
    base: Base,
    kind: str,
    method: TrainedMethod,
    folder: Path,
    *,
    in_bfloat16: bool = False,
    **watch: Any,
) -> tuple[Adapted, Trained]:
    adapted = adapt(base.load("cpu"), method, rank=4, seed=0)
    found = train_stage(
        adapted,
        base.tokenizer(),
        examples(base, kind),
        settings(in_bfloat16=in_bfloat16),
        folder=folder,
        watch=Watch(**watch),
    )
    return adapted, found


@pytest.mark.parametrize(
    ("kind", "method"),
    [("text", "lora+embeddings"), ("chats", "full"), ("pairs", "lora"), ("thumbs", "lora")],
)
def test_a_stopped_stage_goes_on_to_the_same_model(
    base: Base, tmp_path: Path, kind: str, method: TrainedMethod
) -> None:
    whole, once = trained(base, kind, method, tmp_path / "whole")
    taken: list[int] = []

    def stops() -> bool:
        return len(taken) == 2

    with pytest.raises(StoppedError, match="stopped after step 3"):
        trained(
            base, kind, method, tmp_path / "parts",
            is_stopped=stops, on_progress=lambda p: taken.append(p.step),
        )  # fmt: skip
    again, twice = trained(base, kind, method, tmp_path / "parts")
    assert whole.trained().keys() == again.trained().keys()
    for name, parameter in whole.trained().items():
        assert torch.equal(parameter, again.trained()[name]), name
    assert (once.steps, once.tokens) == (twice.steps, twice.tokens)
    lines = [read_metrics(tmp_path / part) for part in ("whole", "parts")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert [line["step"] for line in lines[1]] == list(range(1, 7))


def test_products_in_bfloat16_leave_what_is_learnt_in_float32_and_near(
    base: Base, tmp_path: Path
) -> None:
    exact, _ = trained(base, "text", "lora", tmp_path / "exact")
    near, _ = trained(base, "text", "lora", tmp_path / "near", in_bfloat16=True)
    again, _ = trained(base, "text", "lora", tmp_path / "again", in_bfloat16=True)
    losses = {
        name: [line["loss"] for line in read_metrics(tmp_path / name)]
        for name in ("exact", "near", "again")
    }
    assert losses["near"] == losses["again"] != losses["exact"]
    assert losses["near"] == pytest.approx(losses["exact"], rel=0.01)
    for name, parameter in near.trained().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, again.trained()[name]), name
    assert exact.trained().keys() == near.trained().keys()


@pytest.mark.parametrize(
    ("precision", "device", "has_it", "is_taken"),
    [
        ("auto", "cpu", True, False),
        ("auto", "cuda:0", True, True),
        ("auto", "cuda:0", False, False),
        ("bfloat16", "cpu", False, True),
        ("float32", "cuda:0", True, False),
    ],
)
def test_auto_takes_bfloat16_on_gpus_that_have_it(
    *, precision: Precision, device: str, has_it: bool, is_taken: bool
) -> None:
    machine = Machine(device=device, name="", memory_bytes=1, multiplies_bfloat16=has_it)
    assert in_bfloat16(precision, machine) is is_taken


def test_a_checkpoint_that_a_crash_cut_is_not_gone_on_with(base: Base, tmp_path: Path) -> None:
    cut = tmp_path / "checkpoints" / "checkpoint-4"
    cut.mkdir(parents=True)
    (cut / "trained.safetensors").write_bytes(b"half")
    _, found = trained(base, "text", "lora", tmp_path)
    assert found.steps == 6


def test_the_loss_is_that_of_trl_used_directly(base: Base, tmp_path: Path) -> None:
    given = examples(base, "text")
    seen: list[float] = []
    trained(base, "text", "lora", tmp_path / "ours", on_progress=lambda p: seen.append(p.loss))
    adapted = adapt(base.load("cpu"), "lora", rank=4, seed=0)
    with quiet():
        args = SFTConfig(
            output_dir=str(tmp_path / "theirs"), learning_rate=3e-3, max_steps=6,
            per_device_train_batch_size=2, gradient_accumulation_steps=2, max_length=128,
            packing=True, bf16=False, use_cpu=True, gradient_checkpointing=False, seed=1,
            data_seed=1, logging_steps=1, report_to="none", lr_scheduler_type="cosine",
            warmup_steps=0.05, adam_beta2=0.95, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=adapted.module, args=args, train_dataset=given.dataset(),
            processing_class=base.tokenizer(),
        )  # fmt: skip
        trainer.train()
    theirs = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert seen == pytest.approx(theirs, rel=0.01)


def test_packed_sequences_read_each_other_as_little_as_single_ones(base: Base) -> None:
    given = examples(base, "text")
    packed = pack_dataset(given.dataset(), seq_length=128, strategy="bfd")
    lengths, ids = packed[0]["seq_lengths"], packed[0]["input_ids"]
    assert len(lengths) > 1
    module = base.load("cpu")
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        given_places = {"position_ids": places, "use_cache": False}
        together = module(input_ids=torch.tensor([ids]), **given_places).logits[0]
        start = 0
        for length in lengths:
            part = torch.tensor([ids[start : start + length]])
            alone = module(input_ids=part).logits[0]
            torch.testing.assert_close(together[start : start + length], alone, atol=1e-4, rtol=0)
            start += length


def test_the_loss_of_packed_texts_is_that_of_each_alone(base: Base, tmp_path: Path) -> None:
    given = examples(base, "text")
    seen: list[float] = []
    train_stage(
        adapt(base.load("cpu"), "lora", rank=4, seed=0),
        base.tokenizer(),
        given,
        settings(steps=1, batch=256, micro_batch=4),
        folder=tmp_path,
        watch=Watch(on_progress=lambda p: seen.append(p.loss)),
    )
    voice = Voice(module=base.load("cpu"), tokenizer=base.tokenizer())
    pairs = [(ids[:1], ids[1:]) for ids in given.columns["input_ids"] if len(ids) > 1]
    nats = -sum(continuation_likelihoods(voice, pairs))
    assert seen[0] == pytest.approx(nats / sum(len(rest) for _, rest in pairs), rel=1e-3)


def test_the_loss_of_a_pair_is_the_closed_formula(base: Base, tmp_path: Path) -> None:
    """DPO before the first step: -log sigmoid(0) = log 2, and the better answer's own loss."""
    given = examples(base, "pairs")
    seen: list[float] = []
    adapted = adapt(base.load("cpu"), "lora", rank=4, seed=0)
    for weight in (0.0, 0.2):
        train_stage(
            adapted if weight == 0.0 else adapt(base.load("cpu"), "lora", rank=4, seed=0),
            base.tokenizer(),
            given,
            settings(steps=1, batch=40, micro_batch=40, sft_weight=weight),
            folder=tmp_path / str(weight),
            watch=Watch(on_progress=lambda p: seen.append(p.loss)),
        )
    columns = given.columns
    voice = Voice(module=base.load("cpu"), tokenizer=base.tokenizer())
    pairs = list(zip(columns["prompt_ids"], columns["chosen_ids"], strict=True))
    tokens = sum(len(ids) for ids in columns["chosen_ids"])
    nll = -sum(continuation_likelihoods(voice, pairs)) / tokens
    assert seen[0] == pytest.approx(math.log(2), abs=1e-4)
    assert seen[1] == pytest.approx(math.log(2) + 0.2 * nll, rel=2e-3)


def test_dpo_after_a_step_is_the_closed_formula_too(base: Base, tmp_path: Path) -> None:
    given = examples(base, "pairs")
    seen: list[float] = []
    adapted = adapt(base.load("cpu"), "lora", rank=4, seed=0)
    states: list[dict[str, torch.Tensor]] = []

    def keep(progress: Any) -> None:
        seen.append(progress.loss)
        states.append({n: p.detach().clone() for n, p in adapted.trained().items()})

    train_stage(
        adapted, base.tokenizer(), given,
        settings(steps=2, batch=40, micro_batch=40, sft_weight=0.0, learning_rate=1e-2),
        folder=tmp_path, watch=Watch(on_progress=keep),
    )  # fmt: skip
    columns = given.columns
    after = adapt(base.load("cpu"), "lora", rank=4, seed=0)
    with torch.no_grad():
        for name, parameter in after.trained().items():
            parameter.copy_(states[0][name])

    def ratios(module: Any) -> torch.Tensor:
        voice = Voice(module=module.eval(), tokenizer=base.tokenizer())
        logp = [
            torch.tensor(
                continuation_likelihoods(
                    voice, list(zip(columns["prompt_ids"], columns[f"{side}_ids"], strict=True))
                )
            )
            for side in ("chosen", "rejected")
        ]
        return logp[0] - logp[1]

    margin = ratios(after.module) - ratios(base.load("cpu"))
    assert seen[1] == pytest.approx(float(-logsigmoid(0.1 * margin).mean()), rel=1e-3)


def _poison(adapted: Adapted, after: int) -> Callable[[], None]:
    """Let a model's loss become no number after some forward passes."""
    layer = adapted.plain.get_input_embeddings()
    passes = 0

    def spoil(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return output * float("nan") if passes > after else output

    handle = layer.register_forward_hook(spoil)
    return handle.remove


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_step(
    base: Base, tmp_path: Path
) -> None:
    adapted = adapt(base.load("cpu"), "lora", rank=4, seed=0)
    states: list[dict[str, torch.Tensor]] = []
    mend = _poison(adapted, after=6)
    with pytest.raises(ConfigError, match=r"step 4: the loss is no number any more.*learning_rate"):
        train_stage(
            adapted, base.tokenizer(), examples(base, "text"), settings(), folder=tmp_path,
            watch=Watch(on_progress=lambda _: states.append(
                {n: p.detach().clone() for n, p in adapted.trained().items()}
            )),
        )  # fmt: skip
    for name, parameter in adapted.trained().items():
        assert torch.equal(parameter, states[-1][name])
    kept = newest_whole(tmp_path)
    assert kept is not None
    assert kept.name == "checkpoint-3"
    mend()
    _, found = trained(base, "text", "lora", tmp_path)
    whole, _ = trained(base, "text", "lora", tmp_path / "whole")
    assert found.steps == 6
    assert read_metrics(tmp_path)[-1]["loss"] == read_metrics(tmp_path / "whole")[-1]["loss"]
    assert whole.trained()


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (2, 2)])
def test_less_is_held_in_memory_at_once_when_it_runs_out(
    base: Base, tmp_path: Path, most: int, expected: int
) -> None:
    adapted = adapt(base.load("cpu"), "lora", rank=4, seed=0)
    layer = adapted.plain.get_input_embeddings()

    def full(_module: Any, inputs: Any) -> None:
        if inputs[0].numel() > most * 128:
            raise torch.OutOfMemoryError("out of memory")

    layer.register_forward_pre_hook(full)
    found = train_stage(
        adapted, base.tokenizer(), examples(base, "chats"),
        settings(micro_batch=4, steps=3), folder=tmp_path, watch=Watch(),
    )  # fmt: skip
    assert (found.steps, found.micro_batch) == (3, expected)


def test_when_one_sequence_is_too_much_it_says_what_to_do(base: Base, tmp_path: Path) -> None:
    adapted = adapt(base.load("cpu"), "lora", rank=4, seed=0)

    def full(_module: Any, _inputs: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    adapted.plain.get_input_embeddings().register_forward_pre_hook(full)
    with pytest.raises(ConfigError, match=r"one sequence: lower training\.sequence_tokens"):
        train_stage(
            adapted, base.tokenizer(), examples(base, "text"), settings(), folder=tmp_path,
            watch=Watch(),
        )  # fmt: skip


def test_likelihoods_are_those_of_one_row_at_a_time(base: Base) -> None:
    voice = Voice(module=base.load("cpu"), tokenizer=base.tokenizer())
    asked = [
        ([{"role": "user", "content": text[: 5 + number]}], text[20 : 30 + number])
        for number, text in enumerate(ours(12))
    ]
    together = answer_likelihoods(voice, asked)
    for one, (messages, text) in zip(together, asked, strict=True):
        (alone,) = answer_likelihoods(voice, [(messages, text)])
        assert one.nats == pytest.approx(alone.nats, abs=1e-3)
        assert one.text_bytes == len(text.encode())
