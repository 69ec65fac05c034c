"""A bundle is what its community signed, lies on its own base only, and plain peft loads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tapestry.checkpoints.folder import read_envelope
from tapestry.errors import ConfigError, TapestryError, UntrustedError
from tapestry.identity.envelopes import to_json
from tapestry_finetune.adapting import adapt, quiet, write_changes
from tapestry_finetune.assistants import load_assistant
from tapestry_finetune.base import Base, open_base
from tapestry_finetune.bundle import community_key, open_bundle, require_base
from tapestry_finetune.deltas import applied, read_deltas
from tapestry_finetune.lineage import Localization
from tapestry_finetune.scoring import continuation_likelihoods
from tests.coordinator.small import Small
from tests.finetune.conftest import KEY, Localized
from tests.finetune.consensus import next_round, teach
from tests.finetune.consensus import ours as own_texts

IDS = torch.tensor([[5, 6, 7, 8, 90, 91]])


@pytest.fixture
def copy(localized: Localized, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(localized.bundle.folder, folder)
    return folder


def test_these_are_the_files_and_none_holds_a_path_or_a_pickle(
    localized: Localized, base: Base
) -> None:
    names = sorted(path.name for path in localized.bundle.folder.iterdir())
    assert names == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors"),
        *("chat_template.jinja", "deltas.safetensors", "evaluation.html", "evaluation.json"),
        *("lineage.json", "recipe.json"),
    ]
    for path in localized.bundle.folder.iterdir():
        assert str(base.folder).encode() not in path.read_bytes(), path.name
        assert str(localized.recipe.parent).encode() not in path.read_bytes(), path.name


def test_the_lineage_names_base_data_and_stages(localized: Localized, base: Base) -> None:
    said = localized.bundle.lineage
    assert said.base.manifest == base.identity.manifest
    assert said.base.round == 0
    assert [stage.name for stage in said.stages] == ["language", "instruct", "values"]
    assert [stage.steps for stage in said.stages] == [60, 20, 12]
    assert {source.name for source in said.sources} == {"text.jsonl", "chats.jsonl", "pairs.jsonl"}
    assert said.stages[0].replay == 0.1
    assert said.parent is None
    assert said.evaluation is not None


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "deltas.safetensors", "README.md"])
def test_one_changed_byte_is_found_and_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UntrustedError, match=f"{name}: changed since the community signed it"):
        open_bundle(copy)


def test_a_missing_and_an_added_file_are_named(copy: Path) -> None:
    (copy / "more.bin").write_bytes(b"x")
    with pytest.raises(UntrustedError, match=r"more\.bin: the community did not sign this file"):
        open_bundle(copy)
    (copy / "more.bin").unlink()
    (copy / "recipe.json").unlink()
    with pytest.raises(UntrustedError, match=r"recipe\.json: missing"):
        open_bundle(copy)


def test_who_changes_the_lineage_must_sign_it(copy: Path) -> None:
    envelope = read_envelope(copy / "lineage.json", what="lineage")
    table = json.loads((copy / "lineage.json").read_text(encoding="utf-8"))
    import base64  # noqa: PLC0415

    payload = envelope.payload.replace(b'"seed":0', b'"seed":1')
    assert payload != envelope.payload
    table["payload"] = base64.b64encode(payload).decode()
    (copy / "lineage.json").write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(UntrustedError, match="lineage"):
        open_bundle(copy)


def test_another_communitys_signature_is_told_by_its_fingerprint(
    copy: Path, localized: Localized, tmp_path: Path
) -> None:
    ours = localized.bundle.key
    assert open_bundle(copy, key=ours[:16]).key == ours
    stranger = community_key(tmp_path / "stranger")
    said = localized.bundle.lineage
    from tapestry.identity.keys import public_bytes  # noqa: PLC0415

    forged: Localization = said.model_copy(update={"key": public_bytes(stranger).hex()})
    (copy / "lineage.json").write_bytes(to_json(forged.signed(stranger)))
    open_bundle(copy)  # consistent in itself
    with pytest.raises(UntrustedError, match="not this community's"):
        open_bundle(copy, key=ours[:16])
    with pytest.raises(ConfigError, match="at least 16 digits"):
        open_bundle(copy, key="abcd")


def test_a_communitys_key_is_its_own_to_read(tmp_path: Path) -> None:
    first = community_key(tmp_path / "identity")
    assert (tmp_path / "identity" / "signing.key").stat().st_mode & 0o777 == 0o600
    assert community_key(tmp_path / "identity").private_bytes_raw() == first.private_bytes_raw()


@given(data=st.binary(max_size=300))
def test_what_is_no_lineage_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "lineage.json").write_bytes(data)
    with pytest.raises(TapestryError) as caught:
        open_bundle(folder)
    assert len(str(caught.value).splitlines()) == 1


def _other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


def _other_architecture(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["more"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")


def _other_values(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_tokenizer, "another tokenizer: train anew"),
        (_other_architecture, "another architecture: train anew"),
        (_other_values, r"Carry it over: tapestry finetune rebase \S+ --onto"),
    ],
)
def test_it_is_not_laid_on_another_base(
    localized: Localized, base: Base, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(base.folder, folder)
    change(folder)
    other = open_base(folder, unverified=True)
    with pytest.raises(UntrustedError, match=said):
        load_assistant(other, {"ours": localized.bundle})


def test_a_base_that_is_not_what_its_federation_published_is_refused(
    base: Base, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(base.folder, folder)
    _other_values(folder)
    with pytest.raises(UntrustedError, match=r"model\.safetensors: .* the manifest says"):
        open_base(folder)
    assert open_base(folder, unverified=True).identity.manifest is None
    shutil.rmtree(folder / "tapestry")
    with pytest.raises(UntrustedError, match=r"not a published checkpoint\. --unverified takes"):
        open_base(folder)


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(input_ids=IDS, use_cache=False).logits
    return found


def test_base_and_bundle_speak_in_turn_from_one_model(localized: Localized, base: Base) -> None:
    assistant = load_assistant(base, {"ours": localized.bundle, "again": localized.bundle})
    untouched = logits(base.load("cpu"))
    seen = []
    for _ in range(2):
        with assistant.speaking_as(None) as voice:
            assert torch.equal(logits(voice.module), untouched)
        for name in ("ours", "again"):
            with assistant.speaking_as(name) as voice:
                seen.append(logits(voice.module))
    assert not torch.allclose(seen[0], untouched, atol=0.1)
    assert all(torch.equal(one, seen[0]) for one in seen)
    with pytest.raises(ConfigError, match="no model 'x' here; there are: ours, again"):
        assistant.speaking_as("x").__enter__()


def test_plain_peft_and_the_deltas_are_the_same_model(localized: Localized, base: Base) -> None:
    assistant = load_assistant(base, {"ours": localized.bundle})
    with assistant.speaking_as("ours") as voice:
        expected = logits(voice.module)
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    deltas = read_deltas(localized.bundle.folder / "deltas.safetensors")
    with quiet():
        wrapped = PeftModel.from_pretrained(plain, localized.bundle.folder).eval()
    with applied(plain, deltas):
        torch.testing.assert_close(logits(wrapped), expected)
        merged = wrapped.merge_and_unload(safe_merge=True)
        torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


def test_a_full_run_comes_out_as_a_patch_that_is_nearly_the_model(
    base: Base, tmp_path: Path
) -> None:
    module = base.load("cpu")
    tokenizer = base.tokenizer().backend_tokenizer
    adapted = adapt(module, "full", rank=8, seed=0)
    teach(module, tokenizer, own_texts(), steps=10, seed=1)
    with torch.no_grad():
        expected = module(input_ids=IDS, use_cache=False).logits
    write_changes(tmp_path, adapted, base)
    plain = base.load("cpu")
    deltas = read_deltas(tmp_path / "deltas.safetensors")
    assert set(deltas.rows) == {"model.embed_tokens.weight"}
    assert all("norm" in name for name in deltas.dense)
    with quiet():
        wrapped = PeftModel.from_pretrained(plain, tmp_path).eval()
    with applied(plain, deltas):
        torch.testing.assert_close(logits(wrapped), expected, atol=1e-2, rtol=1e-2)


def test_deltas_that_do_not_fit_change_nothing(localized: Localized, base: Base) -> None:
    module = base.load("cpu")
    before = logits(module)
    deltas = read_deltas(localized.bundle.folder / "deltas.safetensors")
    (name,) = deltas.rows
    change = deltas.rows[name]
    from dataclasses import replace  # noqa: PLC0415

    wide = replace(change, delta=torch.zeros(len(change.rows), 3), new=torch.zeros(0, 3))
    far = replace(change, rows=change.rows + 10_000)
    for wrong in (wide, far):
        changed = replace(deltas, rows={name: wrong})
        with pytest.raises(UntrustedError, match="the base"), applied(module, changed):
            pass
        assert torch.equal(logits(module), before)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.rows": torch.tensor([0])},
        {"a.rows": torch.tensor([0]), "a.delta": torch.zeros(2, 3)},
        {"a.rows": torch.tensor([-1]), "a.delta": torch.zeros(1, 3)},
        {"a.rows": torch.tensor([0.0]), "a.delta": torch.zeros(1, 3)},
        {"strange": torch.zeros(1)},
    ],
)
def test_a_damaged_file_of_deltas_is_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    save_file(tensors, tmp_path / "deltas.safetensors")
    with pytest.raises(UntrustedError):
        read_deltas(tmp_path / "deltas.safetensors")
    (tmp_path / "deltas.safetensors").write_bytes(b"no")
    with pytest.raises(UntrustedError, match="not a safetensors file"):
        read_deltas(tmp_path / "deltas.safetensors")


def test_the_next_round_is_another_base(consensus: Small, base: Base, tmp_path: Path) -> None:
    copied = tmp_path / "fed"
    shutil.copytree(consensus.home.folder, copied)
    from tapestry_coordinator.home import CoordinatorHome  # noqa: PLC0415

    newer = next_round(
        Small(CoordinatorHome(copied)), lambda m, t: teach(m, t, own_texts(), steps=2, seed=3)
    )
    found = open_base(newer)
    assert found.identity.round == 1
    assert found.identity.architecture == base.identity.architecture
    assert found.identity.tokenizer == base.identity.tokenizer
    assert found.identity.tensors != base.identity.tensors
    assert found.replay() == base.replay() != []


def test_held_out_text_became_likelier(localized: Localized, base: Base) -> None:
    assistant = load_assistant(base, {"ours": localized.bundle})
    text = own_texts(3, seed=99)

    def nats(name: str | None) -> float:
        with assistant.speaking_as(name) as voice:
            pairs = [([0], voice.tokenizer.encode(one)) for one in text]
            return -sum(continuation_likelihoods(voice, pairs))

    assert nats("ours") < 0.5 * nats(None)
    require_base(localized.bundle, base)
    assert localized.bundle.lineage.key == KEY.public_key().public_bytes_raw().hex()
