"""Canaries: random text that is planted among the institution's, to measure what is memorised.

After Carlini et al., *The Secret Sharer* (arXiv 1802.08232): whoever can tell planted text from
other text of the same form by the model's loss has a measure of how much the model remembers.
"""

import json
import random
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from tapestry.data.corpus import hashed_share
from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry_node.home import NodeHome

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_LENGTH = 16
"""Random letters of a canary: 83 bits, which nobody guesses."""
_PREFIX = "canary"
_TEXT_FILE = "canaries.txt"
_RECORD_FILE = "planted.json"
_ALWAYS_TRAINED = 0.5
"""Documents with a smaller hashed share may be held out; a planted one must not be."""
MOST = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """What is in the folder of canaries."""

    seed: int
    repeats: int
    """How often each stands in the text."""
    planted: list[str]


def form(rng: random.Random) -> str:
    """Return random text of a canary's form."""
    return f"{_PREFIX} " + " ".join(rng.choice(_LETTERS) for _ in range(_LENGTH))


def references(planted: Planted, count: int) -> list[str]:
    """Return other text of the same form, the same at every call."""
    rng = random.Random(f"{planted.seed} references")  # noqa: S311 - repeatable, no secret
    return [form(rng) for _ in range(count)]


def plant(home: NodeHome, count: int, *, repeats: int, seed: int | None = None) -> Planted:
    """Write canaries as a text that the node trains on from its next start.

    Raises:
        ConfigError: Some are planted already, or the numbers cannot be used.
    """
    if not 1 <= count <= MOST or not 1 <= repeats <= 1000:
        raise ConfigError(f"{count} canaries, {repeats} times: expected 1 to {MOST:,}, 1 to 1,000")
    if planted(home) is not None:
        raise ConfigError(
            f"{home.canaries}: canaries are planted already; `tapestry node canaries remove` first"
        )
    chosen = secrets.randbits(48) if seed is None else seed
    rng = random.Random(f"{chosen} planted")  # noqa: S311 - repeatable from the record
    texts: list[str] = []
    while len(texts) < count:
        text = form(rng)
        if hashed_share(text) >= _ALWAYS_TRAINED:
            texts.append(text)
    made = Planted(seed=chosen, repeats=repeats, planted=texts)
    home.canaries.mkdir(mode=0o700, exist_ok=True)
    documents = [text for text in texts for _ in range(repeats)]
    rng.shuffle(documents)
    write_atomic(home.canaries / _TEXT_FILE, "\n\n".join(documents) + "\n", mode=0o600)
    write_atomic(home.canaries / _RECORD_FILE, json.dumps(asdict(made)) + "\n", mode=0o600)
    return made


def planted(home: NodeHome) -> Planted | None:
    """Return what is planted; None: nothing.

    Raises:
        ConfigError: The record is damaged.
    """
    path = home.canaries / _RECORD_FILE
    try:
        return Planted(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove the folder") from error


def planted_text(home: NodeHome) -> list[Path]:
    """Return the text that the trainer mixes in: one file, or none."""
    return [] if planted(home) is None else [home.canaries / _TEXT_FILE]


def remove(home: NodeHome) -> bool:
    """Take the canaries out of the next round's text; return whether there were some."""
    there = home.canaries.exists()
    shutil.rmtree(home.canaries, ignore_errors=True)
    return there
