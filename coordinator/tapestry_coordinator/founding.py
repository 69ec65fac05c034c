"""Making a federation: root of trust, keys, genesis checkpoint, settings."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.beside import ExtraTensor, beside_digest, elements_of
from tapestry.checkpoints.folder import building, file_entry, write_statements
from tapestry.checkpoints.manifest import (
    BesideRecord,
    ContinuedRecord,
    GenesisRecord,
    Manifest,
)
from tapestry.checkpoints.policy import FederationPolicy, save_policy
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.vector_file import (
    MODEL_FILE,
    VectorFile,
    VectorWriter,
    WrittenVector,
    open_vector_file,
)
from tapestry.data.reading import read_documents
from tapestry.data.replay import REPLAY_FILE, write_replay
from tapestry.errors import ConfigError
from tapestry.identity.certificates import (
    Authority,
    create_authority,
    create_tls_key,
    fingerprint,
    save_authority,
)
from tapestry.identity.envelopes import Envelope
from tapestry.identity.keys import generate_signing_key, public_bytes, save_private_key
from tapestry.identity.names import check_federation
from tapestry.objectives.objective import Created, Objective
from tapestry.objectives.sizes import nearest_size
from tapestry.params.layout import ParameterLayout
from tapestry.params.modules import from_model, layout_of, outside_the_vector
from tapestry.params.subset import freeze_others
from tapestry.storage.atomic import replacing
from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.card import write_card
from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.ledgering import seal_of
from tapestry_coordinator.mirroring import Mirror, blobs_of
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.settings import CoordinatorSettings, InnerTable
from tapestry_coordinator.software import software

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Founding:
    """What a federation begins with."""

    federation: str
    objective: Objective
    create: Mapping[str, Any]
    """The objective's own settings: a size, a model to adopt, a tokenizer."""
    pool: Sequence[Path]
    """Files or folders of open text; may be empty."""
    seed: int
    trainable: Sequence[str] = ()
    """Patterns of the names of the parameters that are trained; none: all."""
    policy: FederationPolicy = field(default_factory=FederationPolicy)
    start: "Start | None" = None
    """What genesis is, if the objective does not create it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A genesis that is to be written."""

    inner: InnerTable
    """Inner settings that suit its model."""
    settings: Mapping[str, Any]
    """What the objective was created with."""
    write: Callable[[Path], "WrittenStart"]
    """Puts the files into an empty folder."""
    continues: ContinuedRecord | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenStart:
    """A genesis whose files are there."""

    layout: ParameterLayout
    vector_root: bytes
    names: Sequence[str]


def found(
    folder: Path,
    founding: Founding,
    settings_for: Callable[[InnerTable], CoordinatorSettings],
    *,
    now: float,
) -> Envelope:
    """Make a coordinator's folder; return the genesis manifest.

    Args:
        folder: New or empty.
        founding: What the federation begins with.
        settings_for: Completes the settings from the inner settings that suit the model.
        now: Unix seconds.

    Raises:
        ConfigError: The folder is taken, or something that was given cannot be used; nothing is
            left behind.
    """
    check_federation(founding.federation)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; a federation needs a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: not empty; a federation needs a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rmdir()
    with building(folder.resolve()) as temporary:
        return _found(CoordinatorHome(temporary), founding, settings_for, now)


def _found(
    home: CoordinatorHome,
    founding: Founding,
    settings_for: Callable[[InnerTable], CoordinatorSettings],
    now: float,
) -> Envelope:
    home.folder.chmod(0o700)
    if founding.pool:
        _write_pool(home.pool, founding.pool)
    create = dict(founding.create)
    if founding.pool:
        create["text"] = [str(home.pool)]
    start = founding.start or _created(founding, create, pool=home.pool)
    settings = settings_for(start.inner)
    founding.policy.require_quorum(settings.rounds.quorum)
    settings_module.save(home.folder, settings)
    save_policy(home.policy, founding.policy)
    authority = create_authority(founding.federation, now=datetime.fromtimestamp(now, UTC))
    for name in (home.ca, home.signing_key.parent, home.published):
        name.mkdir()
    home.ca.chmod(0o700)
    home.signing_key.parent.chmod(0o700)
    save_authority(home.ca, authority)
    key = generate_signing_key()
    save_private_key(home.signing_key, key)
    save_private_key(home.tls_key, create_tls_key())
    envelope = _publish_genesis(home, founding, start, authority, key, now=now)
    registry = Registry(database_url(home))
    blobs = blobs_of(home)
    if blobs is not None:
        Mirror(home, blobs).put_founding(envelope)
    with closing(registry):
        digest = payload_digest(envelope)
        seal = seal_of(key, federation=founding.federation, genesis_digest=digest)
        registry.add_genesis(digest, envelope, seal)
        registry.adopt_policy(founding.policy, now=now)
    return envelope


def inner_for(created: Created) -> InnerTable:
    """Return inner settings that suit a model: its named size's, or those of the nearest one."""
    elements = sum(parameter.numel() for parameter in created.module.parameters())
    size = nearest_size(created.settings, elements)
    return InnerTable(
        steps=size.inner_steps,
        sequences=size.sequences,
        sequence_tokens=size.sequence_tokens,
        learning_rate=size.learning_rate if "size" in created.settings else size.learning_rate / 10,
    )


def _created(founding: Founding, create: Mapping[str, Any], *, pool: Path) -> Start:
    """Return a genesis that the objective creates; a part of the pool is published with it."""
    created = founding.objective.create(create, seed=founding.seed)
    module = created.module
    freeze_others(module, founding.trainable)
    layout = layout_of(module, exclude=founding.objective.non_averageable(module))
    if not layout.tensors:
        raise ConfigError(
            f"trainable: {', '.join(founding.trainable)} leaves nothing that members could train "
            "together"
        )

    def write(folder: Path) -> WrittenStart:
        for name, content in created.files.items():
            (folder / name).write_bytes(content)
        written = _write_vector(folder / MODEL_FILE, module, layout)
        names = [*created.files, MODEL_FILE]
        if pool.exists():
            write_replay(folder / REPLAY_FILE, pool)
            names.append(REPLAY_FILE)
        return WrittenStart(layout=layout, vector_root=written.root, names=names)

    settings = dict(created.settings)
    if founding.trainable:
        settings["trainable"] = ",".join(founding.trainable)
    return Start(inner=inner_for(created), settings=settings, write=write)


def _write_pool(target: Path, paths: Sequence[Path]) -> None:
    """Write the open pool: every document of `paths`, a blank line between them."""
    with replacing(target) as file:
        for document in read_documents(paths):
            file.write(document.text.strip().encode() + b"\n\n")


def _publish_genesis(
    home: CoordinatorHome,
    founding: Founding,
    start: Start,
    authority: Authority,
    key: Ed25519PrivateKey,
    *,
    now: float,
) -> Envelope:
    with building(home.checkpoint(0)) as folder:
        written = start.write(folder)
        manifest = Manifest(
            round=0,
            genesis=None,
            parent=None,
            created_at=now,
            layout=written.layout.digest,
            elements=written.layout.elements,
            vector_root=written.vector_root.hex(),
            files=tuple(file_entry(folder, name) for name in sorted(written.names)),
            origin=GenesisRecord(
                federation=founding.federation,
                coordinator_key=public_bytes(key).hex(),
                root_certificate=fingerprint(authority.certificate_pem).hex(),
                objective=founding.objective.name,
                settings=dict(start.settings),
                seed=founding.seed,
                beside=_beside(open_vector_file(folder / MODEL_FILE)),
                continues=start.continues,
            ),
            software=software(),
        )
        envelope = manifest.signed(key)
        write_statements(folder, [envelope])
        write_card(folder, [envelope], [], key, notes=home.notes(0))
    return envelope


def _beside(model: VectorFile) -> BesideRecord | None:
    """Return what every checkpoint will have beside the vector."""
    extras = model.extras
    if not extras:
        return None
    return BesideRecord(
        tensors=len(extras), elements=elements_of(extras), digest=beside_digest(extras)
    )


def _write_vector(path: Path, module: torch.nn.Module, layout: ParameterLayout) -> WrittenVector:
    """Write the initial parameter vector and what stands beside it."""
    vector = from_model(module, layout)
    extras = {
        name: ExtraTensor(
            dtype=_DTYPES[tensor.dtype],
            shape=tuple(tensor.shape),
            data=tensor.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in outside_the_vector(module, layout).items()
    }
    with path.open("wb") as file:
        writer = VectorWriter(file, layout, extras)
        for index in range(layout.fragments):
            start, stop = layout.bounds(index)
            writer.write(vector[start:stop])
        return writer.finish()
