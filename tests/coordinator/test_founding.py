"""Making a federation: all of it, or nothing."""

import json
import stat
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.config import Settings
from tapestry.data.tokenizer import byte_tokenizer, tokenizer_files
from tapestry.errors import ConfigError
from tapestry.identity.certificates import fingerprint
from tapestry.identity.keys import public_bytes
from tapestry.objectives.causal_lm import CausalLM
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.database import database_url
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome, require_home
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.settings import CoordinatorSettings, InnerTable, NetworkSettings
from tests.coordinator.small import FOUNDED_AT, FewNumbers, found_small
from tests.coordinator.small import settings_for as small_settings

FEW = Founding(federation="loom", objective=FewNumbers(3), create={}, pool=[], seed=7)


def settings_for(inner: InnerTable) -> CoordinatorSettings:
    network = NetworkSettings(address="localhost:7443", enrolment_address="localhost:7444")
    return CoordinatorSettings(network=network, inner=inner)


def found_in(folder: Path, founding: Founding = FEW) -> CoordinatorHome:
    found(folder, founding, settings_for, now=FOUNDED_AT)
    return require_home(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# What is there afterwards


def test_a_federation_is_founded_with_a_verified_genesis(tmp_path: Path) -> None:
    home = found_in(tmp_path / "fed")
    verified = verify_checkpoint(home.checkpoint(0))
    origin = verified.lineage.origin
    assert (origin.federation, origin.objective, origin.seed) == ("loom", "causal-lm", 7)
    assert origin.settings == {"elements": 3}
    assert verified.manifest.created_at == FOUNDED_AT
    assert origin.coordinator_key == public_bytes(home.load_signing_key()).hex()
    root = home.load_authority().certificate_pem
    assert origin.root_certificate == fingerprint(root).hex()
    assert list(open_vector_file(home.checkpoint(0) / MODEL_FILE).vector) == [1.0, 1.0, 1.0]


def test_the_registry_knows_the_genesis(tmp_path: Path) -> None:
    home = found_in(tmp_path / "fed")
    registry = Registry(database_url(home))
    verified = verify_checkpoint(home.checkpoint(0))
    assert registry.newest_round() == 0
    assert registry.round_of(verified.manifest_digest) == 0
    assert registry.members() == []
    registry.close()


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    home = found_in(tmp_path / "fed")
    for folder in (home.folder, home.ca, home.signing_key.parent):
        assert mode(folder) == 0o700, folder
    secrets = [home.ca / "root.key", home.signing_key, home.tls_key]
    for path in secrets:
        assert mode(path) == 0o600, path
    keys = [p for p in home.folder.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()]
    assert sorted(keys) == sorted(secrets), "no other file holds a private key"


def test_two_federations_share_no_key(tmp_path: Path) -> None:
    homes = [found_in(tmp_path / name) for name in ("one", "two")]
    for name in ("ca/root.key", "ca/root.crt", "identity/signing.key", "identity/tls.key"):
        first, second = (home.folder / name for home in homes)
        assert first.read_bytes() != second.read_bytes(), name


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    founding = replace(FEW, objective=CausalLM(), create={"size": "tiny"})
    roots = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        home = found_in(tmp_path / name, replace(founding, seed=seed))
        roots.append(verify_checkpoint(home.checkpoint(0)).manifest.vector_root)
    assert roots[0] == roots[1] != roots[2]


def test_an_empty_folder_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "fed").mkdir()
    home = found_in(tmp_path / "fed")
    assert mode(home.folder) == 0o700


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    verify_checkpoint(found_in(tmp_path / "a" / "b" / "fed").checkpoint(0))


# The settings file


def test_the_settings_file_is_toml_with_comments_and_loads_back(tmp_path: Path) -> None:
    home = found_in(tmp_path / "fed")
    text = (home.folder / "coordinator.toml").read_text(encoding="utf-8")
    settings = home.load_settings()
    assert tomllib.loads(text) == settings.model_dump()
    assert "# Fewest contributions that make an update; with fewer the base stays" in text
    for table_name in CoordinatorSettings.model_fields:
        assert f"\n[{table_name}]\n" in text
        table: Settings = getattr(settings, table_name)
        for key in type(table).model_fields:
            assert f"\n{key} = " in text


def test_settings_are_written_and_read_again_as_they_are(tmp_path: Path) -> None:
    changed = small_settings(InnerTable(steps=1, sequences=1, sequence_tokens=8, learning_rate=0.1))
    settings_module.save(tmp_path, changed)
    assert settings_module.load(tmp_path) == changed


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("quorum = 2", "qourum = 2", r"rounds\.qourum: unknown key; did you mean quorum\?"),
        ("[rounds]", "[round]", r"round: unknown key; did you mean rounds\?"),
        ("quorum = 2", "quorum = 0", r"rounds\.quorum: .*greater than or equal to 1"),
        ("quorum = 2", 'quorum = "two"', r"rounds\.quorum: .*valid integer"),
        ("grace_seconds = 300.0", "grace_seconds = nan", r"rounds\.grace_seconds: .*finite"),
        ("quorum = 2", "quorum = ", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_settings_is_named(tmp_path: Path, old: str, new: str, cause: str) -> None:
    home = found_small(tmp_path / "fed").home
    path = home.folder / "coordinator.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=cause) as refusal:
        home.load_settings()
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ('codec = "float32"', 'codec = "zip"', r"aggregation\.codec: .*'float32', 'bfloat16'"),
        ("[no_harm]", "[no_haarm]", r"no_haarm: unknown key; did you mean no_harm\?"),
        ("max_worse = 0.02", "max_wors = 0.02", r"max_wors: unknown key; did you mean max_worse\?"),
        (
            "groups = {}",
            "groups = { x = ['a'], y = ['a'] }",
            r"influence: a is in the groups x and y",
        ),
        ("gamma = 0.5", "gamma = nan", r"aggregation\.gamma: .*finite"),
    ],
)
def test_a_mistake_in_the_policy_is_named(tmp_path: Path, old: str, new: str, cause: str) -> None:
    home = found_small(tmp_path / "fed").home
    text = home.policy.read_text(encoding="utf-8")
    assert old in text
    home.policy.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=cause) as refusal:
        home.load_policy()
    assert str(home.policy) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_coordinator_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no coordinator here .*tapestry coordinator init"):
        require_home(tmp_path)


# Nothing is left of a failure


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(_inner: InnerTable) -> CoordinatorSettings:
    raise ConfigError("settings that do not go together")


@pytest.mark.parametrize(
    ("founding", "settings", "cause"),
    [
        (replace(FEW, federation="Not a slug"), settings_for, "federation 'Not a slug'"),
        (FEW, refuse, "do not go together"),
        (
            replace(FEW, objective=CausalLM(), create={"size": "huge"}),
            settings_for,
            "unknown size 'huge': choose one of tiny",
        ),
        (replace(FEW, pool=[Path("/nowhere/texts")]), settings_for, "no such file or folder"),
    ],
)
def test_a_refusal_leaves_nothing_behind(
    tmp_path: Path,
    founding: Founding,
    settings: Callable[[InnerTable], CoordinatorSettings],
    cause: str,
) -> None:
    with pytest.raises(ConfigError, match=cause):
        found(tmp_path / "fed", founding, settings, now=FOUNDED_AT)
    assert left(tmp_path) == []


def test_a_bug_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken(_inner: InnerTable) -> CoordinatorSettings:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        found(tmp_path / "fed", FEW, broken, now=FOUNDED_AT)
    assert left(tmp_path) == []


def test_what_an_interrupted_founding_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".fed.part").mkdir()
    (tmp_path / ".fed.part" / "root.key").write_text("half of it")
    found_in(tmp_path / "fed")
    assert left(tmp_path) == ["fed"]


def test_a_folder_that_is_taken_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "fed").mkdir()
    (tmp_path / "fed" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ConfigError, match="not empty; a federation needs a new folder"):
        found_in(tmp_path / "fed")
    assert left(tmp_path / "fed") == ["thesis.txt"]
    assert left(tmp_path) == ["fed"]


def test_a_federation_is_not_founded_over_another(tmp_path: Path) -> None:
    home = found_in(tmp_path / "fed")
    before = home.signing_key.read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        found_in(tmp_path / "fed")
    assert home.signing_key.read_bytes() == before


def test_a_file_in_the_place_of_the_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "fed").write_text("a file")
    with pytest.raises(ConfigError, match="fed"):
        found_in(tmp_path / "fed")
    assert (tmp_path / "fed").read_text() == "a file"


# The open pool


def test_the_pool_holds_every_document_and_trains_the_tokenizer(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "b.txt").write_text("second file " * 40, encoding="utf-8")
    (texts / "a.txt").write_text("first\n\nblock two é\n", encoding="utf-8")
    founding = replace(
        FEW,
        objective=CausalLM(),
        create={"size": "tiny", "vocabulary": 270},
        pool=[texts],
    )
    home = found_in(tmp_path / "fed", founding)
    text = home.pool.read_text(encoding="utf-8")
    assert text.startswith("first\n\nblock two é\n\nsecond file second file")
    assert text.endswith("\n\n")
    config = json.loads((home.checkpoint(0) / "config.json").read_text())
    assert config["vocab_size"] == 270
    assert verify_checkpoint(home.checkpoint(0)).lineage.origin.settings["vocabulary"] == 270


def test_without_a_pool_there_is_none(tmp_path: Path) -> None:
    assert not found_in(tmp_path / "fed").pool.exists()


# Adopting a model


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand parameters, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    torch.manual_seed(3)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name, content in tokenizer_files(tokenizer, model_max_length=2048).items():
        (folder / name).write_bytes(content)
    return folder


def adopting(model: Path) -> Founding:
    return replace(FEW, objective=CausalLM(), create={"model": model})


def test_an_existing_model_is_adopted_with_its_weights_and_tokenizer(
    tmp_path: Path, tiny_model: Path
) -> None:
    home = found_in(tmp_path / "fed", adopting(tiny_model))
    genesis = home.checkpoint(0)
    manifest = verify_checkpoint(genesis).manifest
    ours = AutoModelForCausalLM.from_pretrained(genesis, local_files_only=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_model, local_files_only=True, dtype=torch.float32
    )
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert manifest.elements == sum(p.numel() for p in theirs.parameters())
    same = (genesis / "tokenizer.json").read_bytes()
    assert same == (tiny_model / "tokenizer.json").read_bytes()
    config = json.loads((genesis / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")
    assert verify_checkpoint(genesis).lineage.origin.settings == {"model": "tiny-llama"}


def test_an_adopted_model_trains_more_gently(tmp_path: Path, tiny_model: Path) -> None:
    home = found_in(tmp_path / "fed", adopting(tiny_model))
    inner = home.load_settings().inner
    assert inner.learning_rate == pytest.approx(1e-4)  # a tenth of the size `small`
    assert inner.steps == 50


def test_a_tied_weight_is_in_the_vector_once(tmp_path: Path, tiny_model: Path) -> None:
    home = found_in(tmp_path / "fed", adopting(tiny_model))
    opened = open_vector_file(home.checkpoint(0) / MODEL_FILE)
    names = [spec.name for spec in opened.layout.tensors]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in [*names, *opened.extras]
    assert np.isfinite(opened.vector).all()


# A part of the model


def test_only_what_patterns_match_is_in_the_vector(tmp_path: Path, tiny_model: Path) -> None:
    patterns = ("model.layers.0.mlp.*", "model.norm.weight")
    home = found_in(tmp_path / "fed", replace(adopting(tiny_model), trainable=patterns))
    genesis = home.checkpoint(0)
    lineage = verify_checkpoint(genesis).lineage
    opened = open_vector_file(genesis / MODEL_FILE)
    assert [spec.name for spec in opened.layout.tensors] == [
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.norm.weight",
    ]
    assert lineage.newest.elements == 3 * 16 * 32 + 16
    assert lineage.origin.settings["trainable"] == "model.layers.0.mlp.*,model.norm.weight"
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_model, local_files_only=True, dtype=torch.float32
    )
    whole = sum(parameter.numel() for parameter in theirs.parameters())
    assert lineage.origin.beside is not None
    assert lineage.origin.beside.elements == whole - lineage.newest.elements
    ours = AutoModelForCausalLM.from_pretrained(genesis, local_files_only=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    card = (genesis / "README.md").read_text(encoding="utf-8")
    assert f"{whole:,} parameters; 1,552 of them (`model.layers.0.mlp.*,model.norm" in card


def test_a_pattern_that_matches_nothing_leaves_nothing(tmp_path: Path, tiny_model: Path) -> None:
    founding = replace(adopting(tiny_model), trainable=("adapters",))
    with pytest.raises(ConfigError, match=r"no parameter of the model has a name like 'adapters'"):
        found_in(tmp_path / "fed", founding)
    assert left(tmp_path) == []


def without_safetensors(model: Path) -> None:
    torch_file = model / "pytorch_model.bin"
    (model / MODEL_FILE).rename(torch_file)


def without_weights_inside(model: Path) -> None:
    (model / MODEL_FILE).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")


def damaged_weights(model: Path) -> None:
    (model / MODEL_FILE).write_bytes(b"\xff" * 64)


def without_configuration(model: Path) -> None:
    (model / "config.json").unlink()


def without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def with_code(model: Path) -> None:
    path = model / "config.json"
    table = json.loads(path.read_text())
    del table["architectures"]
    table |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}
    path.write_text(json.dumps(table))
    (model / "modeling.py").write_text("raise SystemExit('code of a model ran')")


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (without_safetensors, r"has no \.safetensors file; other formats can run code"),
        (without_weights_inside, "cannot be loaded|weights"),
        (damaged_weights, "cannot be loaded as a causal language model"),
        (without_configuration, "cannot be loaded as a causal language model"),
        (without_tokenizer, "tokenizer"),
        (with_code, "cannot be loaded as a causal language model"),
    ],
)
def test_a_model_that_cannot_be_adopted_is_refused_and_nothing_is_left(
    tmp_path: Path, tiny_model: Path, damage: Callable[[Path], None], cause: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    damage(model)
    with pytest.raises(ConfigError, match=cause) as refusal:
        found_in(tmp_path / "fed", adopting(model))
    assert "\n" not in str(refusal.value)
    assert left(tmp_path) == ["model"]


def test_a_model_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        found_in(tmp_path / "fed", adopting(tmp_path / "nowhere"))
    assert left(tmp_path) == []
