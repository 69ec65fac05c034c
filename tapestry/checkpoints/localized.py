"""A localized model's folder: what transformers loads, and where it comes from.

```
model.safetensors config.json tokenizer.json ...   what transformers loads
tapestry-parent.json                               the consensus checkpoint it was made from
README.md                                          what it is, if its maker says so
```
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tapestry.checkpoints.beside import BesideTensor
from tapestry.checkpoints.folder import STATEMENTS, building
from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.vector_file import MODEL_FILE, VectorWriter
from tapestry.params.codecs import Float32Array
from tapestry.params.layout import ParameterLayout

PARENT_FILE = "tapestry-parent.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parentage:
    """Where a localized model comes from and what it gained."""

    federation: str
    """Genesis digest, hex."""
    manifest: str
    """Manifest digest of the consensus checkpoint, hex."""
    round: int
    steps: int
    tokens: int
    data: list[str]
    """Names of the files or folders it was trained on, without their paths."""
    held_out_bits_per_byte: dict[str, float]
    """`before` and `after`, on the user's held-out text."""


def write_localized(
    target: Path,
    *,
    base: Path,
    manifest: Manifest,
    layout: ParameterLayout,
    extras: Mapping[str, BesideTensor],
    read_fragment: Callable[[int], Float32Array],
    parentage: Parentage,
    readme: str = "",
) -> None:
    """Write a model of the base's architecture with other parameters; whole or not at all.

    Args:
        target: Must not exist.
        base: Folder of the consensus checkpoint; configuration and tokenizer are copied.
        manifest: Of the base.
        layout: Of the vector.
        extras: Tensors beside the vector.
        read_fragment: Fragment index -> float32 elements.
        parentage: Goes into `tapestry-parent.json`.
        readme: Markdown that goes beside it.
    """
    with building(target.resolve()) as folder:
        for entry in manifest.files:
            if entry.name != MODEL_FILE and not entry.name.startswith(f"{STATEMENTS}/"):
                shutil.copyfile(base / entry.name, folder / entry.name)
        with (folder / MODEL_FILE).open("wb") as file:
            writer = VectorWriter(file, layout, extras)
            for index in range(layout.fragments):
                writer.write(read_fragment(index))
            writer.finish()
        text = json.dumps(asdict(parentage), indent=1) + "\n"
        (folder / PARENT_FILE).write_text(text, encoding="utf-8")
        if readme:
            (folder / "README.md").write_text(readme, encoding="utf-8")
