"""Leakage: what is planted is found, what is not there is not, and many steps blur it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tapestry.checkpoints.statements import InnerSettings
from tapestry.data.tokenizer import byte_tokenizer
from tapestry.objectives.causal_lm import CausalLM
from tapestry.params.modules import from_model, layout_of
from tapestry_node import embedding_rows, leakage
from tapestry_node.canaries import plant, planted, planted_text, references, remove
from tapestry_node.home import NodeHome
from tapestry_node.leakage_words import words as words_of
from tapestry_node.policy import NodeTable
from tapestry_node.trainer import Trainer
from tests.conftest import Federation

pytestmark = pytest.mark.usefixtures("one_thread")

INNER = InnerSettings(steps=8, sequences=2, sequence_tokens=16, learning_rate=3e-3, warmup_steps=0)


def model(*, is_tied: bool, seed: int = 3, vocabulary: int = 512) -> Any:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=128,
            tie_word_embeddings=is_tied,
        )
    )


def trainer_of(module: Any, tokens: np.ndarray) -> Any:
    """What the measurements need of a trainer."""
    corpus = SimpleNamespace(train=tokens, end_of_text_id=0)
    return SimpleNamespace(
        module=module, layout=layout_of(module), objective=CausalLM(), corpus=corpus
    )


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    made = NodeHome(tmp_path / "node")
    made.make_folders()
    return made


# Rows of the embedding


def test_rows_of_an_untied_embedding_name_exactly_the_tokens_of_the_text() -> None:
    module = model(is_tied=False)
    layout, before = layout_of(module), from_model(module, layout_of(module))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.1)
    batch = torch.tensor([[5, 9, 300, 5, 411, 77]])
    for _ in range(3):
        CausalLM().loss(module, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    read = np.zeros(512, np.bool_)
    read[[5, 9, 300, 411]] = True  # 77 was predicted, and never read
    found = embedding_rows.embedding_rows(
        module, layout, before, before - from_model(module, layout), read
    )
    assert found is not None
    assert found["way"] == "rows that did not move at all"
    assert (found["precision"], found["recall"], found["ranking"]) == (1.0, 1.0, 1.0)
    assert found["picked_ids"] == [5, 9, 300, 411]


def test_weight_decay_alone_names_nobody() -> None:
    rng = np.random.default_rng(1)
    base = rng.standard_normal((200, 8)).astype(np.float32)
    there = np.zeros(200, np.bool_)
    there[17] = True  # a token that only this node has
    delta = base * np.float32(0.01)
    assert embedding_rows.told_apart(delta, base, there)["picked"] == 0
    delta[17] += 0.05
    found = embedding_rows.told_apart(delta, base, there)
    assert (found["picked_ids"], found["precision"], found["recall"]) == ([17], 1.0, 1.0)


def test_noise_tells_no_more_than_chance() -> None:
    rng = np.random.default_rng(2)
    base, delta = rng.standard_normal((2, 4000, 8)).astype(np.float32)
    there = rng.random(4000) < 0.3
    found = embedding_rows.told_apart(delta, base, there)
    assert found["ranking"] == pytest.approx(0.5, abs=0.05)
    assert found["precision"] == pytest.approx(found["chance"], abs=0.05)


@pytest.mark.parametrize(
    ("score", "there", "expected"),
    [([3, 2, 1], [1, 0, 0], 1.0), ([1, 2, 3], [1, 0, 0], 0.0), ([1, 1, 1], [1, 0, 0], 0.5),
     ([4, 3, 2, 1], [1, 0, 1, 0], 0.75)],
)  # fmt: skip
def test_ranking_is_the_share_of_pairs_in_order(
    score: list[float], there: list[int], expected: float
) -> None:
    assert embedding_rows.ranked(np.array(score), np.array(there, np.bool_)) == expected


# Canaries


def test_canaries_are_recorded_and_can_be_taken_out(home: NodeHome) -> None:
    made = plant(home, 5, repeats=3, seed=1)
    assert planted(home) == made
    (path,) = planted_text(home)
    documents = path.read_text().strip().split("\n\n")
    assert sorted(documents) == sorted(made.planted * 3)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not set(references(made, 50)) & set(made.planted)
    assert references(made, 50) == references(made, 50)
    assert remove(home)
    assert planted_text(home) == []
    assert plant(home, 5, repeats=3, seed=1) == made


def test_a_model_that_learned_the_canaries_exposes_them_and_a_fresh_one_does_not(
    home: NodeHome,
) -> None:
    made = plant(home, 8, repeats=1, seed=4)
    others = references(made, 255)
    tokenizer, module = byte_tokenizer(), model(is_tied=True)
    fresh = leakage.exposure(module, tokenizer, made.planted, others)
    assert fresh["mean"] == pytest.approx(1.44, abs=1.2)
    ids = [one.ids for one in tokenizer.encode_batch(made.planted, add_special_tokens=False)]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(60):
        CausalLM().loss(module, torch.tensor(ids)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    learned = leakage.exposure(module, tokenizer, made.planted, others)
    assert learned["mean"] > 7.0
    assert learned["most_measurable"] == 8.0
    assert learned["first_of_all"] >= 6


# Verbatim


def test_text_that_a_model_learned_by_heart_is_continued_verbatim() -> None:
    rng = np.random.default_rng(5)
    tokens = np.concatenate([np.append(rng.integers(1, 512, 24), 0) for _ in range(4)])
    samples = leakage.stretches(tokens.astype(np.uint16), end=0, count=8)
    assert samples.shape == (4, 24)
    module = model(is_tied=True)
    assert leakage.verbatim(module, samples)["whole"] == 0.0
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(80):
        CausalLM().loss(module, torch.from_numpy(samples)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    found = leakage.verbatim(module, samples)
    assert (found["prefix_tokens"], found["samples"]) == (12, 4)
    assert found["whole"] >= 0.75


def test_a_stretch_never_crosses_two_documents() -> None:
    tokens = np.concatenate([np.append(np.full(n, n), 0) for n in (7, 120, 130, 9, 140)])
    for row in leakage.stretches(tokens.astype(np.uint16), end=0, count=32):
        assert len(set(row.tolist())) == 1


# All of it


def test_a_contribution_that_was_not_kept_is_made_again_and_measured(
    federation: Federation, home: NodeHome, tmp_path: Path
) -> None:
    words = [
        "the",
        "shuttle",
        "carries",
        "the",
        "weft",
        "through",
        "the",
        "shed",
        "and",
        "back",
        "again",
    ]
    texts = [" ".join(words[(n * k) % len(words)] for k in range(1, 60)) for n in range(1, 40)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    trainer = Trainer(
        home,
        NodeTable(held_out_fraction=0.1, device="cpu", threads=1),
        "causal-lm",
        federation.genesis,
        [tmp_path / "text.txt"],
        sequence_tokens=16,
    )
    told: list[tuple[str, int, int]] = []
    found = leakage.examine(
        trainer,
        federation.genesis,
        federation.newest,
        None,
        codec="float32",
        inner=INNER.model_copy(update={"steps": 2}),
        canaries=None,
        seed=1,
        on_progress=lambda doing, done, of: told.append((doing, done, of)),
    )
    assert [one for one in told if one[0].startswith("making")] == [
        ("making the contribution again", 1, 2),
        ("making the contribution again", 2, 2),
    ]
    assert told[-1][1] == told[-1][2], "the bar reaches its end"
    assert set(found["verbatim"]) == {"base", "contribution", "consensus"}
    assert found["canaries"] is None
    assert found["embedding_rows"]["is_tied"]
    assert found["embedding_rows"]["ranking"] > 0.6
    figures = {**found, "round": 1, "source": "made again", "codec": "float32", "steps": 2}
    said = "\n".join(words_of({**figures, "not_kept_from": ""}))
    assert "none are planted" in said
    assert "lower bounds" in said
