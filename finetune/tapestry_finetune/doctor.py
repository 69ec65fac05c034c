"""What people's data are like, and what that advises before training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tapestry.data.language import UNKNOWN, can_identify, kin_of, language_name
from tapestry_finetune.base import Base
from tapestry_finetune.rows.cost import Cost, CountTokens, cost_of, english
from tapestry_finetune.rows.kinds import Kind, Row, row_text
from tapestry_finetune.rows.licences import Licences, licences_of
from tapestry_finetune.rows.looking import (
    LanguageShare,
    OnRows,
    Repeat,
    foreign,
    learnt_text,
    main_language,
    repeats_of,
    shares_of,
    tags_of,
)
from tapestry_finetune.rows.overlap import Overlap, overlap
from tapestry_finetune.rows.reading import FileRows, Found, Source

FEW_CHATS = 200
"""With fewer, a charter in the prompt usually does as much as training."""
LITTLE_TEXT_BYTES = 5_000_000
"""With less, tokens of one's own and `lora+embeddings`; with more, `full` is worth its memory."""

_KINDS: tuple[Kind, ...] = ("text", "chat", "pairs", "thumbs")
_NAMED = 3
_NOTABLE = 0.01
_MUCH = 0.05
_DEAR = 1.5
_FEWEST_LETTERS_PER_TOKEN = 0.6
_LANGUAGES_MEASURED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should know."""

    level: Literal["warning", "advice"]
    what: str


@dataclass(frozen=True, slots=True)
class Amount:
    """How much there is of one kind."""

    rows: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class TooLong:
    """Rows that the base cannot read whole."""

    context_tokens: int
    rows: list[str]


@dataclass(slots=True)
class Diagnosis:
    """Everything that was looked at."""

    sources: list[Source]
    kinds: dict[Kind, Amount]
    languages: list[LanguageShare]
    repeats: list[Repeat]
    licences: Licences
    english_bytes_per_token: float | None = None
    costs: list[Cost] = field(default_factory=list)
    too_long: TooLong | None = None
    overlap: Overlap | None = None
    findings: list[Finding] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON table."""
        return asdict(self)


def diagnose(
    found: Found,
    *,
    base: Base | None = None,
    evaluation: Sequence[Path] = (),
    declared: str = "",
    on_rows: OnRows | None = None,
) -> Diagnosis:
    """Look at rows that were read.

    Args:
        found: The rows, of whatever kinds.
        base: Whose tokenizer and context count; None leaves both out.
        evaluation: Files of an evaluation that must not stand in the rows.
        declared: Tag of the language that the rows should be in; "" does not ask.
        on_rows: Told how far it is.

    Raises:
        ConfigError: A file of the evaluation cannot be read.
    """
    rows = [row for file in found.files for row in file.rows]
    tags = tags_of(rows, on_rows)
    made = Diagnosis(
        sources=[file.source for file in found.files],
        kinds=amounts(found.files),
        languages=shares_of(rows, tags),
        repeats=[r for kind in _KINDS for r in repeats_of(found.of_kind(kind), on_rows)],
        licences=licences_of(found.files),
    )
    if base is not None:
        _measure(made, rows, tags, base, declared)
    if evaluation:
        made.overlap = overlap(rows, evaluation, on_rows)
    made.findings = [
        *_of_language(made, declared, len(rows)),
        *_of_repeats(made, len(rows)),
        *_of_tokens(made, len(rows)),
        *_of_overlap(made),
        *_of_licences(made),
        *advice_on_amounts(made.kinds),
    ]
    return made


def amounts(files: Sequence[FileRows]) -> dict[Kind, Amount]:
    """Return how much there is of each kind."""
    made: dict[Kind, Amount] = {}
    for kind in _KINDS:
        rows = [row for file in files if file.kind == kind for row in file.rows]
        if rows:
            made[kind] = Amount(len(rows), sum(len(row_text(row).encode()) for row in rows))
    return made


def token_counter(base: Base) -> CountTokens:
    """Return what counts the tokens of a text as `base` reads it."""
    encode = base.tokenizer().backend_tokenizer.encode
    return lambda text: len(encode(text, add_special_tokens=False).ids)


def _measure(
    made: Diagnosis, rows: Sequence[Row], tags: Sequence[str], base: Base, declared: str
) -> None:
    """Add what the base's tokenizer and context say."""
    from tapestry_finetune.fitting import rows_beyond  # noqa: PLC0415 - imports torch

    count = token_counter(base)
    passage = english()
    made.english_bytes_per_token = len(passage.encode()) / count(passage)
    kin = kin_of(declared) | {UNKNOWN} if declared else frozenset()
    texts: dict[str, list[str]] = {}
    for row, tag in zip(rows, tags, strict=True):
        texts.setdefault(declared if tag in kin else tag, []).append(learnt_text(row))
    most = sorted(texts, key=lambda tag: -sum(map(len, texts[tag])))[:_LANGUAGES_MEASURED]
    made.costs = [cost_of(texts[tag], tag, count) for tag in most]
    context = base.context_tokens()
    made.too_long = TooLong(context, [str(o) for o in rows_beyond(context, rows, base.tokenizer())])


def few_tokens(cost: Cost, english_bytes_per_token: float) -> bool:
    """Whether a tokenizer hardly knows a script: tokens of its own are worth a stage.

    English alone does not tell: a tokenizer of other languages may hardly know it, either.
    """
    is_spelt_in_bytes = cost.letters_per_token < _FEWEST_LETTERS_PER_TOKEN
    return is_spelt_in_bytes or cost.bytes_per_token < english_bytes_per_token / 2


def _of_language(made: Diagnosis, declared: str, rows: int) -> list[Finding]:
    if not declared:
        return []
    if not can_identify(declared):
        what = f"whether text is in {declared} cannot be told; no row was judged by its language"
        seen = main_language(made.languages)
        if seen != UNKNOWN:
            what += f". Most of it looks like {language_name(seen)}: did you mean {seen}?"
        return [Finding("advice", what)]
    others = foreign(made.languages, declared)
    if not others:
        return []
    count = sum(share.rows for share in others)
    size = sum(share.bytes for share in others) / max(1, sum(s.bytes for s in made.languages))
    named = ", ".join(
        f"{language_name(share.language)} ({share.rows:,}, first {share.first})"
        for share in others[:_NAMED]
    )
    level: Literal["warning", "advice"] = "warning" if size > _MUCH else "advice"
    what = (
        f"{_rows(count)} of {rows:,} ({size:.0%} of the text) are in another language than the "
        f"declared {language_name(declared)}: {named}; take them out, or declare what you mean"
    )
    return [Finding(level, what)]


def _of_repeats(made: Diagnosis, rows: int) -> list[Finding]:
    if not made.repeats:
        return []
    exact = sum(repeat.similarity == 1 for repeat in made.repeats)
    pairs = ", ".join(f"{r.row} = {r.earlier}" for r in made.repeats[:_NAMED])
    what = (
        f"{_rows(len(made.repeats))} of {rows:,} repeat an earlier one ({exact:,} word for word, "
        f"{len(made.repeats) - exact:,} nearly): {pairs}. What stands there often is learnt by "
        "heart: keep one of each"
    )
    is_much = len(made.repeats) > _NOTABLE * rows
    return [Finding("warning" if is_much else "advice", what)]


def _of_tokens(made: Diagnosis, rows: int) -> list[Finding]:
    found: list[Finding] = []
    for cost in made.costs:
        times, name = cost.times_english, language_name(cost.language)
        if times is not None and times >= _DEAR:
            what = (
                f"{name}: a sentence costs about {times:.1f} times the tokens of an English one "
                f"({cost.bytes_per_token:.2f} bytes a token, English {_or_none(made):.2f})"
            )
            found.append(Finding("advice", what))
    if made.costs and few_tokens(made.costs[0], _or_none(made)):
        name = language_name(made.costs[0].language)
        what = f"the tokenizer hardly knows {name}: begin with the stage vocab, which adds tokens"
        found.append(Finding("advice", what))
    if made.too_long is not None and made.too_long.rows:
        long = made.too_long.rows
        what = (
            f"{_rows(len(long))} of {rows:,} do not fit the {made.too_long.context_tokens:,} "
            f"tokens that the model reads, and would be left out: {', '.join(long[:_NAMED])}; "
            "shorten or part them"
        )
        found.append(Finding("warning" if len(long) > _NOTABLE * rows else "advice", what))
    return found


def _or_none(made: Diagnosis) -> float:
    return made.english_bytes_per_token or 0.0


def _of_overlap(made: Diagnosis) -> list[Finding]:
    seen = made.overlap
    if seen is None:
        return []
    found: list[Finding] = []
    if seen.leaks:
        named = ", ".join(f"{leak.evaluation} in {leak.training}" for leak in seen.leaks[:_NAMED])
        what = (
            f"{_rows(len(seen.leaks))} of the evaluation's {seen.rows:,} stand in the training "
            f"data too: {named}. What was learnt cannot be measured: take them out of one of both"
        )
        found.append(Finding("warning", what))
    if seen.compared < seen.rows:
        what = f"{_rows(seen.rows - seen.compared)} of the evaluation are too short to be compared"
        found.append(Finding("advice", what))
    return found


def _of_licences(made: Diagnosis) -> list[Finding]:
    if not made.licences.undeclared:
        return []
    named = ", ".join(made.licences.undeclared[:_NAMED])
    what = (
        f"no licence found for {named}: find out under which you may use the data, and write it "
        "into the recipe as data.licence; the published model names it"
    )
    return [Finding("warning", what)]


def advice_on_amounts(kinds: dict[Kind, Amount]) -> list[Finding]:
    """Return what the amount of data advises."""
    found: list[Finding] = []
    chats, text = kinds.get("chat"), kinds.get("text")
    if chats is not None and chats.rows < FEW_CHATS:
        what = (
            f"{chats.rows:,} chats are few (below about {FEW_CHATS}): a charter given as a prompt "
            "usually does as much; try `tapestry finetune charter render` before you train"
        )
        found.append(Finding("advice", what))
    if text is not None:
        size = f"{_sized(text.text_bytes)} of text"
        if text.text_bytes < LITTLE_TEXT_BYTES:
            what = (
                f"{size} is little (below about {LITTLE_TEXT_BYTES / 1e6:.0f} MB): method "
                '"lora+embeddings", with the stage vocab where the script is new'
            )
        else:
            what = f'{size} is enough for method "full", where it fits into memory'
        found.append(Finding("advice", what))
    return found


def _sized(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
