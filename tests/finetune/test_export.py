"""Exports predict what the model predicts: in transformers' own readers, and in llama.cpp."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.cli.running import run_app
from tapestry.data.tokenizer import train_tokenizer
from tapestry.errors import ConfigError, UntrustedError
from tapestry_finetune.base import Base
from tapestry_finetune.bundle import Bundle
from tapestry_finetune.export.architectures import architecture_of
from tapestry_finetune.export.commands import app
from tapestry_finetune.export.exporting import Exported, Order, export
from tapestry_finetune.export.gguf_files import Described, write_gguf
from tapestry_finetune.export.reading_back import (
    PROMPTS,
    compare,
    load_gguf,
    predictions,
    require_agreement,
)
from tapestry_finetune.export.vocabulary import vocabulary_of
from tests.conftest import Federation
from tests.finetune.llama_cpp import llama_cpp
from tests.finetune.tiny_models import make_localized, make_model
from tests.pretrained import smollm2

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
DIALOGUE = [
    {"role": "system", "content": "Weef vriendelijk."},
    {"role": "user", "content": "Hallo <|im_end|> daar"},
    {"role": "assistant", "content": "Dag!"},
    {"role": "user", "content": "Waar is het weefgetouw?"},
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "qwen3": make_model(folder / "qwen3", "qwen3"),
        "qwen3 of bytes": make_model(folder / "bytes", "qwen3", is_bytes=True),
        "llama": make_model(folder / "llama", "llama"),
        "llama untied": make_model(folder / "untied", "llama", is_tied=False),
    }


@pytest.fixture(scope="module")
def bundles(bases: dict[str, Base], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    new = ("weefgetouw", "\u0b9a\u0ba3\u0bb2\u0bcd")
    return {
        "llama": make_localized(folder / "llama", bases["llama"]),
        "qwen3": make_localized(folder / "qwen3", bases["qwen3"]),
        "rows": make_localized(folder / "rows", bases["qwen3"], rows=True),
        "new tokens": make_localized(folder / "new", bases["llama"], rows=True, new_tokens=new),
        "kept": make_localized(folder / "kept", bases["llama"], redistribute=False),
    }


def exported(
    base: Base,
    bundle: Bundle | None,
    format_name: str,
    out: Path,
    *,
    type_name: str | None = None,
    is_forced: bool = False,
) -> Exported:
    order = Order(
        base=base,
        bundle=bundle,
        format=format_name,
        out=out,
        type_name=type_name,
        is_forced=is_forced,
    )
    return export(order, on_progress=lambda *_said, **_unit: None)


def greedy(module: Any, tokenizer: Any, ids: list[int], most: int) -> list[int]:
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    with torch.inference_mode():
        done = module.generate(
            torch.tensor([ids]), max_new_tokens=most, do_sample=False, eos_token_id=ends
        )
    return list(done[0, len(ids) :].tolist())


def same_in_llama_cpp(path: Path, module: Any, tokenizer: Any, prompts: tuple[str, ...]) -> None:
    """Compare tokens of the prompts, and what follows them, with those of llama.cpp."""
    with llama_cpp(path) as engine:
        for prompt in prompts:
            ids = list(tokenizer(prompt)["input_ids"])
            assert engine.tokens(prompt) == ids
            assert engine.greedy(ids, 8) == greedy(module, tokenizer, ids, 8), prompt
        shown = tokenizer.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=True)
        assert engine.templated(DIALOGUE) == shown


# What another program's engine makes of it


@pytest.mark.parametrize("kind", ["qwen3", "qwen3 of bytes", "llama", "llama untied"])
def test_llama_cpp_reads_the_same_tokens_and_writes_the_same_text(
    bases: dict[str, Base], kind: str, tmp_path: Path
) -> None:
    base = bases[kind]
    done = exported(base, None, "gguf", tmp_path / "a.gguf", type_name="f32")
    assert done.agreement.prompts == 20
    assert (done.agreement.same_first, done.agreement.divergence) == (1.0, pytest.approx(0))
    same_in_llama_cpp(done.out, base.load("cpu"), base.tokenizer(), PROMPTS)


def test_llama_cpp_reads_new_tokens_and_changed_rows(
    bases: dict[str, Base], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    bundle = bundles["new tokens"]
    done = exported(bases["llama"], bundle, "gguf", tmp_path / "a.gguf", type_name="f32")
    merged = exported(bases["llama"], bundle, "merged", tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(merged.out)
    assert "weefgetouw" in tokenizer.tokenize("het weefgetouw")
    module = AutoModelForCausalLM.from_pretrained(merged.out)
    assert module.get_input_embeddings().num_embeddings == len(tokenizer)
    prompts = ("het weefgetouw van \u0b9a\u0ba3\u0bb2\u0bcd", *PROMPTS[:6])
    same_in_llama_cpp(done.out, module, tokenizer, prompts)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_llama_cpp_adds_the_adapter_as_peft_does(
    bases: dict[str, Base], bundles: dict[str, Bundle], kind: str, tmp_path: Path
) -> None:
    base, bundle = bases[kind], bundles[kind]
    whole = exported(base, None, "gguf", tmp_path / "base.gguf", type_name="f32")
    added = exported(base, bundle, "gguf-lora", tmp_path / "lora.gguf")
    plain, tokenizer = base.load("cpu"), base.tokenizer()
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS[:8]]
    untouched = [greedy(plain, tokenizer, one, 8) for one in ids]
    adapted = PeftModel.from_pretrained(plain, str(bundle.folder)).eval()
    expected = [greedy(adapted, tokenizer, one, 8) for one in ids]
    assert expected != untouched, "the adapter changes something"
    with llama_cpp(whole.out, adapter=added.out) as engine:
        assert [engine.greedy(one, 8) for one in ids] == expected


@pytest.mark.slow
def test_a_real_assistant_says_the_same_in_llama_cpp(tmp_path: Path) -> None:
    folder = smollm2()
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    out = tmp_path / "smollm2.gguf"
    described = Described(name="smollm2", licence="apache-2.0")
    write_gguf(out, module, tokenizer, described=described, type_name="f16")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with llama_cpp(out) as engine:
        for prompt in PROMPTS:
            assert engine.tokens(prompt) == list(tokenizer(prompt)["input_ids"])
        text = engine.templated(question)
        ids = list(tokenizer(text)["input_ids"])
        said = engine.greedy(ids, 12)
    assert said == greedy(module, tokenizer, ids, 12)
    assert "Paris" in tokenizer.decode(said)


# What is in the files


@pytest.mark.parametrize("kind", ["llama", "qwen3", "rows", "new tokens"])
def test_merged_is_base_plus_scaled_product_plus_rows(
    bases: dict[str, Base], bundles: dict[str, Bundle], kind: str, tmp_path: Path
) -> None:
    bundle = bundles[kind]
    base = bases["qwen3" if kind in {"qwen3", "rows"} else "llama"]
    done = exported(base, bundle, "merged", tmp_path / "merged")
    before = load_file(base.folder / "model.safetensors")
    after = load_file(done.out / "model.safetensors")
    lora = load_file(bundle.folder / "adapter_model.safetensors")
    scale = 6 / 4  # lora_alpha over r
    for name, weight in before.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        expected = weight
        if f"{module}.lora_A.weight" in lora:
            first, second = (lora[f"{module}.lora_{factor}.weight"] for factor in "AB")
            expected = weight + scale * second @ first
        if name == "model.embed_tokens.weight" and kind in {"rows", "new tokens"}:
            change = bundle.deltas().rows[name]
            expected = torch.cat([weight, change.new])
            expected[change.rows] += change.delta
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=1e-5)
    assert before.keys() == after.keys()
    assert done.agreement.divergence < 1e-9, "merged predicts what the adapter predicts"
    assert (done.out / "lineage.json").is_file()


def test_an_adapter_file_holds_llama_cpps_formula(
    bases: dict[str, Base], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    done = exported(bases["llama"], bundles["llama"], "gguf-lora", tmp_path / "lora.gguf")
    reader = gguf.GGUFReader(done.out)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 6.0
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    lora = load_file(bundles["llama"].folder / "adapter_model.safetensors")
    assert len(tensors) == len(lora) == 2 * 7 * 2
    theirs = LlamaTensorProcessor()
    for layer in range(2):
        for ours, name, heads in (("q", "attn_q", 4), ("k", "attn_k", 2), ("v", "attn_v", 0)):
            peft = f"base_model.model.model.layers.{layer}.self_attn.{ours}_proj"
            second = tensors[f"blk.{layer}.{name}.weight.lora_b"]
            if heads:  # as transformers undoes what llama.cpp's converter does
                undo = getattr(theirs, "_reverse_permute_weights")  # noqa: B009
                second = undo(second, heads, heads)
            np.testing.assert_array_equal(second, lora[f"{peft}.lora_B.weight"].numpy())
            first = tensors[f"blk.{layer}.{name}.weight.lora_a"]
            np.testing.assert_array_equal(first, lora[f"{peft}.lora_A.weight"].numpy())
        down = tensors[f"blk.{layer}.ffn_down.weight.lora_b"]
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_B.weight"
        np.testing.assert_array_equal(down, lora[name].numpy())


def test_the_file_says_where_it_comes_from_and_how_it_talks(
    bases: dict[str, Base], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    base, bundle = bases["qwen3"], bundles["rows"]
    done = exported(base, bundle, "gguf", tmp_path / "a.gguf")
    said = {name: f.contents() for name, f in gguf.GGUFReader(done.out).fields.items()}
    assert said["general.name"] == "ours"
    assert said["general.license"] == "CC-BY-NC-4.0"
    assert said["general.base_model.count"] == 1
    assert base.identity.tensors[:12] in said["general.base_model.0.name"]
    assert said["tapestry.consensus.tensors"] == base.identity.tensors
    assert said["tapestry.bundle.lineage"] == bundle.digest
    assert said["tapestry.bundle.key"] == bundle.key
    assert said["tokenizer.ggml.pre"] == "qwen2"
    template = said["tokenizer.chat_template"]
    assert "<|im_start|>" in template
    assert "generation %}" not in template
    tokens = said["tokenizer.ggml.tokens"]
    kinds = dict(zip(tokens, said["tokenizer.ggml.token_type"], strict=True))
    assert tokens[said["tokenizer.ggml.eos_token_id"]] == "<|endoftext|>"
    assert tokens[said["tokenizer.ggml.eot_token_id"]] == "<|im_end|>"
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert kinds["<|im_start|>"] == gguf.TokenType.CONTROL
    assert kinds["a"] == gguf.TokenType.NORMAL
    assert not any("/" in str(value) for key, value in said.items() if "general" in key)


def test_fewer_bits_are_smaller_files_and_coarser_predictions(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = make_model(tmp_path_factory.mktemp("wide") / "m", "qwen3", initializer_range=0.05)
    done = {
        kind: exported(base, None, "gguf", tmp_path / f"{kind}.gguf", type_name=kind)
        for kind in ("f32", "f16", "q8_0", "q4_0")
    }
    sizes = [done[kind].size_bytes for kind in ("f32", "f16", "q8_0", "q4_0")]
    assert sizes == sorted(sizes, reverse=True)
    apart = [done[kind].agreement.divergence for kind in ("f32", "f16", "q8_0", "q4_0")]
    assert apart == sorted(apart)
    assert apart[0] < 1e-9 < apart[2]
    kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(done["q4_0"].out).tensors}
    assert kinds["blk.0.ffn_up.weight"] == gguf.GGMLQuantizationType.Q4_0
    assert kinds["token_embd.weight"] == gguf.GGMLQuantizationType.Q8_0
    assert kinds["output_norm.weight"] == gguf.GGMLQuantizationType.F32


def test_rows_that_do_not_fill_blocks_stay_wide_and_that_is_said(tmp_path: Path) -> None:
    base = make_model(tmp_path / "m", "llama", intermediate_size=72)
    done = exported(base, None, "gguf", tmp_path / "a.gguf", type_name="q8_0")
    assert done.remarks == ["2 tensors have rows that are no multiple of 32, and stay 16 bits wide"]


def test_an_exported_adapter_loads_in_plain_peft(
    bases: dict[str, Base], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    done = exported(bases["llama"], bundles["llama"], "adapter", tmp_path / "adapter")
    assert {path.name for path in done.out.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "README.md", "lineage.json",
    }  # fmt: skip
    assert done.agreement.divergence == pytest.approx(0, abs=1e-12)


# What is refused


@pytest.mark.parametrize(
    ("kind", "says"), [("rows", "rows of the embedding"), ("new tokens", "2 new tokens")]
)
def test_what_an_adapter_cannot_hold_is_refused_with_advice(
    bases: dict[str, Base], bundles: dict[str, Bundle], tmp_path: Path, kind: str, says: str
) -> None:
    base = bases["qwen3" if kind == "rows" else "llama"]
    for format_name in ("gguf-lora", "adapter"):
        with pytest.raises(ConfigError, match=f"{says}.*Use --format merged or gguf"):
            exported(base, bundles[kind], format_name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_community_keeps_is_not_exported_unless_forced(
    bases: dict[str, Base], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    for format_name in ("merged", "gguf", "gguf-lora"):
        with pytest.raises(ConfigError, match=r"redistribute = false \(licence: CC-BY-NC-4\.0\)"):
            exported(bases["llama"], bundles["kept"], format_name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    exported(bases["llama"], bundles["kept"], "adapter", tmp_path / "adapter")
    exported(bases["llama"], bundles["kept"], "gguf-lora", tmp_path / "out", is_forced=True)


def test_another_base_is_refused_with_the_offer_to_rebase(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", "llama", initializer_range=0.31)
    with pytest.raises(UntrustedError, match="tapestry finetune rebase"):
        exported(other, bundles["llama"], "gguf", tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "positions of type 'linear'",
        ),
    ],
)
def test_what_gguf_cannot_say_of_a_model_is_refused(
    more: dict[str, Any], says: str, tmp_path: Path
) -> None:
    base = make_model(tmp_path / "m", "llama", **more)
    with pytest.raises(ConfigError, match=says):
        exported(base, None, "gguf", tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_another_architecture_is_refused() -> None:
    class Config:
        model_type = "gpt_neox"

    with pytest.raises(ConfigError, match=r"llama and qwen3, this model is 'gpt_neox'.*`merged`"):
        architecture_of(Config())


def wrapped(tokenizer: Tokenizer) -> Any:
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def altered(**parts: Any) -> Tokenizer:
    table = json.loads(train_tokenizer(PROMPTS, vocabulary_size=300).to_str())
    for name, part in parts.items():
        table[name] = (table[name] or {}) | part if isinstance(part, dict) else part
    return Tokenizer.from_str(json.dumps(table))


def cutting(*steps: Any) -> Tokenizer:
    made = train_tokenizer(PROMPTS, vocabulary_size=300)
    made.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return made


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_how_a_tokenizer_cuts_is_recognised_by_what_it_does() -> None:
    ours = train_tokenizer(PROMPTS, vocabulary_size=300)
    assert vocabulary_of(wrapped(ours), rows=310).pre == "qwen2"
    assert vocabulary_of(wrapped(cutting(_GPT2)), rows=300).pre == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    assert vocabulary_of(wrapped(cutting(digits, _GPT2)), rows=300).pre == "smollm"
    llama3 = cutting(pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), _BYTES)
    llama3.model.ignore_merges = True
    assert vocabulary_of(wrapped(llama3), rows=300).pre == "llama-bpe"
    composed = vocabulary_of(wrapped(altered(normalizer={"type": "NFC"})), rows=300)
    assert composed.remarks == ["llama.cpp does not compose letters (NFC) as the tokenizer does"]
    unused = vocabulary_of(wrapped(ours), rows=310).kinds[-10:]
    assert unused == [int(gguf.TokenType.UNUSED)] * 10


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (cutting(pre_tokenizers.Split(Regex(r"\w+"), "isolated"), _BYTES), r"how this .*\\w\+"),
        (cutting(pre_tokenizers.Digits(individual_digits=False), _GPT2), "Known: qwen2, llama-bpe"),
        (cutting(pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), _BYTES), "does not take whole"),
        (altered(normalizer={"type": "Lowercase"}), "no normalizer like this .*Lowercase"),
        (altered(model={"byte_fallback": True}), "BPE with byte fallback"),
    ],
    ids=["own expression", "digits together", "merges first", "lower case", "byte fallback"],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    tokenizer: Tokenizer, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        vocabulary_of(wrapped(tokenizer), rows=300)


def test_another_kind_of_tokenizer_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "<|padding|>": 1}, "<|endoftext|>"))
    with pytest.raises(ConfigError, match="byte-level BPE, this tokenizer is WordLevel"):
        vocabulary_of(wrapped(words), rows=2)


def test_an_export_that_predicts_something_else_does_not_get_its_name(
    bases: dict[str, Base], tmp_path: Path
) -> None:
    base = bases["llama"]
    module, tokenizer = base.load("cpu"), base.tokenizer()
    expected = predictions(module, tokenizer)
    path = tmp_path / "a.gguf"
    described = Described(name="a")
    write_gguf(path, module, tokenizer, described=described, type_name="f32")
    found = compare(expected, predictions(load_gguf(path), tokenizer))
    require_agreement(found, type_name="f32", where=path)
    with torch.no_grad():  # what a converter does that forgets the order of llama's rows
        rows = module.model.layers[0].self_attn.q_proj.weight
        rows.copy_(rows.reshape(4, 8, 2, -1).swapaxes(1, 2).reshape(rows.shape))
    wrong = compare(expected, predictions(module, tokenizer))
    for type_name in ("f32", "f16", "q8_0"):
        with pytest.raises(ConfigError, match="not written: loaded back it predicts something"):
            require_agreement(wrong, type_name=type_name, where=path)


def test_a_published_checkpoint_says_which_it_is_and_an_altered_one_is_refused(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verified = verify_checkpoint(federation.newest)
    where = ["--federation", verified.genesis_digest[:16], "--format", "gguf", "--type", "f32"]
    assert run(federation.newest, *where, "--out", tmp_path / "a.gguf") == 0
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tapestry.consensus.manifest"].contents() == verified.manifest_digest
    assert fields["tapestry.consensus.federation"].contents() == verified.genesis_digest
    assert fields["general.base_model.0.version"].contents() == "round 1"
    altered = tmp_path / "altered"
    shutil.copytree(federation.newest, altered)
    model = altered / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-5] ^= 1
    model.write_bytes(content)
    assert run(altered, *where, "--out", tmp_path / "b.gguf") == 1
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "b.gguf").exists()


class _FullError(Exception):
    pass


@pytest.mark.parametrize("format_name", ["gguf", "merged", "gguf-lora"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, _FullError])
def test_an_interrupted_export_leaves_nothing(
    bases: dict[str, Base],
    bundles: dict[str, Bundle],
    format_name: str,
    error: type[BaseException],
    tmp_path: Path,
) -> None:
    begun = []

    def on_progress(what: str, done: float = 0, of: float = 0, *, unit: str = "") -> None:
        begun.append(what)
        halfway = unit == "bytes" and done > of / 2
        if halfway or begun.count("predicting 20 prompts") == 2:
            assert list(tmp_path.iterdir()), "something is under way"
            raise error

    order = Order(
        base=bases["qwen3"],
        bundle=bundles["qwen3"],
        format=format_name,
        out=tmp_path / "out",
        type_name=None,
        is_forced=False,
    )
    with pytest.raises(error):
        export(order, on_progress=on_progress)
    assert list(tmp_path.iterdir()) == []


# The command


def run(*arguments: object) -> int:
    return run_app(app, ["export", *map(str, arguments)])


def test_the_command_writes_and_tells(
    bases: dict[str, Base],
    bundles: dict[str, Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, base = bundles["qwen3"].folder, bases["qwen3"].folder
    where = ["--base", base, "--unverified", "--format", "gguf"]
    assert run(bundle, *where, "--out", tmp_path / "a.gguf") == 0
    said = capsys.readouterr().out
    assert "loaded back  20 prompts, 725 predictions" in said
    assert f"llama-cli -m {tmp_path / 'a.gguf'}" in said
    assert run(bundle, *where, "--out", tmp_path / "b.gguf", "--type", "q8_0", "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["type_name"], table["agreement"]["prompts"]) == ("q8_0", 20)
    assert table["size_bytes"] == (tmp_path / "b.gguf").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "onnx"], "--format onnx: choose one of adapter, merged, gguf, gguf-lora"),
        (["--format", "merged", "--type", "q4_0"], "merged is written as f16 or f32"),
        (["--format", "gguf-lora"], "takes a bundle, this is a whole model"),
    ],
)
def test_a_wrong_order_is_one_line(
    bases: dict[str, Base],
    arguments: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ["--out", tmp_path / "out", "--unverified"]
    assert run(bases["llama"].folder, *arguments, *out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_bundle_without_its_base_and_a_place_that_is_taken_are_refused(
    bases: dict[str, Base],
    bundles: dict[str, Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, base = bundles["llama"].folder, bases["llama"].folder
    assert run(bundle, "--format", "gguf", "--out", tmp_path / "a") == 1
    assert "made for an unverified model" not in capsys.readouterr().out
    assert run(base, "--format", "gguf", "--out", tmp_path / "a") == 1
    assert "not a published checkpoint" in capsys.readouterr().err
    where = ["--base", base, "--unverified", "--format", "gguf", "--out", tmp_path]
    assert run(bundle, *where) == 1
    assert f"{tmp_path}: exists already" in capsys.readouterr().err
