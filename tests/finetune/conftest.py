"""What the tests of localization share: a consensus that has learnt something, and a run on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry_finetune.base import Base, open_base
from tapestry_finetune.bundle import Bundle
from tapestry_finetune.evaluation.evaluating import Evaluation
from tapestry_finetune.making import make
from tapestry_finetune.run import Telling
from tests import threads
from tests.coordinator.small import Small
from tests.finetune.consensus import found_consensus, write_recipe

KEY = Ed25519PrivateKey.from_private_bytes(b"community".ljust(32, b"."))
MADE_AT = 1_760_000_000.0


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are far faster so; give back what others have chosen."""
    with threads.one_thread():
        yield


@pytest.fixture(scope="session")
def consensus(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A federation whose genesis knows one language; not to be changed."""
    return found_consensus(tmp_path_factory.mktemp("consensus"))


@pytest.fixture(scope="session")
def base(consensus: Small) -> Base:
    """Its genesis, verified."""
    return open_base(consensus.home.checkpoint(0))


@dataclass(frozen=True)
class Localized:
    """A whole run of three stages."""

    recipe: Path
    work: Path
    bundle: Bundle
    evaluation: Evaluation
    said: list[str]


@pytest.fixture(scope="session")
def localized(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Localized:
    """A model of a community's own, made of the consensus; not to be changed."""
    folder = tmp_path_factory.mktemp("localized")
    recipe = write_recipe(folder, base.folder, stages=("language", "instruct", "values"))
    said: list[str] = []
    bundle, evaluation = make(
        recipe, folder / "ours", folder / "work", KEY, Telling(say=said.append), now=MADE_AT
    )
    return Localized(recipe, folder / "work", bundle, evaluation, said)
