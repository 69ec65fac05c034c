"""What other tools read of a published folder: each is asked with its own reader, offline."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from tapestry.checkpoints.folder import file_entry, read_lineage
from tapestry.checkpoints.manifest import Card
from tapestry.checkpoints.policy import DeclaredText, FederationPolicy, PublicationPolicy
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.config import commented_toml, load_settings
from tapestry.errors import ConfigError, UntrustedError
from tapestry_coordinator.card import write_card
from tapestry_coordinator.described import Description, describe, hub_licence
from tapestry_coordinator.front_matter import front_matter
from tapestry_coordinator.model_signature import model_signing_key, public_pem
from tapestry_coordinator.testimony import StoredEvaluation
from tests.conftest import Federation
from tests.coordinator.small import Small, found_small

BILL, SIGNATURE, PUBLIC_KEY = "bom.cdx.json", "model.sig", "tapestry/model-signing.pub"
DECLARED = {
    "licence": "Apache-2.0",
    "licence_url": "https://www.apache.org/licenses/LICENSE-2.0",
    "base_model": "weavers/loom-1b",
    "texts": [
        {
            "name": "Archive of letters",
            "member_id": "fr-bnf",
            "licence": "CC0-1.0",
            "category": "open",
            "language": "fra",
            "url": "https://example.org/letters",
        },
        {"name": "Pool", "language": "pt-BR", "licence": "a licence in words"},
    ],
}


def measured(number: int, member_id: str, figure: float, language: str = "fr") -> StoredEvaluation:
    return StoredEvaluation(
        round=number,
        member_id=member_id,
        language=language,
        bits_per_byte=figure,
        held_out_bytes=4096,
    )


@pytest.fixture
def copy(federation: Federation, tmp_path: Path) -> Path:
    folder = tmp_path / "round-000001"
    shutil.copytree(federation.newest, folder)
    return folder


def renew(folder: Path, federation: Federation, *evaluations: StoredEvaluation) -> None:
    key = federation.home.load_signing_key()
    notes = federation.home.notes(1)
    write_card(folder, read_lineage(folder), evaluations, key, notes=notes)


@pytest.fixture(scope="module")
def declaring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a federation whose policy says what it publishes."""
    small = found_small(tmp_path_factory.mktemp("small") / "fed", policy={"publication": DECLARED})
    small.publisher.publish(small.closed({"fr-bnf": [0.5, 0.5], "is-lbs": [0.5, 0.5]}))
    small.publisher.publish(small.closed({"is-lbs": [0.5, 0.5]}, tokens={"is-lbs": 7}))
    return small.home.checkpoint(2)


# The bill of materials


def bill_of(folder: Path) -> dict[str, Any]:
    """The bill of a checkpoint, after CycloneDX's own validator has seen it."""
    text = (folder / BILL).read_text(encoding="utf-8")
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 - builds forty grammars: seconds
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    refusal = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert refusal is None, refusal
    bill: dict[str, Any] = json.loads(text)
    return bill


def named(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {row["name"].removeprefix("tapestry:"): row["value"] for row in rows}


def test_the_bill_is_valid_and_names_every_file_with_its_digest(
    copy: Path, federation: Federation
) -> None:
    for folder in (copy, federation.genesis):
        bill = bill_of(folder)
        manifest = verify_checkpoint(folder).manifest
        found = {
            part["name"]: part["hashes"][0]["content"]
            for part in bill["components"]
            if part["type"] == "file"
        }
        assert found == {entry.name: entry.digest for entry in manifest.files}
        for name, digest in found.items():
            assert file_entry(folder, name).digest == digest
        component = bill["metadata"]["component"]
        assert component["type"] == "machine-learning-model"
        assert component["hashes"] == [{"alg": "SHA-256", "content": found["model.safetensors"]}]


def test_the_bill_says_whose_model_it_is_and_what_it_came_from(copy: Path) -> None:
    verified, bill = verify_checkpoint(copy), bill_of(copy)
    metadata = bill["metadata"]
    properties = named(metadata["properties"])
    properties.pop("source", None)
    assert properties == {
        "federation": verified.genesis_digest,
        "manifest": verified.manifest_digest,
        "round": "1",
        "vector-root": verified.manifest.vector_root,
        "coordinator-key": verified.lineage.origin.coordinator_key,
    }
    assert metadata["timestamp"] == "2025-06-15T15:07:40+00:00"  # 1,750,000,060 s
    parents = [c for c in bill["components"] if c["type"] == "machine-learning-model"]
    assert [(c["name"], c["bom-ref"]) for c in parents] == [
        ("loom-round-000000", f"checkpoint:{verified.manifest.parent}")
    ]


def test_what_nobody_has_declared_is_called_undeclared_and_never_made_up(copy: Path) -> None:
    component = bill_of(copy)["metadata"]["component"]
    assert "licenses" not in component
    card = component["modelCard"]
    assert card["modelParameters"]["modelArchitecture"] == "Qwen3ForCausalLM"
    texts = card["modelParameters"]["datasets"]
    assert [text["name"] for text in texts] == ["text of fr-bnf", "text of is-lbs"]
    assert named(texts[0]["contents"]["properties"]) == {"tokens-of-member": "10000"}
    assert all("undeclared" in text["description"] for text in texts)
    assert not any("classification" in text for text in texts)


def test_what_the_policy_declares_is_in_the_bill(declaring: Path) -> None:
    component = bill_of(declaring)["metadata"]["component"]
    assert component["licenses"] == [
        {"license": {"id": "Apache-2.0", "url": DECLARED["licence_url"]}}
    ]
    letters, pool, silent = component["modelCard"]["modelParameters"]["datasets"]
    assert (letters["name"], letters["classification"]) == ("Archive of letters", "open")
    assert letters["contents"]["url"] == "https://example.org/letters"
    assert letters["governance"]["custodians"] == [{"organization": {"name": "fr-bnf"}}]
    assert named(pool["contents"]["properties"])["licence"] == "a licence in words"
    assert "governance" not in pool
    assert silent["name"] == "text of is-lbs"
    assert named(silent["contents"]["properties"]) == {"tokens-of-member": "8"}  # 1 + 7


def test_measurements_are_in_the_bill_whose_version_counts_them(
    copy: Path, federation: Federation
) -> None:
    before = bill_of(copy)
    renew(copy, federation, measured(1, "a", 2.5, 'l"\n\x00'), measured(0, "a", 3.5))
    bill = bill_of(copy)
    metrics = bill["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    assert metrics["performanceMetrics"] == [
        {"type": "bits-per-byte", "value": "2.500000", "slice": 'held-out text of a l"'}
    ]
    assert (before["version"], bill["version"]) == (3, 2)
    assert before["serialNumber"] == bill["serialNumber"]


def test_a_bill_is_the_same_for_the_same_checkpoint_and_another_for_another(
    copy: Path, federation: Federation
) -> None:
    before = (copy / BILL).read_bytes()
    renew(copy, federation, *federation.evaluations)
    assert (copy / BILL).read_bytes() == before
    assert bill_of(copy)["serialNumber"] != bill_of(federation.genesis)["serialNumber"]


# OpenSSF model signing


def model_signing(folder: Path, *more: str, cwd: Path | None = None) -> tuple[int, str]:
    """Ask the command of `model_signing` whether `folder` is what its key signed."""
    command = [
        sys.executable, "-m", "model_signing", "verify", "key", str(folder),
        "--signature", str(folder / SIGNATURE), "--public_key", str(folder / PUBLIC_KEY), *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_model_signing_verifies_the_folder_by_the_command_in_the_readme(copy: Path) -> None:
    text = (copy / "README.md").read_text(encoding="utf-8")
    assert f"model_signing verify key PATH --signature PATH/{SIGNATURE}" in text
    assert f"--public_key PATH/{PUBLIC_KEY}" in text
    code, said = model_signing(copy)
    assert code == 0, said
    code, said = model_signing(Path(copy.name), cwd=copy.parent)  # as people type it
    assert code == 0, said


def verify_signature(folder: Path) -> None:
    """Ask the library; raise ValueError with what does not fit."""
    from model_signing import verifying  # noqa: PLC0415 - half a second

    config = verifying.Config().use_elliptic_key_verifier(public_key=folder / PUBLIC_KEY)
    config.verify(folder, folder / SIGNATURE)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("model.safetensors", r"Hash mismatch for .*model\.safetensors"),
        ("config.json", r"Hash mismatch for .*config\.json"),
        ("README.md", r"Hash mismatch for .*README\.md"),
        (BILL, r"Hash mismatch for .*bom\.cdx\.json"),
        ("modeling.py", "Extra files found .* modeling.py"),
        ("tokenizer.json", "Missing files .* tokenizer.json"),
    ],
)
def test_model_signing_names_what_was_changed_added_or_removed(
    copy: Path, name: str, cause: str
) -> None:
    verify_signature(copy)
    path = copy / name
    if "Missing" in cause:
        path.unlink()
    else:
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + b"\n")
    with pytest.raises(ValueError, match=cause):
        verify_signature(copy)


def test_the_signature_holds_after_a_renewal_and_with_a_step_beside_it(
    copy: Path, federation: Federation
) -> None:
    renew(copy, federation, measured(1, "a", 2.5))
    verify_signature(copy)
    (copy / "tapestry/step.bin").write_bytes(b"anything in tapestry/ speaks for itself")
    verify_signature(copy)


def test_a_signature_by_another_key_is_refused_by_both(copy: Path, tmp_path: Path) -> None:
    other = found_small(tmp_path / "other", federation="warp").home.checkpoint(0)
    shutil.copyfile(other / PUBLIC_KEY, copy / PUBLIC_KEY)
    with pytest.raises(ValueError, match="Key mismatch"):
        verify_signature(copy)
    with pytest.raises(UntrustedError, match=r"model-signing\.pub: changed"):
        verify_checkpoint(copy)


def test_the_key_is_bound_to_the_coordinators_and_is_not_published(
    copy: Path, federation: Federation
) -> None:
    key = federation.home.load_signing_key()
    derived = model_signing_key(key)
    card: Card = verify_checkpoint(copy).card
    assert PUBLIC_KEY in {entry.name for entry in card.files}
    assert (copy / PUBLIC_KEY).read_bytes() == public_pem(derived)
    load_pem_public_key((copy / PUBLIC_KEY).read_bytes())
    assert model_signing_key(key).private_numbers() == derived.private_numbers(), "the same again"
    other = found_small(copy.parent / "other", federation="warp").key
    assert model_signing_key(other).private_numbers() != derived.private_numbers()


def test_a_checkpoint_made_twice_has_the_same_signature(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        small: Small = found_small(tmp_path / name)
        small.publisher.publish(small.closed({"a": [0.5, 0.5]}))
        folders.append(small.home.checkpoint(1))
    one, two = folders
    for name in ("tapestry/manifest.json", BILL, SIGNATURE, "tapestry/card.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


# The Hub's metadata


def card_of(folder: Path) -> tuple[dict[str, Any], Any]:
    """The front matter as YAML, and what `huggingface_hub` makes of it."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    _before, front, _text = text.split("---\n", 2)
    return yaml.safe_load(front), ModelCard(text).data


def test_the_hub_reads_languages_results_and_what_verifies(
    copy: Path, federation: Federation
) -> None:
    renew(
        copy,
        federation,
        measured(1, "a", 2.5, "fr"),
        measured(1, "b", 2.25, "eus"),
        measured(1, "c", 1e-05, "no"),
        measured(1, "d", 3.0, "old letters"),
        measured(1, "e", 2.0, "pt-BR"),
        measured(1, "f", 2.0, "mul"),
        measured(0, "g", 2.5, "isl"),
    )
    front, data = card_of(copy)
    assert data.language == ["eus", "fr", "no", "pt"]  # unquoted, YAML makes Norwegian false
    assert front["language_bcp47"] == ["pt-BR"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["tapestry", "federated-learning"]
    assert data.model_name == "loom-round-000001"
    assert [(r.dataset_name, r.dataset_config, r.metric_value) for r in data.eval_results] == [
        ("held-out text of a", "fr", 2.5),
        ("held-out text of b", "eus", 2.25),
        ("held-out text of c", "no", 1e-05),
        ("held-out text of d", "old letters", 3.0),
        ("held-out text of e", "pt-BR", 2.0),
        ("held-out text of f", "mul", 2.0),
    ]
    assert {r.metric_type for r in data.eval_results} == {"bits_per_byte"}
    verified = verify_checkpoint(copy)
    assert front["verification"] == {
        "federation": verified.genesis_digest,
        "name": "loom",
        "round": 1,
        "manifest": verified.manifest_digest,
        "coordinator_key": verified.lineage.origin.coordinator_key,
    }


def test_the_hubs_library_writes_back_what_it_read(copy: Path) -> None:
    front, data = card_of(copy)
    assert yaml.safe_load(data.to_yaml()) == front


def test_what_is_not_known_is_not_claimed(federation: Federation) -> None:
    front, data = card_of(federation.genesis)
    assert not {"license", "language", "base_model", "model-index", "metrics"} & set(front)
    assert data.eval_results is None


def test_licence_base_model_and_declared_languages_are_the_hubs(declaring: Path) -> None:
    _front, data = card_of(declaring)
    assert data.license == "apache-2.0"
    assert data.base_model == "weavers/loom-1b"
    assert data.language == ["fra", "pt"]
    text = (declaring / "README.md").read_text()
    assert "| Archive of letters | fr-bnf | fra | CC0-1.0 | open |" in text
    verify_checkpoint(declaring)


def test_a_licence_in_words_is_told_in_the_hubs_way(tmp_path: Path) -> None:
    said = {"licence": "Weavers' Charter, 2nd", "licence_url": "https://example.org/charter"}
    small = found_small(tmp_path / "fed", policy={"publication": said})
    small.publisher.publish(small.closed({"a": [0.5, 0.5]}))
    front, _data = card_of(small.home.checkpoint(1))
    assert front["license"] == "other"
    assert front["license_name"] == "weavers-charter-2nd"
    assert front["license_link"] == "https://example.org/charter"
    (licence,) = bill_of(small.home.checkpoint(1))["metadata"]["component"]["licenses"]
    assert licence["license"]["name"] == "Weavers' Charter, 2nd"


@pytest.mark.parametrize(
    ("licence", "name"),
    [("mit", "mit"), ("GPL-3.0-only", "gpl-3.0"), ("ODbL-1.0", "odbl"), ("ours", None)],
)
def test_the_hub_calls_a_licence(licence: str, name: str | None) -> None:
    assert hub_licence(licence) == name


@pytest.fixture(scope="module")
def about(federation: Federation) -> Description:
    return describe(federation.newest, read_lineage(federation.newest), [])


@settings(max_examples=60, derandomize=True)
@given(language=st.text(max_size=40), figure=st.floats(min_value=0, max_value=1e20))
def test_whatever_a_member_writes_the_front_matter_is_read_as_it_was_meant(
    about: Description, language: str, figure: float
) -> None:
    about = replace(about, history=[measured(1, "a", figure, language)])
    front = yaml.safe_load(front_matter(about).strip().strip("-"))
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == figure
    assert set(result["dataset"].get("config", "")) <= {*language, " "}


# What the policy may declare


def test_declarations_survive_the_policys_file(tmp_path: Path) -> None:
    policy = FederationPolicy(publication=PublicationPolicy.model_validate(DECLARED))
    path = tmp_path / "policy.toml"
    path.write_text(commented_toml(policy, head="Agreed."), encoding="utf-8")
    assert load_settings(path, FederationPolicy) == policy
    assert FederationPolicy.model_validate_json(policy.canonical()) == policy


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('licence_url = "javascript:alert(1)"', "publication.licence_url"),
        ('base_model = "just-a-name"', "publication.base_model"),
        (
            'texts = [{ name = "x", category = "secret" }]',
            r"publication.texts \(number 1\).category",
        ),
        (
            'texts = [{ name = "x", language = "Old French" }]',
            r"publication.texts \(number 1\).language",
        ),
        ('license = "MIT"', "publication.license: unknown key; did you mean licence"),
        (
            'texts = [{ name = "x", licenc = "y" }]',
            r"texts \(number 1\).licenc: unknown key.*mean licence",
        ),
    ],
)
def test_a_declaration_that_tools_could_not_read_is_refused(
    tmp_path: Path, line: str, cause: str
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f"[publication]\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=cause):
        load_settings(path, FederationPolicy)


def test_a_declared_text_needs_a_name() -> None:
    with pytest.raises(ValueError, match="name"):
        DeclaredText(name="")
