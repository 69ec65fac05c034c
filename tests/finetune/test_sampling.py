"""A model continues a text: the same with the same seed, and only what is a model."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tapestry.errors import ConfigError
from tapestry.objectives.sampling import sample_text
from tests.conftest import Federation


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give the number of threads back that sampling has chosen."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sample(
    folder: Path,
    *,
    prompt: str = "de wever",
    tokens: int = 8,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    return sample_text(folder, prompt=prompt, tokens=tokens, temperature=temperature, seed=seed)


def test_the_same_seed_gives_the_same_text(federation: Federation) -> None:
    torch.manual_seed(99)  # what was drawn before does not matter
    first = sample(federation.newest)
    torch.rand(7)
    assert sample(federation.newest) == first


def test_other_seeds_give_other_texts(federation: Federation) -> None:
    assert len({sample(federation.newest, seed=seed) for seed in range(4)}) == 4


def test_without_temperature_the_likeliest_token_is_taken(federation: Federation) -> None:
    texts = {sample(federation.newest, temperature=0.0, seed=seed) for seed in range(3)}
    assert len(texts) == 1


def test_a_text_begins_with_its_prompt(federation: Federation) -> None:
    assert sample(federation.newest, prompt="мова ").startswith("мова ")
    assert sample(federation.newest, prompt="", tokens=4)


def test_a_longer_text_begins_like_the_shorter(federation: Federation) -> None:
    shorter = sample(federation.newest, temperature=0.0, tokens=3)
    longer = sample(federation.newest, temperature=0.0, tokens=12)
    assert longer.startswith(shorter)
    assert len(longer) > len(shorter)


# What is not a model


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _mistype_config(folder: Path) -> None:
    change(folder / "config.json", hidden_size="wide")


def _widen_config(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=64)


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        _remove_weights,
        _pickled_weights,
        _cut_weights,
        _remove_config,
        _mistype_config,
        _widen_config,
        _remove_tokenizer,
        _damage_tokenizer,
    ],
)
def test_a_folder_without_a_whole_model_is_named_in_one_line(
    federation: Federation, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(federation.newest, copy)
    damage(copy)
    with pytest.raises(ConfigError) as caught:
        sample(copy)
    assert str(caught.value).startswith(f"{copy}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_holds_nothing_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"{name}: (no such folder|has no)"):
        sample(tmp_path / name)


@pytest.mark.parametrize("tokens", [0, -3])
def test_a_number_of_tokens_that_is_none_is_refused(federation: Federation, tokens: int) -> None:
    with pytest.raises(ConfigError):
        sample(federation.newest, tokens=tokens)


def test_nobody_is_asked_whether_the_models_own_code_may_run(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(federation.newest, copy)
    (copy / "loom.py").write_text("raise SystemExit")
    code = {"AutoConfig": "loom.Config", "AutoTokenizer": ["loom.Tokenizer", None]}
    change(copy / "config.json", model_type="loom", auto_map=code)
    (copy / "tokenizer_config.json").unlink()
    answers = io.StringIO("n\n" * 4)
    monkeypatch.setattr("sys.stdin", answers)
    with pytest.raises(ConfigError, match="cannot be loaded as a causal language model"):
        sample(copy)
    assert answers.tell() == 0, "the user was asked to run code of whoever made the folder"
