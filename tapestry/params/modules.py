"""Between a torch module and its parameter vector.

Shapes: P elements of the vector.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch

from tapestry.errors import RejectedError
from tapestry.params.codecs import Float32Array
from tapestry.params.floats import Vector
from tapestry.params.layout import ParameterLayout, TensorSpec
from tapestry.params.sharding import placed, whole


class ExtraBytes(Protocol):
    """A tensor beside the vector, as its file holds it."""

    @property
    def data(self) -> bytes:
        """Row-major, little-endian."""
        ...


def layout_of(module: torch.nn.Module, *, exclude: frozenset[str] = frozenset()) -> ParameterLayout:
    """Return the layout of the trainable parameters of `module`.

    Tied parameters are counted once, under the first name that `named_parameters` gives.

    Args:
        module: Any torch module.
        exclude: Names of parameters that stay on the node (the objective's `non_averageable`).
    """
    return ParameterLayout.from_shapes(
        (name, tuple(parameter.shape))
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and name not in exclude
    )


def from_model(module: torch.nn.Module, layout: ParameterLayout) -> Float32Array:
    """Return the parameter vector of `module`: [P] float32."""
    vector = np.empty(layout.elements, np.float32)
    for spec, parameter in _matched(module, layout):
        vector[spec.offset : spec.offset + spec.size] = flat_float32(parameter)
    return vector


def to_model(vector: Vector, module: torch.nn.Module, layout: ParameterLayout) -> None:
    """Copy `vector` ([P] float32, may be memory-mapped) into the parameters of `module`.

    Raises:
        RejectedError: The module's parameters are not the layout's.
    """
    if vector.shape != (layout.elements,):
        raise RejectedError(
            f"the vector has {vector.shape} elements, the layout {layout.elements:,}: "
            "both must come from the same model configuration"
        )
    matched = list(_matched(module, layout))  # all or nothing: refuse before the first copy
    with torch.no_grad():
        for spec, parameter in matched:
            values = np.array(vector[spec.offset : spec.offset + spec.size], np.float32)
            parameter.copy_(placed(torch.from_numpy(values).view(spec.shape), parameter))


def flat_float32(tensor: torch.Tensor) -> Float32Array:
    """Return `tensor` flattened row-major, float32, on the CPU."""
    flat: Float32Array = whole(tensor).to("cpu", torch.float32).contiguous().view(-1).numpy()
    return flat


def fragment_of(module: torch.nn.Module, layout: ParameterLayout, index: int) -> Float32Array:
    """Return one fragment of the module's vector: float32, on the CPU."""
    return FragmentReader(module, layout).read(index)


class FragmentReader:
    """The fragments of a module's vector, one after the other.

    A tensor of a sharded module is gathered once, and kept while fragments cut through it: every
    process of the group reads all fragments, in the same order.
    """

    def __init__(self, module: torch.nn.Module, layout: ParameterLayout) -> None:
        """Read from `module`, which stays as it is meanwhile."""
        self._parameters = dict(module.named_parameters())
        self._layout = layout
        self._gathered = ("", torch.empty(0))

    def read(self, index: int) -> Float32Array:
        """Return a fragment: float32, on the CPU."""
        start, stop = self._layout.bounds(index)
        fragment = np.empty(stop - start, np.float32)
        filled = 0
        for spec, first, last in slices(self._layout, start, stop):
            flat = self._flat(spec.name)[first:last]
            fragment[filled : filled + last - first] = flat.to("cpu", torch.float32).numpy()
            filled += last - first
        return fragment

    def _flat(self, name: str) -> torch.Tensor:
        if self._gathered[0] != name:
            self._gathered = (name, whole(self._parameters[name]).reshape(-1))
        return self._gathered[1]


def slices(layout: ParameterLayout, start: int, stop: int) -> Iterator[tuple[TensorSpec, int, int]]:
    """Yield the tensors that elements start..stop of the vector cut through.

    Yields:
        The tensor, and the range of its own flat elements.
    """
    for spec in layout.tensors:
        first, last = max(start, spec.offset), min(stop, spec.offset + spec.size)
        if first < last:
            yield spec, first - spec.offset, last - spec.offset


def _matched(
    module: torch.nn.Module, layout: ParameterLayout
) -> Iterator[tuple[TensorSpec, torch.Tensor]]:
    parameters = dict(module.named_parameters())
    for spec in layout.tensors:
        parameter = parameters.get(spec.name)
        if parameter is None or tuple(parameter.shape) != spec.shape:
            found = "nothing" if parameter is None else f"shape {tuple(parameter.shape)}"
            raise RejectedError(
                f"the layout has {spec.name} of shape {spec.shape}, the model has {found}: "
                "both must come from the same model configuration"
            )
        yield spec, parameter


def outside_the_vector(module: torch.nn.Module, layout: ParameterLayout) -> dict[str, torch.Tensor]:
    """Return the tensors of `module` that its file needs beside the vector.

    These are frozen parameters, persistent buffers and whatever the objective does not average;
    a tensor that is tied to one of the vector is not among them.
    """
    names = {spec.name for spec in layout.tensors}
    state = module.state_dict(keep_vars=True)
    seen = {id(tensor) for name, tensor in state.items() if name in names}
    rest: dict[str, torch.Tensor] = {}
    for name in sorted(state):
        if name not in names and id(state[name]) not in seen:
            seen.add(id(state[name]))
            rest[name] = state[name].detach()
    return rest


def load_extras(module: torch.nn.Module, extras: Mapping[str, ExtraBytes]) -> None:
    """Copy the tensors beside the vector into `module`.

    Raises:
        RejectedError: The module has no such tensor, or one of another size.
    """
    state = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, extra in extras.items():
            target = state.get(name)
            if target is None or target.numel() * target.element_size() != len(extra.data):
                raise RejectedError(f"the checkpoint has a tensor {name} that the model has not")
            if not extra.data:
                continue
            raw = torch.frombuffer(bytearray(extra.data), dtype=torch.uint8)
            target.copy_(placed(raw.view(target.dtype).view(target.shape), target))
