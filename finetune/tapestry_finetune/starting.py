"""`tapestry finetune init`: from a person's files to a recipe with comments."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tapestry.config import commented_toml, parse_settings
from tapestry.data.language import UNKNOWN
from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry_finetune.inspecting import Inspection
from tapestry_finetune.recipe import Recipe, plain_name
from tapestry_finetune.rows.shapes import Reading

_HEAD = (
    "A recipe: what is made of which checkpoint and which files. Look at what it would do with\n"
    "# `tapestry finetune plan`, make it with `tapestry finetune run`. Every other key that there\n"
    "# is, with its default: `tapestry finetune init --all`."
)
_SHORT = {
    "model": ("name", "base", "languages", "charter", "licence"),
    "data": ("text", "chats", "preferences", "licence"),
    "training": ("stages", "method", "replay", "seed"),
    "floor": ("bits_per_byte_percent", "accuracy_points"),
}
_SAID = ("shape", "roles", "columns")
"""Written where the person said something about the files."""


def recipe_for(
    inspection: Inspection,
    base: Path,
    *,
    where: Path,
    name: str,
    charter: Path | None,
    reading: Reading | None = None,
) -> Recipe:
    """Return a recipe for what was seen.

    Args:
        inspection: Of the person's files.
        base: The checkpoint's folder.
        where: The recipe's file; paths in it are relative to its folder.
        name: Of the model.
        charter: The community's, if it has one.
        reading: What the person said about the files.

    Raises:
        ConfigError: There is nothing to learn from, or the name is none.
    """
    stages = list(inspection.stages)
    if charter is not None:
        stages += [stage for stage in ("instruct", "values") if stage not in stages]
        stages.sort(key=["vocab", "language", "instruct", "values"].index)
    if not stages:
        raise ConfigError("no file here can be learnt from; see `tapestry finetune doctor`")
    languages = () if inspection.language == UNKNOWN else (inspection.language,)
    data: dict[str, Any] = {
        key: tuple(_relative(path, where) for path in inspection.files_of(*kinds))
        for key, kinds in (
            ("text", ("text",)),
            ("chats", ("chat",)),
            ("preferences", ("pairs", "thumbs")),
        )
    }
    said = reading or Reading()
    table = {
        "model": {
            "name": name,
            "base": _relative(base, where),
            "languages": languages,
            "charter": _relative(charter, where) if charter is not None else "",
        },
        "data": {
            **data,
            "shape": said.shape or "",
            "roles": dict(said.roles or {}),
            "columns": dict(said.columns or {}),
        },
        "training": {"stages": tuple(stages)},
    }
    return parse_settings(table, Recipe, where="the recipe")


def write_recipe(recipe: Recipe, where: Path, *, all_keys: bool = False) -> None:
    """Write a recipe with each key's meaning above it; without `all_keys` those that matter most.

    Raises:
        ConfigError: The file is there already.
    """
    if where.exists():
        raise ConfigError(f"{where}: exists already; name another with --out, or change that one")
    short = dict(_SHORT)
    short["data"] = (*_SHORT["data"], *(k for k in _SAID if getattr(recipe.data, k)))
    keys = None if all_keys else short
    write_atomic(where, commented_toml(recipe, head=_HEAD, keys=keys))


def _relative(path: Path, where: Path) -> str:
    """Return a path as it is written in a recipe: from its folder if it lies below or beside it."""
    found = os.path.relpath(path.resolve(), where.resolve().parent)
    return str(path.resolve()) if found.startswith(f"..{os.sep}..") else found


def name_for(paths: Sequence[Path], language: str) -> str:
    """Return a name for a model that nobody has named yet."""
    return f"{plain_name(language if language != UNKNOWN else paths[0].resolve().stem)}-assistant"
