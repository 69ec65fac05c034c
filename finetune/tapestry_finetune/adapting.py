"""What of a model is trained, by which method, and how it comes out as a bundle's files."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from tapestry.errors import UntrustedError
from tapestry.storage.atomic import write_atomic
from tapestry_finetune.base import Base
from tapestry_finetune.bundle import ADAPTER_CONFIG, ADAPTER_FILE
from tapestry_finetune.deltas import DELTAS_FILE, Deltas, row_delta

TrainedMethod = Literal["lora", "lora+embeddings", "full"]
_PATCH_RANK = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapted:
    """A base in memory, ready to be trained."""

    module: Any
    """What a trainer takes: with low-rank matrices laid on, unless the method is `full`."""
    plain: Any
    """The same model as transformers made it."""
    method: TrainedMethod

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Return what is trained, by name in `module`."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def save_state(self, path: Path) -> None:
        """Write what is trained, whole or not at all."""
        state = {name: p.detach().cpu().contiguous() for name, p in self.trained().items()}
        write_atomic(path, save(state))

    def load_state(self, path: Path) -> None:
        """Read what `save_state` wrote.

        Raises:
            UntrustedError: It is of another model or method.
        """
        state = load_file(path)
        trained = self.trained()
        if state.keys() != trained.keys():
            raise UntrustedError(f"{path}: of another model or method; remove the run's folder")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state[name])


def adapt(
    module: Any,  # noqa: ANN401 - transformers is not typed
    method: TrainedMethod,
    *,
    rank: int,
    seed: int,
    alpha: int | None = None,
    layers: Sequence[str] | str = "all-linear",
) -> Adapted:
    """Return `module` with what `method` trains.

    Args:
        module: A causal language model of transformers.
        method: `lora` trains low-rank matrices on all linear layers but the head (Hu et al., 2021),
            `lora+embeddings` the rows of embedding and head too, `full` everything.
        rank: Of the matrices.
        seed: Of their initial values.
        alpha: Their product is multiplied by `alpha / rank`; None: by 2.
        layers: Names of the layers that get them.
    """
    torch.manual_seed(seed)
    if method == "full":
        return Adapted(
            module=module.requires_grad_(requires_grad=True), plain=module, method=method
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,
        target_modules=layers if isinstance(layers, str) else list(layers),
        task_type="CAUSAL_LM",
    )
    with quiet():
        wrapped = get_peft_model(module, config)
    if method == "lora+embeddings":
        for layer in embeddings_of(module):
            layer.weight.requires_grad_(requires_grad=True)
    return Adapted(module=wrapped, plain=module, method=method)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries' warnings to their own authors from a user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def embeddings_of(module: Any) -> list[Any]:  # noqa: ANN401
    """Return embedding and head; one of them if they are tied."""
    layers = [module.get_input_embeddings(), module.get_output_embeddings()]
    found: list[Any] = []
    for layer in layers:
        if layer is not None and all(layer.weight is not other.weight for other in found):
            found.append(layer)
    return found


def write_changes(folder: Path, adapted: Adapted, base: Base) -> None:
    """Write adapter and deltas of a trained model into a bundle's folder."""
    if adapted.method == "full":
        adapter, deltas, config = _patch(adapted, base)
    else:
        state = get_peft_model_state_dict(adapted.module, save_embedding_layers=False)
        adapter = {name: tensor.detach().cpu() for name, tensor in state.items()}
        config = adapted.module.peft_config["default"].to_dict()
        deltas = _embedding_deltas(adapted, base)
    write_parts(folder, adapter, config, deltas, base)


def write_parts(
    folder: Path,
    adapter: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    deltas: Deltas,
    base: Base,
) -> None:
    """Write the weights of a bundle for `base`; what is empty is left out.

    Args:
        folder: The bundle's.
        adapter: Low-rank matrices, by the names that peft gives them.
        config: Of peft, for them.
        deltas: What else changed.
        base: The model that they are laid on; the configuration names it by digest, not by path.
    """
    if adapter:
        save_file({n: t.contiguous() for n, t in adapter.items()}, folder / ADAPTER_FILE)
        reference = f"tapestry:{base.identity.manifest or base.identity.tensors}"
        table = {
            **config,
            "base_model_name_or_path": reference,
            "inference_mode": True,
            "revision": None,
        }
        text = json.dumps(table, indent=1, sort_keys=True, default=_plain)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    if deltas.rows or deltas.dense:
        (folder / DELTAS_FILE).write_bytes(deltas.to_bytes())


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)


def base_tensors(folder: Path, names: set[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors of the model in `folder` as float32: all, or those of `names` there are."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            there = set(opened.keys())
            for name in sorted(there if names is None else names & there):
                yield name, opened.get_tensor(name).float()


def _embedding_deltas(adapted: Adapted, base: Base) -> Deltas:
    trained = {id(layer.weight): layer.weight for layer in embeddings_of(adapted.plain)}
    named = {
        name: parameter.detach().cpu()
        for name, parameter in adapted.plain.named_parameters()
        if id(parameter) in trained
    }
    rows = {
        name: row_delta(before, named[name])
        for name, before in base_tensors(base.folder, set(named))
    }
    return Deltas(rows={n: c for n, c in rows.items() if len(c.rows) or len(c.new)}, dense={})


def _patch(adapted: Adapted, base: Base) -> tuple[dict[str, torch.Tensor], Deltas, dict[str, Any]]:
    """Turn a fully trained model into low-rank matrices, by truncated singular values."""
    named = {n: p.detach().cpu().float() for n, p in adapted.plain.named_parameters()}
    rows = _embedding_deltas(adapted, base).rows
    embeddings = {id(layer.weight) for layer in embeddings_of(adapted.plain)}
    aside = {n for n, p in adapted.plain.named_parameters() if id(p) in embeddings}
    adapter: dict[str, torch.Tensor] = {}
    dense: dict[str, torch.Tensor] = {}
    targets: list[str] = []
    linear = [n for n, p in named.items() if p.ndim == 2 and n not in aside]
    rank = min(_PATCH_RANK, *(min(named[n].shape) for n in linear)) if linear else 0
    for name, before in base_tensors(base.folder, set(named) - aside):
        change = named[name] - before
        if not bool(change.any()):
            continue
        if name not in linear:
            dense[name] = change
            continue
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        root = values[:rank].sqrt()
        layer = name.removesuffix(".weight")
        adapter[f"base_model.model.{layer}.lora_A.weight"] = root[:, None] * right[:rank]
        adapter[f"base_model.model.{layer}.lora_B.weight"] = left[:, :rank] * root
        targets.append(layer)
    config = LoraConfig(
        r=max(1, rank), lora_alpha=max(1, rank), target_modules=targets, task_type="CAUSAL_LM"
    )
    return adapter, Deltas(rows=rows, dense=dense), config.to_dict()


def laid_on(adapted: Adapted, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set low-rank matrices from a bundle's adapter file, by the names in it."""
    named = dict(adapted.module.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            there = name.replace(".lora_A.", ".lora_A.default.")
            there = there.replace(".lora_B.", ".lora_B.default.")
            if there not in named or named[there].shape != tensor.shape:
                raise UntrustedError(f"adapter: {name[:80]!r} does not fit the base")
            named[there].copy_(tensor)
