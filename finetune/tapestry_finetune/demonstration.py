"""`tapestry finetune demo`: a localized model out of nothing but this installation.

The quick form of `tapestry demo` makes a consensus, in a process of its own; the text of one of its
institutions and the example's charter are what it is localized with.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from tapestry.errors import ConfigError

LANGUAGE = "ind"
_MEMBER = "id-"
_SHOWN_LINES = 5
_RECIPE = """\
# The demonstration's recipe; yours begins with: tapestry finetune init YOUR_FILES --base CHECKPOINT
[model]
name = "demo-assistant"
base = "{base}"
languages = ["{language}"]
charter = "charter.toml"

[data]
text = ["{text}"]
licence = "see the packages of the demonstration"

[training]
stages = ["language", "instruct", "values"]
method = "lora+embeddings"
device = "cpu"
sequence_tokens = 128
replay = 0.25

[language]
steps = 60
[instruct]
steps = 6
[values]
steps = 10

[floor]
bits_per_byte_percent = 10.0
"""


def prepare_demo(folder: Path, on_line: Callable[[str], None] = lambda _: None) -> Path:
    """Make a consensus and a recipe on it in `folder`; return the recipe.

    Args:
        folder: New, or empty. What the federation says goes into `consensus.log` in it.
        on_line: Told each line of that.

    Raises:
        ConfigError: The folder is taken, or the demonstration's texts are not installed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    federation = folder / "federation"
    command = [sys.executable, "-m", "tapestry.cli.main", "demo", "--quick"]
    said: list[str] = []
    with (
        (folder / "consensus.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [*command, "--keep", str(federation)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            said.append(line.rstrip())
            on_line(said[-1])
    if process.returncode:
        raise ConfigError(
            "\n".join(said[-_SHOWN_LINES:])
            + f"\n`tapestry demo --quick` did not end well: see {folder / 'consensus.log'} (its "
            "texts come with pip install 'tapestry-fl[demo]')"
        )
    newest = max((federation / "coordinator" / "published").glob("round-*"))
    text = _text_of(federation / "texts")
    shutil.copyfile(
        str(files("tapestry_finetune.charter") / "example.toml"), folder / "charter.toml"
    )
    recipe = folder / "recipe.toml"
    relative = {"base": newest.relative_to(folder), "text": text.relative_to(folder)}
    recipe.write_text(_RECIPE.format(**relative, language=LANGUAGE), encoding="utf-8")
    return recipe


def _text_of(texts: Path) -> Path:
    """Return the text of the institution whose language is localized."""
    found = sorted(path for path in texts.iterdir() if path.name.startswith(_MEMBER))
    if not found:
        raise ConfigError(f"{texts}: no text of an institution {_MEMBER}... here")
    return found[0]
