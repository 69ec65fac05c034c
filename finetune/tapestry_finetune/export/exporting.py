"""What `tapestry export` does: one order, carried out whole or not at all.

What is written lies under another name until it has been loaded back and has predicted what it
came from; an order that is interrupted leaves nothing.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel

from tapestry.checkpoints.folder import building
from tapestry.errors import ConfigError
from tapestry.objectives.loading import load_model, load_text_tokenizer
from tapestry.storage.atomic import sync_path
from tapestry_finetune.base import Base, describe
from tapestry_finetune.bundle import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    LINEAGE_FILE,
    Bundle,
    require_base,
)
from tapestry_finetune.deltas import lay_on
from tapestry_finetune.export.adapter_files import add_adapter, write_adapter_gguf
from tapestry_finetune.export.architectures import architecture_of
from tapestry_finetune.export.gguf_files import TYPES, Described, write_gguf
from tapestry_finetune.export.reading_back import (
    Agreement,
    compare,
    load_gguf,
    predictions,
    require_agreement,
)

FORMATS = ("adapter", "merged", "gguf", "gguf-lora")
_DEFAULT_TYPES = {"adapter": "f32", "merged": "f32", "gguf": "f16", "gguf-lora": "f32"}
_HOLDS_MODEL = frozenset({"merged", "gguf", "gguf-lora"})
_DTYPES = {"f32": torch.float32, "f16": torch.float16}
_ADAPTER_FILES = (ADAPTER_FILE, ADAPTER_CONFIG, "chat_template.jinja", "README.md", LINEAGE_FILE)


class OnProgress(Protocol):
    """Told how far the work is, as `Bar.show` is."""

    def __call__(self, what: str, done: float = 0, of: float = 0, *, unit: str = "") -> None:
        """Show it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to write, of what, where."""

    base: Base
    bundle: Bundle | None
    """None: the base itself."""
    format: str
    out: Path
    type_name: str | None
    """None: what is usual for the format."""
    is_forced: bool
    """Write it although its community said not to pass it on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    out: Path
    format: str
    type_name: str
    size_bytes: int
    agreement: Agreement
    remarks: list[str]


def export(order: Order, *, on_progress: OnProgress) -> Exported:
    """Write what is ordered, load it back, and compare what it predicts.

    Raises:
        ConfigError: It cannot be said in that format, its community does not pass it on, the place
            is taken, or what was loaded back predicts something else.
        UntrustedError: The bundle was made for another base.
    """
    type_name = _require_sound(order)
    loaded = _Loaded(order, on_progress)
    write = {
        "adapter": _write_adapter,
        "merged": _write_merged,
        "gguf": _write_gguf,
        "gguf-lora": _write_gguf_lora,
    }[order.format]
    with _appearing(order.out, is_folder=order.format in {"adapter", "merged"}) as path:
        agreement, remarks = write(order, loaded, path, type_name)
        require_agreement(agreement, type_name=type_name, where=order.out)
    return Exported(
        out=order.out,
        format=order.format,
        type_name=type_name,
        size_bytes=_size_of(order.out),
        agreement=agreement,
        remarks=remarks,
    )


def _require_sound(order: Order) -> str:
    """Return the type of the numbers; refuse before anything is loaded."""
    if order.format not in FORMATS:
        raise ConfigError(f"--format {order.format}: choose one of {', '.join(FORMATS)}")
    if order.out.exists():
        raise ConfigError(f"{order.out}: exists already; name a new place")
    if not order.out.resolve().parent.is_dir():
        raise ConfigError(f"{order.out.parent}: no such folder; make it first")
    type_name = order.type_name or _DEFAULT_TYPES[order.format]
    allowed = {"adapter": {"f32"}, "gguf": set(TYPES)}.get(order.format, set(_DTYPES))
    if type_name not in allowed:
        raise ConfigError(
            f"--type {type_name}: {order.format} is written as {' or '.join(sorted(allowed))}"
        )
    bundle = order.bundle
    if bundle is None:
        if order.format in {"adapter", "gguf-lora"}:
            _bundle_of(order)
        return type_name
    require_base(bundle, order.base)
    if order.format in _HOLDS_MODEL and not bundle.lineage.redistribute and not order.is_forced:
        raise ConfigError(
            f"{bundle.name}: its community says redistribute = false (licence: "
            f"{bundle.lineage.licence}): the weights are not to be passed on, and a file of "
            f"format {order.format} no longer says so to whoever gets it. Ask the community; "
            "--force writes it for your own use"
        )
    if order.format in {"adapter", "gguf-lora"}:
        _require_only_linear(bundle, order.format)
    return type_name


def _bundle_of(order: Order) -> Bundle:
    if order.bundle is None:
        raise ConfigError(f"--format {order.format} takes a bundle, this is a whole model")
    return order.bundle


def _require_only_linear(bundle: Bundle, format_name: str) -> None:
    """Refuse what an adapter of other programs cannot hold."""
    deltas = bundle.deltas()
    said = (
        f"{deltas.new_tokens:,} new tokens"
        if deltas.new_tokens
        else "rows of the embedding, which it changed"
        if deltas.rows
        else "norms, which it changed"
        if deltas.dense
        else "no LoRA weights"
        if not bundle.has_adapter()
        else ""
    )
    if said:
        raise ConfigError(
            f"{bundle.name} has {said}: --format {format_name} holds LoRA weights alone, and the "
            "model would not be the same. Use --format merged or gguf"
        )


class _Loaded:
    """The model in memory, and what it predicts."""

    def __init__(self, order: Order, on_progress: OnProgress) -> None:
        self.on_progress = on_progress
        on_progress("loading the model")
        base, bundle = order.base, order.bundle
        self.tokenizer = base.tokenizer() if bundle is None else bundle.tokenizer(base)
        self.module: Any = base.load("cpu")
        if bundle is not None:
            lay_on(self.module, bundle.deltas())
            if bundle.has_adapter():
                self.module = PeftModel.from_pretrained(self.module, str(bundle.folder)).eval()
        self.expected = self._predictions_of(self.module)
        """Before anything is merged."""

    def merged(self) -> Any:  # noqa: ANN401
        """Return the model with the adapter in its weights."""
        if isinstance(self.module, PeftModel):
            self.module = self.module.merge_and_unload(safe_merge=True)
        return self.module

    def agreement_of(self, module: Any) -> Agreement:  # noqa: ANN401
        """Return how alike another module predicts."""
        return compare(self.expected, self._predictions_of(module))

    def _predictions_of(self, module: Any) -> list[torch.Tensor]:  # noqa: ANN401
        self.on_progress("predicting 20 prompts")
        return predictions(module, self.tokenizer)


_Written = tuple[Agreement, list[str]]


def _write_adapter(order: Order, loaded: _Loaded, path: Path, _type: str) -> _Written:
    _copy(_bundle_of(order), _ADAPTER_FILES, path)
    module = PeftModel.from_pretrained(order.base.load("cpu"), str(path)).eval()
    return loaded.agreement_of(module), []


def _write_merged(order: Order, loaded: _Loaded, path: Path, type_name: str) -> _Written:
    module = loaded.merged().to(_DTYPES[type_name])
    loaded.on_progress("writing the model")
    module.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    if order.bundle is not None:
        _copy(order.bundle, ("README.md", LINEAGE_FILE), path)
    del module, loaded.module
    agreement = loaded.agreement_of(load_model(path))
    load_text_tokenizer(path)
    return agreement, []


def _write_gguf(order: Order, loaded: _Loaded, path: Path, type_name: str) -> _Written:
    remarks = write_gguf(
        path,
        loaded.merged(),
        loaded.tokenizer,
        described=_described(order),
        type_name=type_name,
        on_writing=lambda done, of: loaded.on_progress("writing", done, of, unit="bytes"),
    )
    del loaded.module
    loaded.on_progress("loading it back")
    return loaded.agreement_of(load_gguf(path)), remarks


def _write_gguf_lora(order: Order, loaded: _Loaded, path: Path, type_name: str) -> _Written:
    bundle = _bundle_of(order)
    del loaded.module
    module = order.base.load("cpu")
    architecture = architecture_of(module.config)
    write_adapter_gguf(
        path,
        bundle.folder,
        architecture,
        described=_described(order),
        type_name=type_name,
    )
    add_adapter(path, module, architecture)
    return loaded.agreement_of(module), []


def _copy(bundle: Bundle, names: Iterable[str], folder: Path) -> None:
    for name in names:
        if (bundle.folder / name).is_file():
            shutil.copyfile(bundle.folder / name, folder / name)


def _described(order: Order) -> Described:
    identity, bundle = order.base.identity, order.bundle
    keys = {
        "consensus.manifest": identity.manifest,
        "consensus.federation": identity.federation,
        "consensus.tensors": identity.tensors,
        "bundle.lineage": None if bundle is None else bundle.digest,
        "bundle.key": None if bundle is None else bundle.key,
    }
    return Described(
        name=describe(identity) if bundle is None else bundle.name,
        base_name=describe(identity),
        base_version="" if identity.round is None else f"round {identity.round}",
        licence=identity.licence if bundle is None else bundle.lineage.licence,
        keys={key: value for key, value in keys.items() if value is not None},
    )


@contextmanager
def _appearing(out: Path, *, is_folder: bool) -> Iterator[Path]:
    """Yield where to write; it takes the name `out` only if the block ends without an error."""
    target = out.resolve()
    if is_folder:
        with building(target) as folder:
            yield folder
        return
    workshop = target.with_name(f".{target.name}.part")
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir()
    try:
        made = workshop / target.name
        yield made
        sync_path(made)
        made.rename(target)
        sync_path(target.parent)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
