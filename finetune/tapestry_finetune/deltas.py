"""What training changed beside the linear layers: embedding rows, and after a full run the norms.

They are kept as *differences* to the base, so that they can be laid on a later base too, whose own
rows have moved. `deltas.safetensors` holds for a parameter called NAME:

```
NAME.rows int64 [R]      which rows changed, ascending
NAME.delta float32 [R,W] by how much
NAME.new float32 [N,W]   rows behind the base's last one: tokens that the base does not have
NAME.dense float32       the difference of a whole parameter
```
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from tapestry.errors import UntrustedError

DELTAS_FILE = "deltas.safetensors"
_PARTS = ("rows", "delta", "new", "dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowDelta:
    """How the rows of an embedding [V, W] changed."""

    rows: torch.Tensor
    """[R] int64."""
    delta: torch.Tensor
    """[R, W] float32."""
    new: torch.Tensor
    """[N, W] float32, values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deltas:
    """All that changed beside the linear layers, by the parameter's name in the base model."""

    rows: Mapping[str, RowDelta]
    dense: Mapping[str, torch.Tensor]

    @property
    def new_tokens(self) -> int:
        """How many tokens the base does not have."""
        return max((len(change.new) for change in self.rows.values()), default=0)

    def to_bytes(self) -> bytes:
        """Return the content of `deltas.safetensors`."""
        tensors: dict[str, torch.Tensor] = {}
        for name, change in self.rows.items():
            tensors[f"{name}.rows"] = change.rows.contiguous()
            tensors[f"{name}.delta"] = change.delta.contiguous()
            if len(change.new):
                tensors[f"{name}.new"] = change.new.contiguous()
        for name, difference in self.dense.items():
            tensors[f"{name}.dense"] = difference.contiguous()
        return bytes(save(tensors))


NOTHING = Deltas(rows={}, dense={})


def row_delta(before: torch.Tensor, after: torch.Tensor) -> RowDelta:
    """Return how an embedding changed; `after` may have more rows."""
    kept = after[: len(before)]
    rows = (kept != before).any(dim=1).nonzero().flatten()
    return RowDelta(
        rows=rows,
        delta=(kept[rows] - before[rows]).float().clone(),
        new=after[len(before) :].float().clone(),
    )


def read_deltas(path: Path) -> Deltas:
    """Read `deltas.safetensors`; nothing if it is not there.

    Raises:
        UntrustedError: It is not such a file, or does not fit together.
    """
    if not path.is_file():
        return NOTHING
    try:
        tensors = load_file(path)
    except Exception as error:
        raise UntrustedError(f"{path}: not a safetensors file: {error}") from error
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if part not in _PARTS or not name:
            raise UntrustedError(f"{path}: unknown entry {key[:80]!r}")
        grouped.setdefault(name, {})[part] = tensor
    rows, dense = {}, {}
    for name, parts in grouped.items():
        if "dense" in parts:
            dense[name] = parts["dense"]
        else:
            rows[name] = _row_delta(parts, f"{path}: {name}")
    return Deltas(rows=rows, dense=dense)


def _row_delta(parts: Mapping[str, torch.Tensor], where: str) -> RowDelta:
    if "rows" not in parts or "delta" not in parts:
        raise UntrustedError(f"{where}: has new rows only, or differences without their rows")
    rows, delta = parts["rows"], parts["delta"]
    new = parts.get("new", torch.zeros(0, delta.shape[-1]))
    is_sound = (
        rows.dtype == torch.int64
        and rows.ndim == 1
        and delta.ndim == new.ndim == 2
        and len(rows) == len(delta)
        and delta.shape[1] == new.shape[1]
        and bool((rows >= 0).all())
    )
    if not is_sound:
        raise UntrustedError(f"{where}: shapes or types do not fit together")
    return RowDelta(rows=rows, delta=delta, new=new)


@contextmanager
def applied(model: Any, deltas: Deltas, *, scale: float = 1.0) -> Iterator[None]:  # noqa: ANN401
    """Lay `deltas` on `model` for as long as the block runs.

    Args:
        model: A causal language model of transformers, without a wrapper.
        deltas: Of a bundle made for it.
        scale: Of the differences; new rows are always whole.

    Raises:
        UntrustedError: A parameter is not there or has another shape.
    """
    put_back = lay_on(model, deltas, scale=scale)
    try:
        yield
    finally:
        put_back()


def lay_on(model: Any, deltas: Deltas, *, scale: float = 1.0) -> Any:  # noqa: ANN401
    """Lay `deltas` on `model`; return what puts the base's own values back."""
    named = dict(model.named_parameters())
    before: dict[str, torch.Tensor] = {}
    size = model.get_input_embeddings().num_embeddings

    def put_back() -> None:
        for name, data in before.items():
            named[name].data = data
        _resize(model, size)

    try:
        for name, difference in deltas.dense.items():
            parameter = _parameter(named, name, tuple(difference.shape))
            before[name] = parameter.data
            parameter.data = parameter.data + scale * difference.to(parameter.data)
        for name, change in deltas.rows.items():
            parameter = _parameter(named, name, None)
            before[name] = parameter.data
            parameter.data = _grown(name, parameter.data, change, scale)
            _resize(model, len(parameter.data))
    except BaseException:
        put_back()
        raise
    return put_back


def _grown(name: str, data: torch.Tensor, change: RowDelta, scale: float) -> torch.Tensor:
    if data.ndim != 2 or data.shape[1] != change.delta.shape[1]:
        raise UntrustedError(f"{name}: the base's rows are not as wide as the bundle's")
    if len(change.rows) and int(change.rows.max()) >= len(data):
        raise UntrustedError(f"{name}: the base has {len(data):,} rows, the bundle more")
    grown = torch.cat([data, change.new.to(data)])
    grown[change.rows] += scale * change.delta.to(data)
    return grown


def _parameter(
    named: Mapping[str, torch.nn.Parameter], name: str, shape: tuple[int, ...] | None
) -> torch.nn.Parameter:
    if name not in named:
        raise UntrustedError(f"the base has no parameter {name[:80]!r}")
    parameter = named[name]
    if shape is not None and tuple(parameter.shape) != shape:
        raise UntrustedError(f"{name}: the base's has shape {tuple(parameter.shape)}, not {shape}")
    return parameter


def _resize(model: Any, rows: int) -> None:  # noqa: ANN401
    """Let the model know how many tokens it has."""
    model.get_input_embeddings().num_embeddings = rows
    head = model.get_output_embeddings()
    if head is not None:
        head.out_features = rows
    model.config.get_text_config().vocab_size = rows
