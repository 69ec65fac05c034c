"""What an operator adds to a model card."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry_coordinator.card import IMAGE_NAME, NOTES_FILE, write_card
from tapestry_coordinator.database import database_url
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.registry import Registry

_PNG = b"\x89PNG\r\n\x1a\n"
_OWN_IMAGE = "results.png"


def annotate_card(home: CoordinatorHome, number: int, notes: Path, images: Sequence[Path]) -> None:
    """Keep notes and images for a checkpoint, and write its card again.

    Raises:
        ConfigError: There is no such checkpoint, or a file is not readable, not UTF-8, not a PNG.
    """
    if not home.checkpoint(number).is_dir():
        raise ConfigError(f"there is no checkpoint {number} in {home.published}")
    try:
        text = notes.read_text(encoding="utf-8")
        contents = {image.name: image.read_bytes() for image in images}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}") from error
    for name, content in contents.items():
        if not content.startswith(_PNG) or not IMAGE_NAME.fullmatch(name) or name == _OWN_IMAGE:
            raise ConfigError(f"{name}: not a PNG, or its name is not plain or taken")
    target = home.notes(number)
    target.mkdir(parents=True, exist_ok=True)
    write_atomic(target / NOTES_FILE, text)
    for name, content in contents.items():
        write_atomic(target / name, content)
    with closing(Registry(database_url(home))) as registry:
        write_card(
            home.checkpoint(number),
            registry.lineage(number),
            registry.evaluations(),
            home.load_signing_key(),
            notes=target,
        )
