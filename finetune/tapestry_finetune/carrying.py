"""Ways to carry a bundle over to another base: each makes a candidate that is measured.

Rounds of a federation are short outer steps on one path, the best case for moving an adapter:
copying it keeps most of its gain, a few steps more bring back the rest.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import json
import math
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import load_file

from tapestry.errors import UntrustedError
from tapestry_finetune.adapting import (
    Adapted,
    TrainedMethod,
    adapt,
    base_tensors,
    laid_on,
    write_parts,
)
from tapestry_finetune.assistants import load_assistant
from tapestry_finetune.base import Base, describe
from tapestry_finetune.bundle import ADAPTER_CONFIG, ADAPTER_FILE, Bundle, write_bundle
from tapestry_finetune.deltas import Deltas, RowDelta, lay_on
from tapestry_finetune.examples import text_examples, with_replay
from tapestry_finetune.gathering import replay_of
from tapestry_finetune.keeping import Watch
from tapestry_finetune.publishing import Made, fill_beside, statement, write_candidate
from tapestry_finetune.run import Prepared, Telling
from tapestry_finetune.training import StageSettings, train_stage
from tapestry_finetune.voices import Voice

SCALES = (0.5, 0.75, 1.0)
_TOUCH_RATE = 0.5
"""Of the learning rate of a run, for a touch-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A bundle for the new base, not yet measured."""

    name: str
    bundle: Bundle
    made: Made
    seconds: float
    """What it took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where candidates are made, and of what."""

    prepared: Prepared
    """The recipe, on the new base."""
    made: Made
    work: Path
    key: Ed25519PrivateKey
    telling: Telling


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerDrift:
    """How far a parameter of the base has moved, and whether the adapter moves it alike."""

    name: str
    drift: float
    """Norm of its change over its norm."""
    overlap: float | None
    """Cosine of the base's change and the bundle's; None: the bundle does not change it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How far a base has moved."""

    whole: float
    """Norm of the change of all parameters over their norm."""
    layers: list[LayerDrift]
    """The one that moved most first."""


def require_kin(bundle: Bundle, onto: Base) -> None:
    """Refuse a base that a bundle cannot be carried to.

    Raises:
        UntrustedError: Another architecture, tokenizer or federation.
    """
    made, given = bundle.lineage.base, onto.identity
    said = f"{bundle.folder} cannot be carried to the {describe(given)}"
    if made.architecture != given.architecture:
        raise UntrustedError(f"{said}: its tensors have other names or shapes; train anew on it")
    if made.tokenizer != given.tokenizer:
        raise UntrustedError(f"{said}: it has another tokenizer; train anew on it")
    if made.federation and given.federation and made.federation != given.federation:
        raise UntrustedError(
            f"{said}: that is a checkpoint of another federation, {given.federation[:16]}, not of "
            f"{made.federation[:16]}"
        )


def drift_of(old: Base, new: Base, bundle: Bundle) -> Drift:
    """Return how the base has moved, as a whole and parameter by parameter."""
    before = dict(base_tensors(old.folder))
    changes, rows = _linear_changes(bundle), bundle.deltas().rows
    amounts: dict[str, tuple[float, float]] = {}
    layers: list[LayerDrift] = []
    for name, after in base_tensors(new.folder):
        moved, ours = after - before[name], changes.get(name)
        amount, size = float(moved.norm()), float(before[name].norm())
        amounts[name] = amount, size
        if name in rows:
            moved, ours = moved[rows[name].rows], rows[name].delta
        overlap = None
        if ours is not None and bool(moved.any()) and bool(ours.any()):
            overlap = float(torch.cosine_similarity(moved.flatten(), ours.flatten(), dim=0))
        layers.append(LayerDrift(name=name, drift=amount / (size or 1.0), overlap=overlap))
    moved_by, whole = (math.hypot(*norms) for norms in zip(*amounts.values(), strict=True))
    layers.sort(key=lambda layer: -amounts[layer.name][0])
    return Drift(whole=moved_by / (whole or 1.0), layers=layers)


def _linear_changes(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Return how a bundle changes each whole parameter of its base."""
    changes = dict(bundle.deltas().dense)
    if bundle.has_adapter():
        config = adapter_config(bundle)
        scale = config["lora_alpha"] / config["r"]
        tensors = load_file(bundle.folder / ADAPTER_FILE)
        for name, left in tensors.items():
            if ".lora_A." in name:
                layer = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
                changes[layer] = scale * tensors[name.replace(".lora_A.", ".lora_B.")] @ left
    return changes


def adapter_config(bundle: Bundle) -> dict[str, Any]:
    """Return the content of `adapter_config.json`."""
    table: dict[str, Any] = json.loads((bundle.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return table


def copy(bundle: Bundle, bench: Bench, scale: float) -> Candidate:
    """Lay a bundle on the new base as it is, its changes multiplied by `scale`."""
    began = monotonic()
    made = replace(bench.made, carried_by=f"copied at scale {scale:g}")
    folder = bench.work / f"copy-{scale:g}"

    def fill(target: Path) -> None:
        scaled, config = {}, {}
        if bundle.has_adapter():
            tensors = load_file(bundle.folder / ADAPTER_FILE)
            scaled = {n: t * scale if ".lora_B." in n else t for n, t in tensors.items()}
            config = adapter_config(bundle)
        write_parts(target, scaled, config, scaled_deltas(bundle.deltas(), scale), made.base)
        fill_beside(target, made)

    shutil.rmtree(folder, ignore_errors=True)
    written = write_bundle(folder, fill, lambda **given: statement(made, **given), bench.key)
    return Candidate(
        name=f"copy x {scale:g}", bundle=written, made=made, seconds=monotonic() - began
    )


def scaled_deltas(deltas: Deltas, scale: float) -> Deltas:
    """Return differences multiplied by `scale`; the rows of new tokens stay as they are."""
    return Deltas(
        rows={
            name: RowDelta(rows=change.rows, delta=change.delta * scale, new=change.new)
            for name, change in deltas.rows.items()
        },
        dense={name: difference * scale for name, difference in deltas.dense.items()},
    )


def on_new_base(bundle: Bundle, onto: Base, *, device: str, seed: int) -> Adapted:
    """Return the new base with a bundle's changes laid on, ready to be trained further."""
    module = onto.load(device)
    deltas = bundle.deltas()
    if not bundle.has_adapter():
        lay_on(module, deltas)
        return adapt(module, "lora+embeddings", rank=16, seed=seed)
    config = adapter_config(bundle)
    method: TrainedMethod = "lora+embeddings" if deltas.rows else "lora"
    lay_on(module, deltas)
    adapted = adapt(
        module,
        method,
        rank=config["r"],
        seed=seed,
        alpha=config["lora_alpha"],
        layers=config["target_modules"],
    )
    laid_on(adapted, load_file(bundle.folder / ADAPTER_FILE))
    return adapted


def touch_up(bundle: Bundle, bench: Bench, steps: int) -> Candidate:
    """Copy a bundle and train it a few steps on, with replay of the new base's open text."""
    began = monotonic()
    named = f"touch-up, {steps} steps"
    prepared, folder = bench.prepared, bench.work / "touch-up"
    training = prepared.recipe.training
    device = prepared.chosen.machine.device
    adapted = on_new_base(bundle, prepared.base, device=device, seed=training.seed)
    tokenizer = bundle.tokenizer(prepared.base)
    for stage in (stage for stage in training.stages if stage != "vocab"):
        examples = prepared.examples(stage, tokenizer)
        settings = prepared.settings(stage, examples)
        shutil.rmtree(folder / stage, ignore_errors=True)
        train_stage(
            adapted,
            tokenizer,
            examples,
            _shorter(settings, steps),
            folder=folder / stage,
            watch=_watch(bench.telling, f"{named}: {stage}"),
        )
    by = f"copied and touched up by {steps} steps of each stage"
    made = replace(bench.made, carried_by=by)
    written = write_candidate(folder / "candidate", made, adapted, bench.key)
    return Candidate(name=named, bundle=written, made=made, seconds=monotonic() - began)


def distil(bundle: Bundle, old: Base, bench: Bench, steps: int) -> Candidate:
    """Copy a bundle and train it on what its old self writes, where the data are gone.

    Sequence-level distillation (Kim and Rush, 2016): the old base with the bundle writes texts from
    nothing, what it thinks that a document is.
    """
    began = monotonic()
    prepared, folder = bench.prepared, bench.work / "distilled"
    written_texts = _own_words(bundle, old, bench)
    training = prepared.recipe.training
    device = prepared.chosen.machine.device
    adapted = on_new_base(bundle, prepared.base, device=device, seed=training.seed)
    tokenizer = bundle.tokenizer(prepared.base)
    most = prepared.chosen.sequence_tokens
    own = text_examples(tokenizer, written_texts, sequence_tokens=most)
    replay = text_examples(tokenizer, replay_of(prepared.base).learnt, sequence_tokens=most)
    examples = with_replay(own, replay, training.replay, seed=training.seed) if len(replay) else own
    settings = prepared.settings("language", examples)
    shutil.rmtree(folder / "language", ignore_errors=True)
    train_stage(
        adapted,
        tokenizer,
        examples,
        _shorter(settings, steps),
        folder=folder / "language",
        watch=_watch(bench.telling, "distilling"),
    )
    made = replace(bench.made, carried_by=f"distilled from the old pair by {steps} steps")
    written = write_candidate(folder / "candidate", made, adapted, bench.key)
    return Candidate(name="distilled", bundle=written, made=made, seconds=monotonic() - began)


_OWN_TEXTS = 64
_OWN_TOKENS = 96


def _own_words(bundle: Bundle, old: Base, bench: Bench) -> list[str]:
    """Return texts that the old localized model writes."""
    assistant = load_assistant(old, {"old": bundle}, device=bench.prepared.chosen.machine.device)
    choose = random.Random(bench.prepared.recipe.training.seed)  # noqa: S311
    texts: list[str] = []
    with assistant.speaking_as("old") as voice:
        for number in range(_OWN_TEXTS):
            bench.telling.on_work("the old model writes", number, _OWN_TEXTS)
            texts.append(_goes_on(voice, choose.randrange(2**31)))
    return [text for text in texts if text.strip()]


def _goes_on(voice: Voice, seed: int) -> str:
    """Return a text from nothing: what the model thinks that a document is."""
    torch.manual_seed(seed)
    start = torch.tensor([[voice.tokenizer.eos_token_id]])
    device = next(voice.module.parameters()).device
    with torch.inference_mode():
        made = voice.module.generate(
            input_ids=start.to(device),
            attention_mask=torch.ones_like(start).to(device),
            max_new_tokens=min(_OWN_TOKENS, voice.context_tokens - 1),
            do_sample=True,
            top_k=None,
            top_p=0.95,
            eos_token_id=voice.tokenizer.eos_token_id,
            pad_token_id=voice.tokenizer.pad_token_id,
        )
    text: str = voice.tokenizer.decode(made[0, 1:], skip_special_tokens=True)
    return text


def _shorter(settings: StageSettings, steps: int) -> StageSettings:
    return replace(settings, steps=steps, learning_rate=settings.learning_rate * _TOUCH_RATE)


def _watch(telling: Telling, what: str) -> Watch:
    return Watch(
        on_progress=lambda progress: telling.on_step(what, progress),
        is_stopped=telling.is_stopped,
    )
