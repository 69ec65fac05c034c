"""Causal language modelling: sizes, losses and bits against oracles, and models from elsewhere.

Shapes: B sequences, T tokens predicted in a sequence.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import json
import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tapestry.data.corpus import Corpus
from tapestry.data.tokenizer import byte_tokenizer, train_tokenizer
from tapestry.errors import ConfigError
from tapestry.objectives.causal_lm import CausalLM
from tapestry.objectives.objective import Created, objective_named
from tapestry.objectives.sizes import SIZES, size_named
from tapestry.params.modules import from_model, layout_of, outside_the_vector, to_model

pytestmark = pytest.mark.usefixtures("one_thread")

BYTES = 256 + 4
"""Vocabulary of the tokenizer without merges: every byte, end of text, padding."""
NARROW = {
    "vocab_size": BYTES,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
OBJECTIVE = CausalLM()


@pytest.fixture(scope="module")
def created() -> Created:
    """A tiny model over bytes."""
    return OBJECTIVE.create({"size": "tiny"}, seed=1)


def folder_of(made: Created, folder: Path) -> Path:
    """Write the files of a created model."""
    folder.mkdir()
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    return folder


def logits(module: torch.nn.Module, *ids: int) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = module.eval()(input_ids=torch.tensor([ids])).logits
    return out


def narrow_model(seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**NARROW))


# Genesis


def test_the_same_seed_gives_the_same_model_and_another_seed_another(created: Created) -> None:
    torch.manual_seed(12345)  # what happened before does not matter
    again = OBJECTIVE.create({"size": "tiny"}, seed=1)
    other = OBJECTIVE.create({"size": "tiny"}, seed=2)
    layout = layout_of(created.module)
    vector = from_model(created.module, layout)
    np.testing.assert_array_equal(from_model(again.module, layout), vector)
    assert again.files == created.files
    assert not np.array_equal(from_model(other.module, layout), vector)
    assert other.files == created.files


def test_a_created_model_says_what_it_was_created_with(created: Created) -> None:
    assert created.settings == {"size": "tiny", "vocabulary": BYTES}
    assert set(created.files) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads(created.files["config.json"])
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["vocab_size"] == BYTES


def count(name: str) -> int:
    """Count the elements of a named size without allocating them."""
    size = size_named(name)
    with torch.device("meta"):
        module = Qwen3ForCausalLM(Qwen3Config(**size.model_config(vocabulary=size.vocabulary)))
    assert next(module.parameters()).device.type == "meta"
    return layout_of(module).elements


def elements_by_hand(
    *, width: int, layers: int, heads: int, kv: int, feed_forward: int, vocabulary: int
) -> int:
    """Count on paper: one embedding, tied; per layer attention, SwiGLU, norms; the last norm."""
    head = width // heads
    attention = 2 * width * width + 2 * width * kv * head
    norms = 2 * width + 2 * head
    return vocabulary * width + layers * (attention + 3 * width * feed_forward + norms) + width


@pytest.mark.parametrize(
    ("name", "announced"), [("tiny", 1e6), ("small", 30e6), ("base", 0.1e9), ("1b", 1e9)]
)
def test_a_size_has_about_the_announced_number_of_parameters(name: str, announced: float) -> None:
    size = SIZES[name]
    elements = count(name)
    assert elements == pytest.approx(announced, rel=0.1)
    assert elements == elements_by_hand(
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        kv=size.key_value_heads,
        feed_forward=size.feed_forward,
        vocabulary=size.vocabulary,
    )


def test_tied_embeddings_are_counted_once(created: Created) -> None:
    assert created.module.lm_head.weight is created.module.model.embed_tokens.weight
    layout = layout_of(created.module)
    # 260*128; 4 layers of 128*(128+64+64+128) + 3*128*384 + 2*128 + 2*32; 128
    assert layout.elements == 33_280 + 4 * (49_152 + 147_456 + 320) + 128
    assert "lm_head.weight" not in {spec.name for spec in layout.tensors}
    assert outside_the_vector(created.module, layout) == {}


def test_an_unknown_size_names_the_sizes() -> None:
    with pytest.raises(ConfigError, match="unknown size 'huge': choose one of tiny, small, base"):
        OBJECTIVE.create({"size": "huge"}, seed=0)


def test_a_tokenizer_is_trained_on_the_open_text(tmp_path: Path) -> None:
    text = tmp_path / "pool.txt"
    text.write_text("warp and weft\n\n" * 50, encoding="utf-8")
    made = OBJECTIVE.create({"size": "tiny", "text": [text], "vocabulary": 300}, seed=0)
    assert made.settings["vocabulary"] == BYTES + 3 + 3 + 4  # merges of warp, " and", " weft"
    assert made.module.model.embed_tokens.weight.shape == (270, 128)


def test_a_tokenizer_that_is_given_is_used(tmp_path: Path) -> None:
    given = train_tokenizer(["weft weft weft"], vocabulary_size=263)
    given.save(str(tmp_path / "tokenizer.json"))
    made = OBJECTIVE.create({"size": "tiny", "tokenizer": str(tmp_path)}, seed=0)
    assert made.settings["vocabulary"] == 263
    assert json.loads(made.files["tokenizer.json"]) == json.loads(given.to_str())


# Building again


def test_a_model_built_from_its_files_and_vector_computes_the_same(
    created: Created, tmp_path: Path
) -> None:
    built = OBJECTIVE.build(folder_of(created, tmp_path / "genesis"))
    layout = layout_of(created.module)
    assert layout_of(built) == layout
    assert not torch.equal(logits(built, 1, 2, 3), logits(created.module, 1, 2, 3))
    to_model(from_model(created.module, layout), built, layout)
    assert torch.equal(logits(built, 1, 2, 3, 255), logits(created.module, 1, 2, 3, 255))


def test_a_created_model_is_one_that_transformers_loads(created: Created, tmp_path: Path) -> None:
    folder = folder_of(created, tmp_path / "genesis")
    created.module.save_pretrained(tmp_path / "saved")
    (folder / "model.safetensors").write_bytes((tmp_path / "saved/model.safetensors").read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert torch.equal(logits(loaded, 1, 2, 3), logits(created.module, 1, 2, 3))
    assert tokenizer.decode(tokenizer("Ніхто не знає 😀\n").input_ids) == "Ніхто не знає 😀\n"
    assert tokenizer.eos_token_id == loaded.config.eos_token_id


GOOD = {**NARROW, "model_type": "qwen3"}


DAMAGED: dict[str, str | None] = {
    "missing": None,
    "empty": "",
    "cut short": "{",
    "no keys": "{}",
    "a list": "[]",
    "null": "null",
    "unknown model": '{"model_type": "loom"}',
    "unknown activation": json.dumps({**GOOD, "hidden_act": "loom"}),
    "unknown type": json.dumps({**GOOD, "dtype": "float33"}),
    "text for a number": json.dumps({**GOOD, "hidden_size": "wide"}),
    "null for a number": json.dumps({**GOOD, "hidden_size": None}),
    "no heads": json.dumps({**GOOD, "num_key_value_heads": 0}),
    "negative": json.dumps({**GOOD, "intermediate_size": -1}),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_configuration_that_describes_no_model_is_refused_in_one_line(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="does not describe a causal language model") as caught:
        OBJECTIVE.build(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


# The loss


def test_the_loss_is_that_of_transformers_on_the_same_batch(created: Created) -> None:
    rng = np.random.default_rng(1)
    batch_BT1 = torch.from_numpy(rng.integers(0, BYTES, (3, 17)))
    with torch.no_grad():
        ours = OBJECTIVE.loss(created.module, batch_BT1)
        theirs = created.module(input_ids=batch_BT1, labels=batch_BT1).loss  # it shifts them
    torch.testing.assert_close(ours, theirs)
    assert ours.item() == pytest.approx(math.log(BYTES), abs=0.2)  # an untrained model guesses


def test_the_loss_is_in_nats_per_token() -> None:
    class Uniform(torch.nn.Module):
        """Finds each of four tokens equally likely."""

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:  # noqa: ARG002, FBT001
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 4)})

    batch = torch.tensor([[0, 1, 2], [3, 0, 1]])
    assert OBJECTIVE.loss(Uniform(), batch).item() == pytest.approx(math.log(4))


# Bits per byte


SEQUENCE = 8
TEXT = "The weft goes over and under. "


@pytest.fixture(scope="module")
def corpus(created: Created, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Documents of which two in five are held out: more windows than are measured at once."""
    folder = tmp_path_factory.mktemp("bits")
    documents = [f"{number} {TEXT * 2}é{number}" for number in range(16)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    made: Corpus = OBJECTIVE.prepare(
        [folder / "text.txt"],
        folder_of(created, folder / "genesis"),
        cache=folder / "cache",
        sequence_tokens=SEQUENCE,
        held_out_fraction=0.4,
        held_out_bytes=10_000,
    )
    return made


def bits_token_by_token(module: torch.nn.Module, corpus: Corpus) -> float:
    """Predict one token after the other, from what its window holds before it and no more."""
    stream = [corpus.end_of_text_id, *corpus.held_out.tolist()]
    bits = 0.0
    for position in range(1, len(stream)):
        if stream[position] == corpus.end_of_text_id:
            continue
        window = (position - 1) // SEQUENCE * SEQUENCE
        scores = logits(module, *stream[window:position])[0, -1]
        bits -= torch.log_softmax(scores.double(), 0)[stream[position]].item() / math.log(2)
    return bits


def test_bits_per_byte_are_those_of_predicting_token_by_token(corpus: Corpus) -> None:
    module = narrow_model()
    windows = math.ceil(len(corpus.held_out) / SEQUENCE)
    assert windows > 2 * 16, "several batches of windows"
    assert len(corpus.held_out) % SEQUENCE != 0, "the last window is not full"
    measured = OBJECTIVE.evaluate(module, corpus)
    bits = bits_token_by_token(module, corpus)
    assert measured.bits == pytest.approx(bits, rel=1e-5)
    assert measured.text_bytes == len(corpus.held_out) - corpus.held_out_documents
    assert measured.bits_per_byte == pytest.approx(bits / measured.text_bytes, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_bits_do_not_depend_on_how_many_windows_are_measured_at_once(
    corpus: Corpus, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = narrow_model()
    usual = OBJECTIVE.evaluate(module, corpus)
    monkeypatch.setattr("tapestry.objectives.causal_lm._EVALUATION_SEQUENCES", batch)
    other = OBJECTIVE.evaluate(module, corpus)
    assert other.text_bytes == usual.text_bytes
    assert other.bits == pytest.approx(usual.bits, rel=1e-6)


def test_measuring_does_not_change_the_model_and_can_be_repeated(corpus: Corpus) -> None:
    module = narrow_model().train()
    layout = layout_of(module)
    before = from_model(module, layout)
    assert OBJECTIVE.evaluate(module, corpus) == OBJECTIVE.evaluate(module, corpus)
    np.testing.assert_array_equal(from_model(module, layout), before)


# By name


def test_the_objective_is_found_by_its_name() -> None:
    assert objective_named("causal-lm").name == "causal-lm"


def test_an_unknown_objective_names_those_that_are_installed() -> None:
    with pytest.raises(ConfigError, match=r"unknown objective 'jepa': installed are .*causal-lm"):
        objective_named("jepa")


def test_a_language_model_shares_nothing_but_its_vector(created: Created) -> None:
    assert OBJECTIVE.non_averageable(created.module) == frozenset()
    assert OBJECTIVE.round_statistics(created.module, None) == {}  # type: ignore[arg-type]
    vector = from_model(created.module, layout_of(created.module)).astype(np.float64)
    norm = OBJECTIVE.monitors(created.module)["parameter_norm"]
    assert norm == pytest.approx(math.sqrt(np.dot(vector, vector)), rel=1e-5)


# Adopting a model from elsewhere


def llama() -> PreTrainedModel:
    torch.manual_seed(3)
    config = LlamaConfig(**NARROW, tie_word_embeddings=False, eos_token_id=257)
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=BYTES, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config)


def write_foreign(folder: Path, model: PreTrainedModel, *, end: str = "</s>") -> Path:
    """Write a model as somebody else would have: with a tokenizer whose names are not ours."""
    model.save_pretrained(folder)
    text = byte_tokenizer().to_str().replace("<|endoftext|>", end).replace("<|padding|>", "<pad>")
    text = text.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "</turn>")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    table = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(table), encoding="utf-8")
    return folder


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_model_of_another_architecture_can_be_adopted(
    tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    original = make()
    folder = write_foreign(tmp_path / "theirs", original)
    made = OBJECTIVE.create({"model": str(folder)}, seed=0)
    assert made.settings == {"model": "theirs"}
    assert torch.equal(logits(made.module, 5, 6, 7), logits(original, 5, 6, 7))

    built = OBJECTIVE.build(folder_of(made, tmp_path / "genesis"))
    assert type(built) is type(original)
    layout = layout_of(made.module)
    to_model(from_model(made.module, layout), built, layout)
    assert torch.equal(logits(built, 5, 6, 7), logits(original, 5, 6, 7))


def test_an_adopted_model_is_float32_whatever_it_was(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "theirs", llama().to(torch.bfloat16))
    made = OBJECTIVE.create({"model": str(folder)}, seed=0)
    assert {parameter.dtype for parameter in made.module.parameters()} == {torch.float32}
    assert json.loads(made.files["config.json"])["dtype"] == "float32"


def test_an_adopted_model_comes_with_its_tokenizer_and_end_of_text(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "theirs", llama(), end="<fin>")
    made = OBJECTIVE.create({"model": str(folder)}, seed=0)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{number} warp" for number in range(30)), encoding="utf-8")
    corpus = OBJECTIVE.prepare(
        [text],
        folder_of(made, tmp_path / "genesis"),
        cache=tmp_path / "cache",
        sequence_tokens=SEQUENCE,
        held_out_fraction=0.2,
        held_out_bytes=1000,
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "genesis", local_files_only=True)
    assert corpus.end_of_text_id == tokenizer.eos_token_id
    train = corpus.train.tolist()
    assert train.count(corpus.end_of_text_id) == corpus.train_documents
    first = train[: train.index(corpus.end_of_text_id)]
    assert tokenizer.decode(first).endswith(" warp")


def test_only_named_files_are_taken_over(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "theirs", llama())
    for name in ("modeling_loom.py", "training_args.bin", "README.md", "optimizer.pt"):
        (folder / name).write_bytes(b"whatever")
    made = OBJECTIVE.create({"model": str(folder)}, seed=0)
    assert set(made.files) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def _damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def _mistype_config(folder: Path) -> None:
    change_config(folder, hidden_size="wide")


def _widen_config(folder: Path) -> None:
    change_config(folder, intermediate_size=64)


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _replace_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_remove_weights, "has no .safetensors file; other formats can run code"),
        (_remove_tokenizer, "no tokenizer.json here"),
        (_remove_config, "cannot be loaded as a causal language model"),
        (_damage_config, "cannot be loaded as a causal language model"),
        (_damage_tokenizer, "not a tokenizer"),
        (_mistype_config, "cannot be loaded as a causal language model"),
        (_widen_config, "cannot be loaded as a causal language model"),
        (_cut_weights, "cannot be loaded as a causal language model"),
        (_replace_weights, "cannot be loaded as a causal language model"),
    ],
)
def test_a_folder_that_cannot_be_adopted_is_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = write_foreign(tmp_path / "theirs", llama())
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        OBJECTIVE.create({"model": str(folder)}, seed=0)
    said = str(caught.value)
    assert said.startswith(f"{folder}")
    assert says in said
    assert len(said.splitlines()) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        OBJECTIVE.create({"model": str(tmp_path / "nowhere")}, seed=0)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "theirs", llama())
    change_config(folder, num_hidden_layers=2)  # the file has the weights of one
    with pytest.raises(ConfigError, match=r"model\.layers\.1\."):
        OBJECTIVE.create({"model": str(folder)}, seed=0)


def test_a_tokenizer_without_an_end_of_text_is_refused_when_it_is_adopted(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "theirs", llama(), end="<fin>")
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="no token that ends a text"):
        OBJECTIVE.create({"model": str(folder)}, seed=0)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "theirs", llama())
    larger = train_tokenizer(["weft weft weft"], vocabulary_size=263)
    larger.save(str(folder / "tokenizer.json"))
    with pytest.raises(ConfigError, match="263"):
        OBJECTIVE.create({"model": str(folder)}, seed=0)


# Nobody's code is run


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path("{marker}").touch()

class LoomConfig(LlamaConfig):
    pass

class LoomModel(LlamaForCausalLM):
    config_class = LoomConfig
"""
AUTO_MAP = {"AutoConfig": "loom.LoomConfig", "AutoModelForCausalLM": "loom.LoomModel"}


def with_code(folder: Path) -> Path:
    """Write a model whose configuration points to a Python file beside it."""
    write_foreign(folder, llama())
    code = CODE.format(marker=folder / "was_imported")
    (folder / "loom.py").write_text(code, encoding="utf-8")
    return folder


def assert_nothing_ran(folder: Path) -> None:
    assert not (folder / "was_imported").exists()
    assert not [name for name in sys.modules if name.rpartition(".")[2] == "loom"]
    assert not list(folder.rglob("*.pyc"))


def test_a_model_that_needs_its_own_code_is_refused(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "theirs")
    change_config(folder, auto_map=AUTO_MAP, model_type="loom")
    with pytest.raises(ConfigError, match="cannot be loaded as a causal language model"):
        OBJECTIVE.create({"model": str(folder)}, seed=0)
    with pytest.raises(ConfigError, match="does not describe a causal language model"):
        OBJECTIVE.build(folder)
    assert_nothing_ran(folder)


def test_code_beside_a_known_model_is_ignored(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "theirs")
    change_config(folder, auto_map=AUTO_MAP)
    made = OBJECTIVE.create({"model": str(folder)}, seed=0)
    assert type(made.module) is LlamaForCausalLM
    assert type(OBJECTIVE.build(folder)) is LlamaForCausalLM
    assert_nothing_ran(folder)


def test_what_is_published_does_not_tell_where_the_founder_keeps_files(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "theirs", llama())
    made = OBJECTIVE.create({"model": str(folder)}, seed=0)
    for name, content in made.files.items():
        assert str(tmp_path).encode() not in content, name


def test_what_is_published_points_to_no_code(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "theirs")
    change_config(folder, auto_map=AUTO_MAP)
    table = json.loads((folder / "tokenizer_config.json").read_text())
    table["auto_map"] = {"AutoTokenizer": [None, "loom.LoomTokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(table), encoding="utf-8")
    made = OBJECTIVE.create({"model": str(folder)}, seed=0)
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads(made.files[name]), name


def test_the_code_would_be_seen_if_it_ran(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "theirs")
    runpy.run_path(str(folder / "loom.py"))
    with pytest.raises(AssertionError):
        assert_nothing_ran(folder)
