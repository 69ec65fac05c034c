"""What a model card and a bill of materials tell of one checkpoint, gathered once for both."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestry.checkpoints.folder import POLICY_JSON
from tapestry.checkpoints.manifest import Lineage, Manifest
from tapestry.checkpoints.policy import PublicationPolicy, published_policy
from tapestry.checkpoints.statements import payload_digest
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.no_harm import Dissent, dissents
from tapestry_coordinator.testimony import StoredEvaluation

_CONFIG_FILE = "config.json"
_SPDX = (
    "AFL-3.0", "AGPL-3.0-only", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause",
    "BSL-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0",
    "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "ECL-2.0",
    "EPL-2.0", "EUPL-1.2", "GPL-3.0-only", "ISC", "LGPL-3.0-only", "MIT", "MPL-2.0", "ODbL-1.0",
    "PDDL-1.0", "Unlicense", "Zlib",
)  # fmt: skip
"""Licences that the Hub has a name for; others are given in words."""
_SPDX_OF = {name.lower(): name for name in _SPDX}
_HUB_NAMES = {
    "AGPL-3.0-only": "agpl-3.0",
    "GPL-3.0-only": "gpl-3.0",
    "LGPL-3.0-only": "lgpl-3.0",
    "ODbL-1.0": "odbl",
    "PDDL-1.0": "pddl",
}
_MOST_ADDED_UP = 8
_added_up: dict[str, Mapping[str, int]] = {}
"""Tokens by member up to a manifest, by its digest: of the newest, from which the next goes on."""
_BLANK = re.compile(r"\s+")


def spdx_identifier(licence: str) -> str | None:
    """Return the SPDX identifier that a licence's name is, in its own spelling; None: words."""
    return _SPDX_OF.get(licence.strip().lower())


def hub_licence(licence: str) -> str | None:
    """Return the Hub's name of a licence, None if it has none."""
    known = spdx_identifier(licence)
    return None if known is None else _HUB_NAMES.get(known, known.lower())


def one_line(text: str) -> str:
    """Return somebody's words without line breaks and whatever cannot be printed."""
    return _BLANK.sub(" ", "".join(c if c.isprintable() else " " for c in text)).strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A checkpoint, and all that the federation knows about it by now."""

    genesis: Lineage
    manifest: Manifest
    digest: str
    """Of the manifest."""
    history: Sequence[StoredEvaluation]
    """What was measured of this checkpoint and of those before."""
    dissent: Sequence[Dissent]
    publication: PublicationPolicy
    config: Mapping[str, Any]
    """The model's own `config.json`."""
    tokens: Mapping[str, int]
    """Seen by each member's inner steps in all rounds up to this one that gave it a weight."""

    @property
    def measured(self) -> Sequence[StoredEvaluation]:
        """What was measured of this checkpoint."""
        return [e for e in self.history if e.round == self.manifest.round]

    @property
    def federation(self) -> str:
        """The federation's name."""
        return self.genesis.origin.federation

    @property
    def name(self) -> str:
        """The checkpoint's name for other tools."""
        return f"{self.federation}-round-{self.manifest.round:06d}"

    @property
    def is_language_model(self) -> bool:
        """Whether it continues text."""
        return self.genesis.origin.objective == "causal-lm"

    @property
    def languages(self) -> list[str]:
        """Tags of the languages that were measured or declared."""
        named = {e.language for e in self.measured} | {t.language for t in self.publication.texts}
        return sorted(tag for tag in named if tag)


def describe(
    folder: Path, lineage: Sequence[Envelope], evaluations: Sequence[StoredEvaluation]
) -> Description:
    """Gather what is known about the checkpoint in `folder`.

    Args:
        folder: The checkpoint, published or being built.
        lineage: Manifests from genesis to this checkpoint's.
        evaluations: All that the federation has; those of later rounds are left out.

    Raises:
        UntrustedError: The genesis manifest or the policy in the folder is damaged.
    """
    manifest = Manifest.parsed(lineage[-1].payload, what="manifest")
    history = [e for e in evaluations if e.round <= manifest.round]
    policy = published_policy(folder / POLICY_JSON)
    limit = policy.no_harm.max_worse
    return Description(
        genesis=Lineage(lineage[0]),
        manifest=manifest,
        digest=payload_digest(lineage[-1]),
        history=history,
        dissent=dissents(history, round_number=manifest.round, max_worse=limit)
        if manifest.made is not None
        else [],
        publication=policy.publication,
        config=_config(folder),
        tokens=_tokens(lineage),
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        table = json.loads((folder / _CONFIG_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _tokens(lineage: Sequence[Envelope]) -> dict[str, int]:
    """Add up what moved the model; the manifests were verified, and may be many."""
    begin, known = _newest_known(lineage)
    tokens = Counter(known)
    for envelope in lineage[begin:] if begin else lineage:
        made = Manifest.parsed(envelope.payload, what="manifest").made
        for part in () if made is None else made.participation:
            if part.weight > 0:
                tokens[part.member_id] += part.tokens
        _added_up[payload_digest(envelope)] = dict(tokens)
        for oldest in list(_added_up)[:-_MOST_ADDED_UP]:
            del _added_up[oldest]
    return dict(sorted(tokens.items()))


def _newest_known(lineage: Sequence[Envelope]) -> tuple[int, Mapping[str, int]]:
    """Return how many manifests are added up already, of the newest few, and to what."""
    for length in range(len(lineage), max(0, len(lineage) - _MOST_ADDED_UP), -1):
        known = _added_up.get(payload_digest(lineage[length - 1]))
        if known is not None:
            return length, known
    return 0, {}
