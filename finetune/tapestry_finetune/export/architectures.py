"""What GGUF calls the parts of a model: of the two architectures that a consensus has here.

llama.cpp rotates neighbouring elements where transformers rotates the halves of a head: for
`llama` the rows of query and key are reordered so that both come to the same; for `qwen3`
llama.cpp rotates halves too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import torch

from tapestry.errors import ConfigError

_SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """How one model is written."""

    name: str
    """As GGUF and transformers both call it."""
    names: gguf.TensorNameMap
    heads: int
    key_value_heads: int
    head_elements: int
    interleaves: bool
    """Whether the rows of query and key are reordered."""

    def tensor_name(self, name: str) -> str | None:
        """Return GGUF's name of a tensor of transformers'; None: it knows none."""
        return self.names.get_name(name, try_suffixes=_SUFFIXES)

    def stored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor as GGUF holds it; of an adapter's second factor too, whose rows they are.

        Args:
            name: GGUF's name of the weight.
            tensor: [rows, ...].
        """
        heads = self._heads_of(name)
        if not heads:
            return tensor
        halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    def restored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of GGUF's as transformers holds it: the inverse of `stored`."""
        heads = self._heads_of(name)
        if not heads:
            return tensor
        pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)

    def _heads_of(self, name: str) -> int:
        """Return how many heads the rows of a weight are reordered within; 0: they are not."""
        parts = name.split(".")
        part = parts[2] if self.interleaves and len(parts) > 2 and parts[0] == "blk" else ""
        return {"attn_q": self.heads, "attn_k": self.key_value_heads}.get(part, 0)


def architecture_of(config: Any) -> Architecture:  # noqa: ANN401 - transformers is not typed
    """Return how a model with this configuration is written.

    Raises:
        ConfigError: GGUF would not say all that the model does; with what is in the way.
    """
    kinds = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}
    kind = str(config.model_type)
    if kind not in kinds:
        raise ConfigError(
            f"GGUF is written here for {' and '.join(kinds)}, this model is {kind!r}: "
            "export it as `merged`, and convert that with llama.cpp's own converter"
        )
    for obstacle in _obstacles(config):
        raise ConfigError(f"GGUF cannot say {obstacle}: export the model as `merged`")
    heads = int(config.num_attention_heads)
    return Architecture(
        name=kind,
        names=gguf.get_tensor_name_map(kinds[kind], int(config.num_hidden_layers)),
        heads=heads,
        key_value_heads=int(config.num_key_value_heads),
        head_elements=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        interleaves=kind == "llama",
    )


def _obstacles(config: Any) -> Iterator[str]:  # noqa: ANN401
    rope = _rope(config)
    if rope.get("rope_type", "default") != "default":
        yield f"positions of type {rope['rope_type']!r} (rope_parameters.rope_type)"
    if getattr(config, "hidden_act", "silu") != "silu":
        yield f"the activation {config.hidden_act!r}"
    if getattr(config, "use_sliding_window", False):
        yield "attention in a sliding window"


def _rope(config: Any) -> Mapping[str, Any]:  # noqa: ANN401
    rope = getattr(config, "rope_parameters", None) or {}
    return dict(rope) | {"rope_theta": rope.get("rope_theta", getattr(config, "rope_theta", 1e4))}


def add_shape(writer: gguf.GGUFWriter, config: Any, architecture: Architecture) -> None:  # noqa: ANN401
    """Write what llama.cpp builds the model from."""
    writer.add_context_length(int(config.max_position_embeddings))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(architecture.heads)
    writer.add_head_count_kv(architecture.key_value_heads)
    writer.add_key_length(architecture.head_elements)
    writer.add_value_length(architecture.head_elements)
    writer.add_rope_dimension_count(architecture.head_elements)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_vocab_size(int(config.vocab_size))


def stored_tensors(
    module: Any,  # noqa: ANN401
    architecture: Architecture,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a transformers module by GGUF's names, as GGUF holds them.

    Raises:
        ConfigError: GGUF knows no place for one of them.
    """
    tied = bool(module.config.tie_word_embeddings)
    stored = {}
    for name, tensor in module.state_dict().items():
        if tied and name == "lm_head.weight":
            continue  # llama.cpp takes the embedding
        theirs = architecture.tensor_name(name)
        if theirs is None:
            raise ConfigError(f"GGUF has no place for the tensor {name}: export as `merged`")
        stored[theirs] = architecture.stored(theirs, tensor)
    return stored
