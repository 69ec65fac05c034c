"""What a recipe's files hold: read once, filtered by the charter, split, and counted."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapestry.data.language import UNKNOWN, can_identify, identify, kin_of, language_name
from tapestry.errors import ConfigError
from tapestry_finetune.base import Base
from tapestry_finetune.charter.cases import chat_rows, pair_rows
from tapestry_finetune.charter.guard import Guard
from tapestry_finetune.charter.linting import lint
from tapestry_finetune.charter.settings import Charter, load_charter
from tapestry_finetune.examples import (
    Examples,
    answer_examples,
    chat_examples,
    split,
    text_examples,
    with_replay,
)
from tapestry_finetune.lineage import SourceRecord
from tapestry_finetune.recipe import Recipe, beside
from tapestry_finetune.rows.kinds import (
    ChatRow,
    PairRow,
    Row,
    TextRow,
    ThumbRow,
    row_text,
    thumbs_of,
)
from tapestry_finetune.rows.looking import foreign, shares_of, tags_of
from tapestry_finetune.rows.reading import Rows, read_rows

_MUCH_FOREIGN = 0.1
_RARE = 0.01
"""Of the documents of the open text: fewer are no language of their own."""
_HELD_OUT_REPLAY = 0.2
"""So that what is forgotten shows on text that was not replayed."""

OnReading = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """Everything that is learnt from, and everything that is held out."""

    text: list[TextRow]
    chats: list[ChatRow]
    preferences: list[PairRow] | list[ThumbRow]
    held_out: list[Row]
    charter: Charter | None
    sources: tuple[SourceRecord, ...]
    said: list[str] = field(default_factory=list)
    """What a person should know of the reading, sentence by sentence."""

    def learnt(self) -> list[Row]:
        """Return every row that is learnt from."""
        return [*self.text, *self.chats, *self.preferences]

    def held_out_text(self) -> list[str]:
        """Return the running text that is never learnt from."""
        return [row.text for row in self.held_out if isinstance(row, TextRow)]

    def held_out_of(self, stage: str) -> int:
        """Return how many rows of the kind that a stage learns from are held out."""
        kind = {"language": TextRow, "instruct": ChatRow}.get(stage, PairRow | ThumbRow)
        return sum(isinstance(row, kind) for row in self.held_out)

    def held_out_chats(self) -> list[ChatRow]:
        """Return the conversations that are never learnt from."""
        return [row for row in self.held_out if isinstance(row, ChatRow)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """The federation's open text."""

    learnt: list[str]
    measured: dict[str, list[str]]
    """By language; `UNKNOWN` where it cannot be told."""


def gather(
    recipe: Recipe,
    where: Path,
    *,
    skip_bad: Path | None = None,
    on_progress: OnReading | None = None,
    are_gone: bool = False,
) -> Gathered:
    """Read all that a recipe names.

    Args:
        recipe: What is to be made.
        where: The recipe's file; paths in it are relative to its folder.
        skip_bad: A folder that bad rows are moved to; None refuses them.
        on_progress: Told how far the reading is.
        are_gone: The files are no longer there, and nothing is read of them.

    Raises:
        RowFaults: Rows that cannot be used; all of them are named.
        ConfigError: A file is missing or holds rows of another kind.
    """
    charter = load_charter(beside(where, recipe.model.charter)) if recipe.model.charter else None
    said = [] if charter is None else _of_charter(charter, recipe.model.charter)
    reading = _Reading(recipe, where, skip_bad, on_progress, Guard(charter) if charter else None)
    wanted = () if are_gone else recipe.training.stages
    text: tuple[Row, ...] = ()
    chats: tuple[Row, ...] = ()
    preferences: tuple[Row, ...] = ()
    if "language" in wanted or "vocab" in wanted:
        text = reading.rows(recipe.data.text, "text", ("text",))
    if "instruct" in wanted:
        chats = reading.rows(recipe.data.chats, "chats", ("chat",))
    if "values" in wanted:
        preferences = reading.rows(recipe.data.preferences, "preferences", ("pairs", "thumbs"))
    if charter is not None and "instruct" in wanted:
        chats = (*chats, *chat_rows(charter))
    if charter is not None and "values" in wanted:
        cases = pair_rows(charter)
        thumbs = [thumb for pair in cases for thumb in thumbs_of(pair)]
        preferences = (*preferences, *(thumbs if _is_thumbs(preferences) else cases))
    return Gathered(
        text=[row for row in text if isinstance(row, TextRow)],
        chats=[row for row in chats if isinstance(row, ChatRow)],
        preferences=list(preferences),  # type: ignore[arg-type]
        held_out=reading.held_out,
        charter=charter,
        sources=tuple(reading.sources),
        said=[*said, *reading.said],
    )


def _of_charter(charter: Charter, name: str) -> list[str]:
    """Return what to say of a charter that `charter lint` finds errors in."""
    errors = [finding for finding in lint(charter) if finding.level == "error"]
    if not errors:
        return []
    first = f"{errors[0].where}: {errors[0].what}"
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    return [f"warning: {name}: {count} by `tapestry finetune charter lint`, the first: {first}"]


def stage_examples(
    stage: str,
    gathered: Gathered,
    tokenizer: Any,  # noqa: ANN401 - transformers is not typed
    base: Base,
    recipe: Recipe,
    *,
    sequence_tokens: int,
) -> Examples:
    """Return what a stage learns from, as tokens, with its part of replay.

    Raises:
        ConfigError: No row fits into a sequence.
    """
    if stage == "values":
        return _preference_examples(gathered.preferences, tokenizer, sequence_tokens)
    share = replay_share(stage, recipe)
    if stage == "language":
        texts = [row.text for row in gathered.text]
        own = text_examples(tokenizer, texts, sequence_tokens=sequence_tokens)
    else:
        own = chat_examples(
            tokenizer,
            [row.messages for row in gathered.chats],
            [str(row.origin) for row in gathered.chats],
            sequence_tokens=sequence_tokens,
        )
    replayed = replay_of(base).learnt if share else []
    if not replayed:
        return own
    replay = text_examples(tokenizer, replayed, sequence_tokens=sequence_tokens)
    return with_replay(own, replay, share, seed=recipe.training.seed)


def replay_share(stage: str, recipe: Recipe) -> float:
    """Return how much of a stage is open text, where the federation publishes some."""
    return recipe.training.replay * {"language": 1.0, "instruct": 0.5}.get(stage, 0.0)


def replay_of(base: Base) -> Replay:
    """Return the federation's open text: what may be replayed, and what is measured on.

    Every language of which there are several documents has its part in both.
    """
    documents = base.replay()
    by_language: dict[str, list[str]] = {}
    for document, tag in zip(documents, _languages_of(documents), strict=True):
        by_language.setdefault(tag, []).append(document)
    parts = {tag: split(found, found, _HELD_OUT_REPLAY) for tag, found in by_language.items()}
    return Replay(
        learnt=[document for kept, _ in parts.values() for document in kept],
        measured={tag: out for tag, (_, out) in parts.items() if out},
    )


def _languages_of(documents: Sequence[str]) -> list[str]:
    """Return the languages of open text, as far as all documents together tell them.

    A language that hardly any document is in is rather mistaken than there: such a document counts
    as in its most frequent kin, or as `UNKNOWN`.
    """
    tags = [identify(document) or UNKNOWN for document in documents]
    counts = Counter(tag for tag in tags if tag != UNKNOWN)
    fewest = max(2, math.ceil(_RARE * len(tags)))
    meant = {UNKNOWN: UNKNOWN}
    for tag, count in counts.items():
        best = max(kin_of(tag) & counts.keys() | {tag}, key=lambda one: (counts[one], one))
        meant[tag] = tag if count >= fewest else best if counts[best] >= fewest else UNKNOWN
    return [meant[tag] for tag in tags]


def _preference_examples(
    rows: Sequence[PairRow | ThumbRow],
    tokenizer: Any,  # noqa: ANN401
    sequence_tokens: int,
) -> Examples:
    pairs = [row for row in rows if isinstance(row, PairRow)]
    thumbs = [row for row in rows if isinstance(row, ThumbRow)]
    answers: list[dict[str, Any]] = [
        {"chosen": row.chosen, "rejected": row.rejected} for row in pairs
    ]
    answers += [{"completion": row.answer, "label": row.is_good} for row in thumbs]
    return answer_examples(
        tokenizer,
        [row.prompt for row in rows],
        answers,
        [str(row.origin) for row in rows],
        kind="pairs" if pairs else "thumbs",
        sequence_tokens=sequence_tokens,
    )


class _Reading:
    """Reads what a recipe names, and remembers where it came from."""

    def __init__(
        self,
        recipe: Recipe,
        where: Path,
        skip_bad: Path | None,
        on_progress: OnReading | None,
        guard: Guard | None,
    ) -> None:
        self.recipe, self.where = recipe, where
        self.skip_bad, self.on_progress, self.guard = skip_bad, on_progress, guard
        self.sources: list[SourceRecord] = []
        self.held_out: list[Row] = []
        self.said: list[str] = []

    def rows(self, names: Sequence[str], key: str, kinds: Sequence[str]) -> tuple[Row, ...]:
        """Return the rows of `names` that are learnt from; the rest is kept aside."""
        if not names:
            return ()
        data = self.recipe.data
        if self.skip_bad is not None:
            self.skip_bad.mkdir(parents=True, exist_ok=True)
        found = read_rows(
            [beside(self.where, name) for name in names],
            shape=(data.shape or None) if key != "text" else None,
            roles=data.roles,
            columns=data.columns,
            skip_bad=self.skip_bad / f"{key}.jsonl" if self.skip_bad else None,
            on_progress=self.on_progress,
        )
        if found.kind not in kinds:
            raise ConfigError(
                f"data.{key}: these files hold {found.kind}, expected {' or '.join(kinds)}; name "
                "them under the key that they belong to"
            )
        self.said += found.announcements
        self._remember(found)
        self._warn_of_languages(found, key)
        rows = self._unprotected(found, key)
        keys = [row_text(row) for row in rows]
        kept, out = split(rows, keys, data.held_out)
        self.held_out += out
        return tuple(kept)

    def _warn_of_languages(self, found: Rows, key: str) -> None:
        """Say so if much of the text is in no language that the recipe declares."""
        declared = self.recipe.model.languages
        if not declared or not all(map(can_identify, declared)):
            return
        shares = shares_of(found.rows, tags_of(found.rows))
        others = [share for share in shares if all(foreign([share], one) for one in declared)]
        part = sum(share.bytes for share in others) / max(1, sum(share.bytes for share in shares))
        if part > _MUCH_FOREIGN:
            first = others[0]
            self.said.append(
                f"warning: {part:.0%} of data.{key} is not in {', '.join(declared)} but in "
                f"{language_name(first.language)} and others (first {first.first}); take it out, "
                "or declare it in model.languages"
            )

    def _remember(self, found: Rows) -> None:
        licence = self.recipe.data.licence
        self.sources += [
            SourceRecord(
                name=source.name,
                licence=", ".join(sorted(source.licences)) or licence,
                rows=source.rows,
                size_bytes=source.bytes,
                digest=source.digest,
            )
            for source in found.sources
        ]

    def _unprotected(self, found: Rows, key: str) -> list[Row]:
        if self.guard is None:
            return found.rows
        kept = [row for row in found.rows if self.guard.is_protected(row_text(row)) is None]
        gone = len(found.rows) - len(kept)
        if gone:
            self.said.append(f"{gone:,} rows of data.{key} left out: protected by the charter")
        if not kept:
            raise ConfigError(f"data.{key}: the charter protects every row; nothing is left")
        return kept


def _is_thumbs(rows: Sequence[Row]) -> bool:
    return any(isinstance(row, ThumbRow) for row in rows)
