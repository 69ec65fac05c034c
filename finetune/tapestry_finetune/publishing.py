"""From a finished run to a bundle: measured, judged by the floor, signed."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import file_entry
from tapestry.data.chat import TEMPLATE_FILE
from tapestry.data.language import UNKNOWN, identify, kin_of
from tapestry.errors import TapestryError
from tapestry_finetune.adapting import Adapted, write_changes
from tapestry_finetune.base import Base
from tapestry_finetune.bundle import (
    CHARTER_FILE,
    EVALUATION_FILE,
    RECIPE_FILE,
    Bundle,
    write_bundle,
)
from tapestry_finetune.card import card
from tapestry_finetune.charter.cases import held_out_pairs
from tapestry_finetune.evaluation.evaluating import Evaluation, below_the_floor
from tapestry_finetune.evaluation.report import HTML_FILE, write_report
from tapestry_finetune.evaluation.suites import Suites
from tapestry_finetune.gathering import Gathered, replay_of
from tapestry_finetune.lineage import BaseRecord, Localization, StageRecord
from tapestry_finetune.recipe import Recipe, beside
from tapestry_finetune.run import versions
from tapestry_finetune.vocabulary import Extension

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_MOST_PROMPTS = 20
_BLANK = re.compile(r"\s+")
_FEWEST_PIECES = 12
_MOST_REPLAY = 0.5
_SHORTEST_PIECE = 200
"""Letters: of a shorter one the first words, which nothing stands before, decide."""


class BelowFloorError(TapestryError):
    """The localized model is worse than its base where the recipe says that it must not be."""

    def __init__(self, message: str, evaluation: Evaluation) -> None:
        """Say why, with what was measured."""
        super().__init__(message)
        self.evaluation = evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a bundle is made of, beside its weights."""

    where: Path
    recipe: Recipe
    gathered: Gathered
    base: Base
    stages: tuple[StageRecord, ...]
    extension: Extension | None
    made_at: float
    tokenizer_from: Path | None = None
    """A bundle whose own tokenizer is taken over, if it has one."""
    parent: str | None = None
    carried_by: str = ""


def write_candidate(target: Path, made: Made, adapted: Adapted, key: Ed25519PrivateKey) -> Bundle:
    """Write a bundle that has not been measured yet, in the place of an earlier one."""
    shutil.rmtree(target, ignore_errors=True)

    def fill(folder: Path) -> None:
        write_changes(folder, adapted, made.base)
        fill_beside(folder, made)

    return write_bundle(target, fill, lambda **given: statement(made, **given), key)


def fill_beside(folder: Path, made: Made) -> None:
    """Write what is beside the weights: template, tokenizer, charter, recipe."""
    (folder / TEMPLATE_FILE).write_text(made.base.template(), encoding="utf-8")
    source = made.extension.folder if made.extension is not None else made.tokenizer_from
    if source is not None and (source / "tokenizer.json").is_file():
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    if made.recipe.model.charter:
        shutil.copyfile(beside(made.where, made.recipe.model.charter), folder / CHARTER_FILE)
    text = json.dumps(_without_paths(made.recipe), indent=1, ensure_ascii=False)
    (folder / RECIPE_FILE).write_text(text + "\n", encoding="utf-8")


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe without the folders of the machine it ran on."""
    table = recipe.model_dump(mode="json")
    table["model"] |= {"base": Path(recipe.model.base).name}
    table["model"] |= {"charter": Path(recipe.model.charter).name if recipe.model.charter else ""}
    for key in ("text", "chats", "preferences"):
        table["data"][key] = [Path(name).name for name in table["data"][key]]
    del table["evaluation"]
    return table


def statement(
    made: Made,
    *,
    files: tuple[Any, ...],
    key: str,
    evaluation: str | None = None,
    forced: str = "",
) -> Localization:
    """Return what the community signs."""
    model = made.recipe.model
    return Localization(
        name=model.name,
        languages=model.languages,
        made_at=made.made_at,
        key=key,
        base=BaseRecord(**made.base.identity.as_json()),
        parent=made.parent,
        carried_by=made.carried_by,
        stages=made.stages,
        sources=made.gathered.sources,
        recipe=made.recipe.digest,
        charter=made.gathered.charter.digest if made.gathered.charter else None,
        evaluation=evaluation,
        forced=forced,
        versions=versions(),
        seed=made.recipe.training.seed,
        licence=model.licence,
        redistribute=model.redistribute,
        files=files,
    )


def suites_of(made: Made, folder: Path) -> Suites:
    """Write what a run holds out as suites, beside those that the recipe names.

    Args:
        made: Of a run.
        folder: For the files; made anew.

    Returns:
        Held-out text of one's own and of every language in the federation's open text, held-out
        chats and prompts from them, and all that `[evaluation]` names.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "text").mkdir(parents=True)
    texts: dict[str, list[str]] = {}
    main = made.recipe.model.languages[0] if made.recipe.model.languages else ""
    for text in made.gathered.held_out_text():
        texts.setdefault(main or identify(text) or UNKNOWN, []).append(text)
    kin = kin_of(main) if main else frozenset[str]()
    for tag, documents in replay_of(made.base).measured.items():
        texts.setdefault(main if tag in kin else tag, []).extend(documents)
    asked = made.recipe.evaluation.seen_from(made.where.resolve().parent)
    paths: dict[str, tuple[Path, ...]] = {tag: tuple(asked.text[tag]) for tag in asked.text}
    for tag, documents in texts.items():
        path = folder / "text" / f"{tag}.jsonl"
        pieces = in_pieces(documents)
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in pieces]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths[tag] = (*paths.get(tag, ()), path)
    changed: dict[str, Any] = {"text": paths}
    chats = made.gathered.held_out_chats()
    if asked.chats is None and chats:
        changed["chats"] = folder / "chats.jsonl"
        rows = [json.dumps({"messages": one.messages}, ensure_ascii=False) for one in chats]
        changed["chats"].write_text("\n".join(rows) + "\n", encoding="utf-8")
    prompts = [chat.messages[-2]["content"] for chat in chats]
    if not prompts and made.gathered.charter is not None:
        asked_of = held_out_pairs(made.gathered.charter)
        prompts = list(dict.fromkeys(pair.prompt[-1]["content"] for pair in asked_of))
    if asked.prompts is None and prompts:
        path = folder / "prompts.jsonl"
        spoken = {"language": main} if main else {}
        shown = [
            json.dumps({"prompt": prompt, **spoken}, ensure_ascii=False)
            for prompt in prompts[:_MOST_PROMPTS]
        ]
        path.write_text("\n".join(shown) + "\n", encoding="utf-8")
        changed["prompts"] = path
    return asked.model_copy(update=changed)


def in_pieces(documents: list[str]) -> list[str]:
    """Return few long documents as several shorter pieces: an interval needs some of them."""
    if len(documents) >= _FEWEST_PIECES:
        return documents
    size = max(_SHORTEST_PIECE, sum(map(len, documents)) // _FEWEST_PIECES)
    pieces: list[str] = []
    for document in documents:
        count = max(1, round(len(document) / size))
        least = -(-len(document) // count)
        start = 0
        while start < len(document):
            blank = _BLANK.search(document, start + least, start + 2 * least)
            stop = blank.end() if blank else start + least
            pieces.append(document[start:stop])
            start = stop
    return [piece for piece in pieces if piece.strip()]


def about(made: Made) -> dict[str, Any]:
    """Return what a report says of the model and of what it lies on."""
    identity = made.base.identity
    return {
        "name": made.recipe.model.name,
        "base": identity.manifest or identity.tensors,
        "round": identity.round,
    }


def _refusal(evaluation: Evaluation, made: Made, seen: Path) -> str:
    """Return what is below the floor, and what can be done."""
    return (
        f"below the floor: {below_the_floor(evaluation.rows)}. Nothing is published. Look at "
        f"{seen / HTML_FILE}. Then: {_to_lose_less(evaluation, made.recipe)}; [floor] overrides "
        'allows a loss that you accept; --force "WHY" publishes all the same, and everybody will '
        "read why"
    )


def _to_lose_less(evaluation: Evaluation, recipe: Recipe) -> str:
    replay = recipe.training.replay
    is_forgotten = any(
        row.verdict == "REGRESSED" and row.measure == "bits_per_byte" for row in evaluation.rows
    )
    if is_forgotten and replay < _MOST_REPLAY:
        more = min(_MOST_REPLAY, 2.5 * replay or 0.1)
        return (
            f"more of the federation's open text keeps other languages (training.replay = "
            f"{more:.2g}, it is {replay:.2g}), and so do fewer steps"
        )
    return "fewer steps lose less"


def publish(
    target: Path,
    candidate: Bundle,
    made: Made,
    evaluation: Evaluation,
    key: Ed25519PrivateKey,
    *,
    seen: Path,
    force: str = "",
) -> Bundle:
    """Write the bundle that others may have: the candidate with its evaluation and its card.

    Args:
        target: Must not exist.
        candidate: What was measured.
        made: What it is made of.
        evaluation: What it is worth.
        key: Of the community.
        seen: Folder in which the evaluation lies already, to be looked at.
        force: Why it is published although it is below the floor; goes into the lineage.

    Raises:
        BelowFloorError: It is below the floor, and `force` is empty.
        ConfigError: `target` is taken.
    """
    if not evaluation.passed and not force:
        raise BelowFloorError(_refusal(evaluation, made, seen), evaluation)
    weights = [entry.name for entry in candidate.lineage.files]
    reason = "" if evaluation.passed else force

    def fill(folder: Path) -> None:
        for name in weights:
            shutil.copyfile(candidate.folder / name, folder / name)
        write_report(evaluation, folder)
        listed = tuple(file_entry(folder, name) for name in weights)
        said = statement(made, files=listed, key=candidate.lineage.key, forced=reason)
        (folder / "README.md").write_text(card(said, evaluation), encoding="utf-8")

    def complete(**given: Any) -> Localization:  # noqa: ANN401
        (found,) = [e for e in given["files"] if e.name == EVALUATION_FILE]
        return statement(made, evaluation=found.digest, forced=reason, **given)

    return write_bundle(target, fill, complete, key)
