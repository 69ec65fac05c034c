"""Models of others, through transformers: from a local folder, safetensors only, never their code.

transformers raises whatever its libraries raise over a damaged or hostile folder; here all of it
becomes one line that names the folder.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tapestry.errors import ConfigError

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@contextmanager
def refusing(folder: Path, says: str) -> Iterator[None]:
    """Turn any failure of the block into a ConfigError that begins with folder and `says`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = lines[0][:300] if lines else type(error).__name__
        raise ConfigError(f"{folder}: {says}: {cause}") from error


def build_model(folder: Path) -> torch.nn.Module:
    """Return the model that `config.json` in `folder` describes; its weights are unset.

    Raises:
        ConfigError: It describes none that this version of transformers knows.
    """
    says = "its config.json does not describe a causal language model that transformers knows"
    with refusing(folder, says):
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
        module: torch.nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    return module


def load_model(folder: Path) -> torch.nn.Module:
    """Return the model in `folder` with its weights, in float32.

    Raises:
        ConfigError: There is none, or its weights are not complete: none is made up.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a model in transformers' format")
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder}: has no .safetensors file; other formats can run code when they are read. "
            "Convert it with `save_pretrained(..., safe_serialization=True)`"
        )
    with refusing(folder, "cannot be loaded as a causal language model"):
        module, info = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **_LOCAL
        )
        missing = sorted(str(key) for key in info["missing_keys"])
        if missing:
            raise ConfigError(
                f"{folder}: cannot be loaded as a causal language model: its files lack "
                f"{len(missing)} tensors, {missing[0]} among them"
            )
    loaded: torch.nn.Module = module
    return loaded


def load_text_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers is not typed
    """Return the tokenizer in `folder` as transformers wraps it.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder}: no tokenizer.json here")
    with refusing(folder, "its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(folder, **_LOCAL)
