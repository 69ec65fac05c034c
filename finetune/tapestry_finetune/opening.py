"""What chat, serve and export are given: a bundle with its base, or a base alone."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
from dataclasses import dataclass
from pathlib import Path

from tapestry.errors import ConfigError
from tapestry_finetune.base import Base, open_base
from tapestry_finetune.bundle import LINEAGE_FILE, Bundle, open_bundle, require_base


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Verified, as far as that was asked for."""

    base: Base
    bundle: Bundle | None
    """None: the base itself is meant."""


def open_model(
    model: Path,
    *,
    base: Path | None,
    federation: str | None = None,
    key: str | None = None,
    unverified: bool = False,
) -> Opened:
    """Open a bundle with the base it was made for, or a published checkpoint.

    Args:
        model: A bundle's folder, or a checkpoint's.
        base: The checkpoint that a bundle was made for.
        federation: Identity that is expected of the base.
        key: Fingerprint that is expected of the bundle's community.
        unverified: Take a base that no federation has published.

    Raises:
        UntrustedError: One of them does not verify, or they do not belong together.
        ConfigError: A bundle came without its base, or a checkpoint with another.
    """
    if not (model / LINEAGE_FILE).is_file():
        if base is not None:
            raise ConfigError(f"{model}: not a bundle (no {LINEAGE_FILE}): leave --base away")
        alone = open_base(model, federation=federation, unverified=unverified)
        return Opened(base=alone, bundle=None)
    bundle = open_bundle(model, key=key)
    if base is None:
        made = bundle.lineage.base
        which = (
            "an unverified model" if made.round is None else f"the consensus of round {made.round}"
        )
        raise ConfigError(
            f"{model}: a bundle holds what it changed, in {which}: add --base FOLDER of that"
        )
    opened = open_base(base, federation=federation, unverified=unverified)
    require_base(bundle, opened)
    return Opened(base=opened, bundle=bundle)
