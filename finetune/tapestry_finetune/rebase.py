"""Carry a bundle over to a newer consensus: candidates, evidence, and a bundle with its parent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.folder import folder_name
from tapestry.errors import ConfigError
from tapestry_finetune.assistants import Assistant, load_assistant
from tapestry_finetune.base import Base, describe, open_base
from tapestry_finetune.bundle import Bundle, open_bundle, require_base
from tapestry_finetune.carrying import (
    SCALES,
    Bench,
    Candidate,
    copy,
    distil,
    drift_of,
    require_kin,
    touch_up,
)
from tapestry_finetune.compared import Column, Compared, NoneAboveFloorError, gain_of
from tapestry_finetune.evaluation.evaluating import (
    BASE,
    LOCAL,
    LOCAL_PROMPTED,
    PROMPTED,
    Evaluation,
    conclude,
)
from tapestry_finetune.evaluation.measuring import Material, measure, read_material, with_prompt
from tapestry_finetune.evaluation.preferences import Judge
from tapestry_finetune.evaluation.report import write_report
from tapestry_finetune.evaluation.series import MEASURES, Measured
from tapestry_finetune.publishing import (
    BelowFloorError,
    Made,
    about,
    publish,
    suites_of,
    write_candidate,
)
from tapestry_finetune.recipe import beside, load_recipe
from tapestry_finetune.run import Prepared, Telling, prepare, train

_DISTIL_STEPS = 20
OLD_BASE, OLD, NEW = "old base", "old base + adapter", "new base"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a rebase is given."""

    bundle: Path
    onto: Path
    recipe: Path
    old: Path | None = None
    """The checkpoint that the bundle lies on; None: it is looked for beside the new one."""
    steps: int = 20
    """Of a touch-up; 0: none is tried."""
    retrain: bool = False
    distil: bool = False
    force: str = ""
    skip_bad: Path | None = None
    """A folder that bad rows of the recipe's files are moved to; None refuses them."""
    unverified: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebased(Compared):
    """What came of it."""

    evaluation: Evaluation
    bundle: Bundle


def rebase(
    asked: Asked,
    target: Path,
    work: Path,
    key: Ed25519PrivateKey,
    telling: Telling,
    *,
    now: float,
) -> Rebased:
    """Carry a bundle over: verify both, try candidates, measure all, publish the best.

    Args:
        asked: What is carried where, and what may be tried.
        target: Folder of the new bundle; must not exist.
        work: Folder for candidates.
        key: Of the community.
        telling: Who is told how it goes.
        now: Unix seconds.

    Raises:
        UntrustedError: A bundle or a checkpoint does not verify, or they are not kin.
        ConfigError: The recipe or its data cannot be used, or `target` is taken.
        NoneAboveFloorError: Every candidate is below the recipe's floor.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new folder")
    bundle = open_bundle(asked.bundle)
    are_gone = _are_gone(asked)
    if are_gone:
        telling.say("the recipe's files are gone: no touch-up; measured is what [evaluation] names")
        asked = replace(asked, steps=0, retrain=False)
    prepared = prepare(
        asked.recipe,
        telling,
        base=asked.onto,
        skip_bad=asked.skip_bad,
        unverified=asked.unverified,
        are_gone=are_gone,
    )
    onto = prepared.base
    require_kin(bundle, onto)
    if bundle.lineage.base.tensors == onto.identity.tensors:
        raise ConfigError(f"{bundle.folder} lies on the {describe(onto.identity)} already")
    old = _old_base(asked, bundle, unverified=asked.unverified)
    drift = drift_of(old, onto, bundle) if old is not None else None
    if drift is not None:
        telling.say(f"the base has moved by {drift.whole:.1%} of its norm")
    made = _made(prepared, bundle, now)
    bench = Bench(prepared=prepared, made=made, work=work, key=key, telling=telling)
    candidates = _candidates(asked, bundle, old, bench)
    suites = suites_of(made, work / "held-out")
    charter = made.gathered.charter
    material = read_material(suites, None if charter is None else Judge(charter))
    measured: dict[str, Measured] = {}
    if old is not None:
        _measure_old(old, bundle, material, measured, bench)
    _measure_new(onto, candidates, material, measured, bench)
    columns, evaluations = _compared(candidates, measured, material, made)
    best = _best([column for column in columns if column.name in evaluations])
    (candidate,) = [one for one in candidates if one.name == best.name]
    evaluation = replace(
        evaluations[best.name],
        about={
            **about(made),
            "parent": made.parent,
            "carried": candidate.made.carried_by,
        },
    )
    (work / "rebase.json").write_text(
        json.dumps({"columns": [asdict(c) for c in columns], "chosen": best.name}, indent=1) + "\n",
        encoding="utf-8",
    )
    compared: dict[str, Any] = {
        "columns": columns,
        "chosen": best.name,
        "kept_of_gain": _kept(measured, made.recipe.model.languages),
        "drift": None if drift is None else drift.whole,
        "layers": [] if drift is None else [asdict(layer) for layer in drift.layers],
    }
    write_report(evaluation, work)
    try:
        published = publish(
            target, candidate.bundle, candidate.made, evaluation, key, force=asked.force, seen=work
        )
    except BelowFloorError as error:
        raise NoneAboveFloorError(error, Compared(**compared)) from error
    return Rebased(**compared, evaluation=evaluation, bundle=published)


def _are_gone(asked: Asked) -> bool:
    """Return whether files that the recipe learns from are missing; only distilling does then.

    Raises:
        ConfigError: They are, and distilling was not asked for.
    """
    data = load_recipe(asked.recipe).data
    named = [*data.text, *data.chats, *data.preferences]
    missing = [name for name in named if not beside(asked.recipe, name).exists()]
    if missing and not asked.distil:
        raise ConfigError(
            f"{missing[0]}: not there; if your data are gone, add --distil: the new bundle learns "
            "from what the old pair writes"
        )
    return bool(missing)


def _old_base(asked: Asked, bundle: Bundle, *, unverified: bool) -> Base | None:
    """Return the base that the bundle lies on, if it can be found."""
    number = bundle.lineage.base.round
    folder = asked.old
    if folder is None and number is not None:
        folder = asked.onto.resolve().parent / folder_name(number)
        if not folder.is_dir():
            return None
    if folder is None:
        return None
    base = open_base(folder, unverified=unverified)
    require_base(bundle, base)
    return base


def _made(prepared: Prepared, bundle: Bundle, now: float) -> Made:
    return Made(
        where=prepared.where,
        recipe=prepared.recipe,
        gathered=replace(
            prepared.gathered, sources=prepared.gathered.sources or bundle.lineage.sources
        ),
        base=prepared.base,
        stages=bundle.lineage.stages,
        extension=None,
        tokenizer_from=bundle.folder,
        made_at=now,
        parent=bundle.digest,
    )


def _candidates(asked: Asked, bundle: Bundle, old: Base | None, bench: Bench) -> list[Candidate]:
    found = [copy(bundle, bench, scale) for scale in SCALES]
    if asked.steps:
        found.append(touch_up(bundle, bench, asked.steps))
    if asked.distil:
        if old is None:
            raise ConfigError("distilling needs the old checkpoint: name it with --old")
        found.append(distil(bundle, old, bench, 2 * (asked.steps or _DISTIL_STEPS)))
    if asked.retrain:
        found.append(_retrained(bench))
    return found


def _retrained(bench: Bench) -> Candidate:
    began = monotonic()
    finished = train(bench.prepared, bench.work / "retrained", bench.telling)
    made = replace(
        bench.made,
        carried_by="trained anew",
        stages=finished.stages,
        extension=finished.extension,
        tokenizer_from=None,
    )
    at = bench.work / "retrained" / "candidate"
    written = write_candidate(at, made, finished.adapted, bench.key)
    return Candidate(name="retrained", bundle=written, made=made, seconds=monotonic() - began)


def _measure_old(
    old: Base, bundle: Bundle, material: Material, measured: dict[str, Measured], bench: Bench
) -> None:
    """Measure the old base, without and with the bundle."""
    assistant = load_assistant(old, {OLD: bundle}, device=bench.prepared.chosen.machine.device)
    measured[OLD_BASE] = _asked(assistant, None, material, OLD_BASE, bench.telling)
    measured[OLD] = _asked(assistant, OLD, material, OLD, bench.telling)


def _measure_new(
    onto: Base,
    candidates: list[Candidate],
    material: Material,
    measured: dict[str, Measured],
    bench: Bench,
) -> None:
    """Measure the new base and every candidate; the prompted arms too, by `NAME + prompt`."""
    assistant = load_assistant(
        onto,
        {one.name: one.bundle for one in candidates},
        device=bench.prepared.chosen.machine.device,
    )
    for name in [None, *(one.name for one in candidates)]:
        called = name or NEW
        measured[called] = _asked(assistant, name, material, called, bench.telling)
        if material.judge is not None:
            with assistant.speaking_as(name) as voice:
                prompted = with_prompt(voice, material.judge)
                measured[f"{called} + prompt"] = measure(prompted, material, only_values=True)


def _asked(
    assistant: Assistant, name: str | None, material: Material, called: str, telling: Telling
) -> Measured:
    with assistant.speaking_as(name) as voice:
        return measure(
            voice,
            material,
            on_progress=lambda what, done, of: telling.on_work(f"{called}: {what}", done, of),
        )


def _compared(
    candidates: list[Candidate],
    measured: Mapping[str, Measured],
    material: Material,
    made: Made,
) -> tuple[list[Column], dict[str, Evaluation]]:
    floor = made.recipe.floor
    evaluations: dict[str, Evaluation] = {}
    columns = [
        Column(name=name, figures=_figures(measured[name]), passed=True, gain=0.0, seconds=0.0)
        for name in (OLD, NEW)
        if name in measured
    ]
    for one in candidates:
        arms = {BASE: measured[NEW], LOCAL: measured[one.name]}
        if f"{NEW} + prompt" in measured:
            arms[PROMPTED] = measured[f"{NEW} + prompt"]
            arms[LOCAL_PROMPTED] = measured[f"{one.name} + prompt"]
        evaluation = conclude(arms, material, floor)
        evaluations[one.name] = evaluation
        columns.append(
            Column(
                name=one.name,
                figures=_figures(measured[one.name]),
                passed=evaluation.passed,
                gain=gain_of(evaluation.rows, made.recipe.model.languages),
                seconds=one.seconds,
            )
        )
    return columns, evaluations


def _figures(measured: Measured) -> dict[str, float]:
    return {
        key: series.figure
        for key, series in measured.series.items()
        if series.figure is not None and MEASURES[series.measure].is_judged
    }


def _best(columns: list[Column]) -> Column:
    """Return the candidate with the most gain, of those above the floor if there are any."""
    above = [column for column in columns if column.passed]
    return max(above or columns, key=lambda column: column.gain)


def _kept(measured: Mapping[str, Measured], languages: Sequence[str]) -> float | None:
    """Return the part of the gain on the main language's text that an untouched copy keeps.

    Of a bundle that declares no language: of the text that it gained most on.
    """
    if OLD_BASE not in measured:
        return None
    before, after = _figures(measured[OLD_BASE]), _figures(measured[OLD])
    gains = {key: before[key] - after[key] for key in before if key.startswith("bits_per_byte:")}
    if not gains:
        return None
    main = f"bits_per_byte:{languages[0]}" if languages else ""
    key = main if main in gains else max(gains, key=gains.__getitem__)
    now = _figures(measured[NEW])[key] - _figures(measured["copy x 1"])[key]
    return now / gains[key] if gains[key] > 0 else None
