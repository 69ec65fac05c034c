"""The attempt to get text back: it works where it must, and finds nothing where nothing is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from tapestry.checkpoints.statements import InnerSettings
from tapestry.objectives.causal_lm import CausalLM
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import ParameterLayout
from tapestry.params.modules import from_model, layout_of
from tapestry_node.inverting import gradient, inversion, passed, standing
from tapestry_node.leakage_words import words
from tapestry_node.spans import Guess, guess, readers_of, span_of

pytestmark = pytest.mark.usefixtures("one_thread")

INNER = InnerSettings(steps=8, sequences=2, sequence_tokens=16, learning_rate=3e-3, warmup_steps=0)
VOCABULARY, WIDTH = 512, 64


def rotary(*, is_tied: bool = True, layers: int = 2) -> Any:
    torch.manual_seed(3)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=128,
            tie_word_embeddings=is_tied,
        )
    )


def absolute() -> Any:
    """Positions are added to the embedding, and one matrix, kept turned, makes q, k and v."""
    torch.manual_seed(3)
    settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        **settings,
    )
    return GPT2LMHeadModel(config)


def trainer_of(module: Any, tokens: np.ndarray) -> Any:
    """What the attempt needs of a trainer."""
    return SimpleNamespace(
        module=module,
        layout=layout_of(module),
        objective=CausalLM(),
        corpus=SimpleNamespace(train=tokens, end_of_text_id=0),
    )


def drawn(count: int) -> np.ndarray:
    return np.random.default_rng(6).integers(1, VOCABULARY, count).astype(np.uint16)


def attacked(module: Any, vector: Float32Array) -> Guess:
    readers = readers_of(module.eval(), layout_of(module))
    matrices = [reader.rows(vector) for reader in readers]
    return guess(module, readers, matrices, sequences=2, sequence_tokens=16, seed=0)


@pytest.mark.parametrize("make", [rotary, absolute])
def test_the_text_of_a_small_batch_is_rebuilt_to_the_letter_from_its_gradient(make: Any) -> None:
    module, batch = make(), drawn(34).astype(np.int64).reshape(2, 17)
    trainer = trainer_of(module, batch.ravel())
    vector = gradient(trainer, from_model(module, trainer.layout), batch)
    made = attacked(module, vector)
    assert {tuple(row) for row in made.sequences} == {tuple(row) for row in batch[:, :-1]}
    read = np.unique(batch[:, :-1])
    assert set(made.tokens[: len(read)]) == set(read)


def test_text_that_begins_with_one_token_several_times_is_rebuilt_too() -> None:
    module = rotary()
    batch = np.array([[7] * 3 + list(range(20, 34)), [9, 9, *range(40, 55)]])
    trainer = trainer_of(module, batch.ravel())
    made = attacked(module, gradient(trainer, from_model(module, trainer.layout), batch))
    assert {tuple(row) for row in made.sequences} == {tuple(row) for row in batch[:, :-1]}


@pytest.mark.parametrize("make", [rotary, absolute])
def test_a_random_vector_gives_nothing_back(make: Any) -> None:
    module, batch = make(), drawn(32).reshape(2, 16)
    elements = layout_of(module).elements
    vector = np.random.default_rng(1).standard_normal(elements).astype(np.float32)
    made = attacked(module, vector)
    wanted = np.unique(batch)
    by_chance = len(wanted) / VOCABULARY
    assert np.isin(made.tokens[: len(wanted)], wanted).mean() < 4 * by_chance < 0.3
    assert not (batch[:, None] == made.sequences[None]).all(2).any()


@pytest.mark.parametrize("is_tied", [True, False])
def test_one_gradient_gives_all_and_steps_of_an_optimizer_give_less(*, is_tied: bool) -> None:
    trainer = trainer_of(rotary(is_tied=is_tied), drawn(4000))
    base = from_model(trainer.module, trainer.layout)
    told: list[tuple[str, int, int]] = []
    noise = np.random.default_rng(2).standard_normal(len(base)).astype(np.float32)
    found = inversion(
        trainer,
        base,
        INNER,
        contribution=noise,
        codec="int8",
        seed=1,
        on_progress=lambda doing, done, of: told.append((doing, done, of)),
    )
    assert (found["sequences"], found["sequence_tokens"]) == (2, 16)
    assert found["one_gradient"] >= 0.9
    assert found["by_steps"]["8"] <= min(found["by_steps"]["1"], found["one_gradient"])
    assert set(found["by_steps"]) == {"1", "2", "4", "8"}
    rebuilt = found["rebuilt"]
    assert rebuilt["one_gradient"] == {
        "tokens": 1.0,
        "in_place": 1.0,
        "sequences": 1.0,
        "standing": 2,
    }
    for name in ("steps", "contribution", "guessing"):
        assert (rebuilt[name]["sequences"], rebuilt[name]["standing"]) == (0.0, 0)
        assert rebuilt[name]["tokens"] < (0.3 if name != "steps" else 0.9)
    assert told == [("looking for your text in vectors", n, 64) for n in range(1, 65)]


def test_another_seed_draws_another_batch_and_the_same_one_the_same() -> None:
    trainer = trainer_of(rotary(), drawn(4000))
    base = from_model(trainer.module, trainer.layout)
    figures = [
        inversion(
            trainer,
            base,
            INNER.model_copy(update={"steps": 1}),
            contribution=base,
            codec="float32",
            seed=seed,
        )
        for seed in (1, 1, 2)
    ]
    assert figures[0] == figures[1]
    assert figures[0]["rebuilt"] != figures[2]["rebuilt"]
    assert "steps" not in figures[0]["rebuilt"], "one step is all there are"


def test_where_the_matrices_are_not_sent_nothing_is_tried_and_that_is_said() -> None:
    module = rotary(layers=1)
    trainer = trainer_of(module, drawn(4000))
    base = from_model(module, trainer.layout)
    found = inversion(trainer, base, INNER, contribution=base, codec="float32", seed=1)
    assert found["rebuilt"] is None
    assert "not tried" in said(found)
    frozen = rotary()
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    assert readers_of(frozen, layout_of(frozen)) == []


def test_words_say_when_text_can_be_read_off_the_contribution() -> None:
    trainer = trainer_of(rotary(), drawn(4000))
    base = from_model(trainer.module, trainer.layout)
    batch = drawn(4000)[:34].reshape(2, 17).astype(np.int64)
    leaking, quiet = gradient(trainer, base, batch), np.zeros_like(base)
    for vector, expected in ((leaking, True), (quiet, False)):
        found = inversion(trainer, base, INNER, contribution=vector, codec="int8", seed=1)
        assert found["rebuilt"]["contribution"]["standing"] == (2 if expected else 0)
        assert ("CAN BE READ OFF THE CONTRIBUTION" in said(found)) is expected
        assert ("read no sequence of yours" in said(found)) is not expected


def said(found: dict[str, Any]) -> str:
    none = {"whole": 0.0, "tokens": 0.0, "samples": 1, "prefix_tokens": 50}
    figures = {
        "round": 1,
        "steps": 8,
        "codec": "int8",
        "source": "kept as it was sent",
        "embedding_rows": None,
        "canaries": None,
        "verbatim": {"base": none, "contribution": none},
        "not_kept_from": "",
        "inversion": found,
    }
    return "\n".join(words(figures))


def test_a_span_is_exact_where_it_is_small_and_the_leading_one_where_it_is_not() -> None:
    rng = np.random.default_rng(4)
    inner = torch.from_numpy(rng.standard_normal((3, 40)))
    rows_OD = torch.from_numpy(rng.standard_normal((70, 3))) @ inner
    span_DR = span_of(rows_OD, 3, seed=0)
    torch.testing.assert_close(span_DR.T @ span_DR, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close((inner @ span_DR) @ span_DR.T, inner)
    weights = torch.tensor([9.0, 8.0, 0.5, 0.4], dtype=torch.float64)
    leading = span_of(torch.diag(weights), 2, seed=0)
    torch.testing.assert_close(leading[2:], torch.zeros((2, 2), dtype=torch.float64))


def test_what_stands_in_the_text_is_found_at_whole_tokens_only() -> None:
    tokens = np.array([1, 256, 5, 6], np.uint16)  # bytes 01 00 00 01 05 00 06 00
    assert standing(tokens, [[5, 6], [6, 5], [1, 256, 5, 6]]) == 2
    assert standing(tokens, [[0x0000]]) == 0  # there in bytes, across 1 and 256


def test_steps_go_through_the_codec_of_the_round() -> None:
    layout = ParameterLayout.from_shapes([("a", (300,))])
    delta = np.random.default_rng(3).standard_normal(300).astype(np.float32)
    assert (passed(delta.copy(), layout, "float32") == delta).all()
    coarse = passed(delta.copy(), layout, "int4")
    assert 0 < np.abs(coarse - delta).max() < np.abs(delta).max() / 4
