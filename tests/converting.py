"""Run apart, with gguf and accelerate on its path: weights of four bits become safetensors."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import sys
from functools import cache
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(source: Path, target: Path) -> None:
    """Write model and tokenizer of the GGUF file `source` into the folder `target`."""
    torch.set_num_threads(1)
    for slow in ("GGUFReader", "get_tensor_name_map"):  # asked anew for every part, seconds each
        setattr(gguf, slow, cache(getattr(gguf, slow)))
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    model.hf_quantizer = None  # they are dense weights now
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, local_files_only=True
    )
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
