"""`recipe.toml`: everything that a localized model is made of, in one file."""

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tapestry.config import Settings, load_settings
from tapestry.errors import ConfigError
from tapestry.identity.envelopes import canonical_json
from tapestry_finetune.evaluation.floor import Floor
from tapestry_finetune.evaluation.suites import Suites

Stage = Literal["vocab", "language", "instruct", "values"]
Method = Literal["auto", "lora", "lora+embeddings", "full"]
Precision = Literal["auto", "float32", "bfloat16"]
STAGES: tuple[Stage, ...] = ("vocab", "language", "instruct", "values")

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


def plain_name(text: str, *, otherwise: str = "our") -> str:
    """Return a name that a folder and an address may have, as like `text` as can be."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", ascii_only)[:64].strip("-.") or otherwise


def _named(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r:.80} is no name: it has small letters of English, digits, dots and hyphens, "
            f"such as {plain_name(text)}"
        )
    return text


Name = Annotated[str, AfterValidator(_named)]


class ModelTable(Settings):
    """What is made, and of what."""

    name: Name
    """What the model is called: small letters, digits, dots and hyphens."""
    base: str
    """Folder of a published consensus checkpoint; it is verified first."""
    federation: str = ""
    """The federation's identity that you expect, at least 16 digits; compare it by other means."""
    languages: tuple[str, ...] = ()
    """Codes of the languages that it is for, such as "eus"; the first one is the main one."""
    charter: str = ""
    """Your charter.toml, if you have one."""
    licence: str = "undeclared"
    """Under which others may use your part; the card says the base's beside it."""
    redistribute: bool = True
    """false: `tapestry export` refuses to write weights that could be passed on."""


class DataTable(Settings):
    """What it learns from; files or folders, relative to the recipe."""

    text: tuple[str, ...] = ()
    """Running text, for the stages vocab and language."""
    chats: tuple[str, ...] = ()
    """Questions and answers, for the stage instruct."""
    preferences: tuple[str, ...] = ()
    """Better and worse answers, or thumbs, for the stage values."""
    shape: str = ""
    """Of the rows, if it is not recognized: messages, sharegpt, alpaca, prompt, pairs, thumbs."""
    roles: dict[str, str] = Field(default={})
    """What roles of yours mean, such as { bot = "assistant" }."""
    columns: dict[str, str] = Field(default={})
    """What columns of yours mean, such as { question = "prompt" }."""
    licence: str = "undeclared"
    """Of the files above; goes into the lineage."""
    held_out: float = Field(default=0.05, gt=0, lt=0.5)
    """Part of each that is never learnt from, and measured on."""


class TrainingTable(Settings):
    """How it is trained; what is 0 or "auto" is chosen by data and machine."""

    stages: tuple[Stage, ...]
    """In this order: vocab (tokens for a script that the base hardly knows), language, instruct,
    values. Leave out what you have no data for."""
    method: Method = "auto"
    """lora: small, for instruct and values; lora+embeddings: what a new language needs; full:
    everything, for much text and much memory."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    precision: Precision = "auto"
    """Of the matrix products; what is learnt is kept in float32 all the same. auto: bfloat16 on a
    GPU that has it, float32 on a processor. A processor that multiplies bfloat16 learns faster with
    it, by half or more: `plan` says so where that is the case."""
    rank: int = Field(default=16, ge=1, le=1024)
    """Of the low-rank matrices; they are laid on all linear layers."""
    sequence_tokens: int = Field(default=0, ge=0)
    """Longest piece that is learnt at once; longer text is cut, longer chats are dropped."""
    batch: int = Field(default=0, ge=0)
    """Sequences between two optimizer steps."""
    micro_batch: int = Field(default=0, ge=0)
    """Sequences in memory at once; halved by itself when memory runs out."""
    replay: float = Field(default=0.1, ge=0, le=0.5)
    """Part of the stage language (half of it in instruct) that comes from the federation's open
    text, so that the model does not forget the other languages."""
    activation_checkpointing: bool = False
    """Less memory, a third slower."""
    seed: int = 0
    """Of every choice; the same recipe on the same machine gives the same model."""


class StageTable(Settings):
    """How long and how fast this stage is trained; what is 0 is chosen."""

    learning_rate: float = Field(default=0.0, ge=0, le=1)
    """0: chosen. 2e-4 for lora, 5e-4 for lora+embeddings, 5e-5 for full in a model 768 wide, more
    in narrower ones and less in wider; for instruct never more than for lora, since few chats
    unlearn a language soon; for values a twentieth. `plan` shows it."""
    epochs: float = Field(default=0.0, ge=0, le=1000)
    """How often everything is seen; 0: 1 for text, 3 for chats and preferences."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps, instead of epochs; 0: as many as the epochs take."""


class ValuesTable(StageTable):
    """The stage values: DPO on pairs (Rafailov et al., 2023), KTO on thumbs."""

    beta: float = Field(default=0.1, gt=0)
    """How much it costs to leave the model of the stage before."""
    sft_weight: float = Field(default=0.2, ge=0)
    """Of a term that keeps the better answer likely."""


class VocabTable(Settings):
    """The stage vocab: tokens learnt from your text."""

    tokens: int = Field(default=0, ge=0)
    """At most so many new ones; 0: chosen by how much text there is."""


class Recipe(Settings):
    """A whole recipe."""

    model: ModelTable
    data: DataTable
    training: TrainingTable
    vocab: VocabTable = VocabTable()
    language: StageTable = StageTable()
    instruct: StageTable = StageTable()
    values: ValuesTable = ValuesTable()
    evaluation: Suites = Suites()
    """What else to measure, beside what is held out."""
    floor: Floor = Floor()
    """What it may lose against its base."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        stages = self.training.stages
        if not stages:
            raise ValueError("training.stages is empty: name at least one of " + ", ".join(STAGES))
        if list(stages) != [stage for stage in STAGES if stage in stages]:
            raise ValueError("training.stages: once each, in the order " + ", ".join(STAGES))
        if "vocab" in stages and self.training.method == "lora":
            raise ValueError(
                'training.method = "lora" leaves the rows of new tokens as they are: with the '
                'stage vocab choose "lora+embeddings", "full" or "auto"'
            )
        needs = {
            "vocab": self.data.text,
            "language": self.data.text,
            "instruct": self.data.chats or self.model.charter,
            "values": self.data.preferences or self.model.charter,
        }
        missing = [stage for stage in stages if not needs[stage]]
        if missing:
            key = {"instruct": "chats", "values": "preferences"}.get(missing[0], "text")
            raise ValueError(
                f"the stage {missing[0]} has nothing to learn from: name files in data.{key}, or "
                "take the stage out of training.stages"
            )
        return self

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what it says, whatever it looks like."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    @property
    def training_digest(self) -> str:
        """Hex SHA-256 of what decides what is learnt: all but how it is judged."""
        said = self.model_dump(mode="json", exclude={"evaluation", "floor"})
        return hashlib.sha256(canonical_json(said)).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: The file, a key or a value is wrong; the message names it and the nearest key.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: a folder; give the recipe.toml in it")
    return load_settings(path, Recipe)


def beside(recipe: Path, name: str) -> Path:
    """Return a path that a recipe names, relative to the recipe."""
    path = Path(name).expanduser()
    return path if path.is_absolute() else recipe.resolve().parent / path
