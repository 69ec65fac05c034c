"""A bundle: what a community publishes of its localized model.

```
adapter_model.safetensors adapter_config.json   LoRA weights, which plain peft loads
deltas.safetensors                              embedding rows and norms, as differences
tokenizer.json tokenizer_config.json            if the vocabulary was extended
chat_template.jinja                             how dialogues become text
charter.toml                                    the community's values, if it wrote them down
recipe.json                                     how it was made
evaluation.json evaluation.html                 what it is worth beside its base
README.md                                       the card
lineage.json                                    signed: all of the above, and where it comes from
```
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import building, file_entry, read_envelope
from tapestry.checkpoints.statements import payload_digest, predicate_of
from tapestry.data.chat import TEMPLATE_FILE
from tapestry.errors import ConfigError, UntrustedError
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.identity.keys import (
    generate_signing_key,
    key_id,
    load_signing_key,
    public_bytes,
    save_private_key,
)
from tapestry.storage.atomic import write_atomic
from tapestry_finetune.base import Base, BaseIdentity, describe, tokenizer_with
from tapestry_finetune.deltas import Deltas, read_deltas
from tapestry_finetune.lineage import Localization

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
LINEAGE_FILE = "lineage.json"
CHARTER_FILE = "charter.toml"
RECIPE_FILE = "recipe.json"
EVALUATION_FILE = "evaluation.json"
_FEWEST_DIGITS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle whose files are those that its community signed."""

    folder: Path
    lineage: Localization
    digest: str
    """Hex SHA-256 of the signed statement."""

    @property
    def name(self) -> str:
        """What its community calls it."""
        return self.lineage.name

    @property
    def key(self) -> str:
        """Fingerprint of the community's key, which strangers compare by other means."""
        return key_id(bytes.fromhex(self.lineage.key))

    def deltas(self) -> Deltas:
        """Return what changed beside the linear layers."""
        return read_deltas(self.folder / "deltas.safetensors")

    def has_adapter(self) -> bool:
        """Return whether linear layers changed."""
        return (self.folder / ADAPTER_FILE).is_file()

    def charter_path(self) -> Path | None:
        """Return the community's charter, if it has one."""
        path = self.folder / CHARTER_FILE
        return path if path.is_file() else None

    def tokenizer(self, base: Base) -> Any:  # noqa: ANN401 - transformers is not typed
        """Return the tokenizer: the bundle's own if it extended the base's."""
        if not (self.folder / "tokenizer.json").is_file():
            return base.tokenizer()
        template = (self.folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        return tokenizer_with(self.folder, template)

    def evaluation(self) -> dict[str, Any] | None:
        """Return the content of `evaluation.json`."""
        path = self.folder / EVALUATION_FILE
        if not path.is_file():
            return None
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return table


def community_key(folder: Path) -> Ed25519PrivateKey:
    """Return the key that signs a community's bundles, made at its first use with mode 0600."""
    path = folder / "signing.key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        save_private_key(path, generate_signing_key())
    return load_signing_key(path)


def write_bundle(
    target: Path,
    fill: Callable[[Path], None],
    complete: Callable[..., Localization],
    key: Ed25519PrivateKey,
) -> Bundle:
    """Write a bundle, whole or not at all.

    Args:
        target: Must not exist.
        fill: Writes every file but the lineage into the folder it is given.
        complete: Makes the lineage from `files` and `key`, given by name.
        key: Of the community.

    Raises:
        ConfigError: `target` is taken.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new folder")
    with building(target.resolve()) as folder:
        fill(folder)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        files = tuple(file_entry(folder, name) for name in names)
        statement = complete(files=files, key=public_bytes(key).hex())
        write_atomic(folder / LINEAGE_FILE, to_json(statement.signed(key)))
    return open_bundle(target)


def open_bundle(folder: Path, *, key: str | None = None) -> Bundle:
    """Verify a bundle's signature and every file of it.

    Args:
        folder: A bundle's folder.
        key: The fingerprint of the community's key that the caller expects, at least 16 digits.
            Without it the answer is "unchanged since whoever has that key signed it".

    Raises:
        UntrustedError: A file is missing, changed, or added, or somebody else signed.
        ConfigError: There is no bundle in `folder`, or `key` is too short.
    """
    if not folder.is_dir() or not (folder / LINEAGE_FILE).is_file():
        raise ConfigError(f"{folder}: not a bundle: no {LINEAGE_FILE} in it")
    if key is not None and len(key) < _FEWEST_DIGITS:
        raise ConfigError(f"--key {key}: give at least {_FEWEST_DIGITS} digits")
    envelope = read_envelope(folder / LINEAGE_FILE, what="lineage")
    lineage = Localization.opened(
        envelope, public_key=_claimed_key(envelope), what=f"{folder / LINEAGE_FILE}"
    )
    bundle = Bundle(folder=folder, lineage=lineage, digest=payload_digest(envelope))
    if key is not None and not bundle.key.startswith(key.lower()):
        raise UntrustedError(
            f"{folder}: signed by {bundle.key[:16]}, expected {key[:16]}: not this community's"
        )
    _verify_files(folder, lineage)
    return bundle


def require_base(bundle: Bundle, base: Base) -> None:
    """Refuse a base that the bundle was not made for.

    Raises:
        UntrustedError: Another base; the message offers to carry the bundle over.
    """
    made, given = bundle.lineage.base, base.identity
    if made.tensors == given.tensors and made.tokenizer == given.tokenizer:
        return
    said = f"{bundle.folder}: made for {_named(bundle)}, this is {describe(given)}"
    if made.architecture != given.architecture:
        raise UntrustedError(f"{said}, a model of another architecture: train anew on it")
    if made.tokenizer != given.tokenizer:
        raise UntrustedError(f"{said}, with another tokenizer: train anew on it")
    raise UntrustedError(
        f"{said}. Carry it over: tapestry finetune rebase {bundle.folder} --onto {base.folder} "
        "--recipe recipe.toml"
    )


def _named(bundle: Bundle) -> str:
    made = bundle.lineage.base
    identity = BaseIdentity(
        manifest=made.manifest,
        federation=made.federation,
        round=made.round,
        tensors=made.tensors,
        tokenizer=made.tokenizer,
        architecture=made.architecture,
        licence=made.licence,
    )
    return describe(identity)


def _claimed_key(envelope: Envelope) -> bytes:
    """Return the key that the statement names as its signer's."""
    try:
        key = bytes.fromhex(str(predicate_of(envelope.payload).get("key", "")))
    except ValueError as error:
        raise UntrustedError(f"lineage: not the statement of a bundle: {error}") from error
    if len(key) != 32:
        raise UntrustedError("lineage: names no key that could have signed it")
    return key


def _verify_files(folder: Path, lineage: Localization) -> None:
    listed = {entry.name: entry for entry in lineage.files}
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    for name in sorted(found - listed.keys() - {LINEAGE_FILE}):
        raise UntrustedError(f"{folder / name}: the community did not sign this file")
    for name, entry in listed.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise UntrustedError(f"{path}: missing, or not a plain file")
        if file_entry(folder, name) != entry:
            raise UntrustedError(f"{path}: changed since the community signed it")
