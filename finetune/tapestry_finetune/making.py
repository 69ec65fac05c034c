"""`tapestry finetune run`: from a recipe's file to a bundle that others may have."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.storage.locks import alone
from tapestry_finetune.assistants import load_assistant
from tapestry_finetune.bundle import Bundle
from tapestry_finetune.evaluation.evaluating import Evaluation, evaluate_assistant
from tapestry_finetune.evaluation.report import write_report
from tapestry_finetune.publishing import (
    Made,
    about,
    publish,
    suites_of,
    write_candidate,
)
from tapestry_finetune.run import Telling, prepare, train


def make(
    where: Path,
    target: Path,
    work: Path,
    key: Ed25519PrivateKey,
    telling: Telling,
    *,
    now: float,
    force: str = "",
    skip_bad: Path | None = None,
    unverified: bool = False,
) -> tuple[Bundle, Evaluation]:
    """Do a whole recipe.

    Args:
        where: The recipe's file.
        target: The bundle's folder; must not exist.
        work: Folder of the run; what is in it already is gone on with.
        key: Of the community.
        telling: Who is told how it goes.
        now: Unix seconds.
        force: Why it is published even below its floor.
        skip_bad: A folder for bad rows; None refuses them.
        unverified: Take the base whoever made it.

    Raises:
        UntrustedError: The base does not verify.
        ConfigError: Recipe, data or a folder cannot be used.
        StoppedError: Somebody stopped it; what was learnt is kept.
        BelowFloorError: It is worse than the recipe allows, and `force` is empty.
    """
    prepared = prepare(where, telling, unverified=unverified, skip_bad=skip_bad)
    finished = train(prepared, work, telling)
    made = Made(
        where=where,
        recipe=prepared.recipe,
        gathered=prepared.gathered,
        base=prepared.base,
        stages=finished.stages,
        extension=finished.extension,
        made_at=now,
    )
    with alone(work, who="`tapestry finetune run`"):
        candidate = write_candidate(work / "candidate", made, finished.adapted, key)
        suites = suites_of(made, work / "held-out")
        name = prepared.recipe.model.name
        evaluation = evaluate_assistant(
            load_assistant(
                prepared.base, {name: candidate}, device=prepared.recipe.training.device
            ),
            name,
            suites,
            prepared.recipe.floor,
            prepared.gathered.charter,
            about=about(made),
            learnt=prepared.gathered.learnt(),
            on_progress=telling.on_work,
        )
        write_report(evaluation, work)
        return publish(target, candidate, made, evaluation, key, seen=work, force=force), evaluation
