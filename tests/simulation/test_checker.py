"""The checker is worth something: federations with one fault in the product are found out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import TapestryError
from tapestry_coordinator.home import CoordinatorHome
from tests.coordinator.small import Small
from tests.simulation.checker import differences, violations
from tests.simulation.faults import FAULTS, IN_THE_DATABASE, Patch
from tests.simulation.history import History
from tests.simulation.plants import origin
from tests.simulation.runs import troubled

HISTORIES = 120


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "invariant"), FAULTS)
def test_a_fault_is_found(
    fault: Callable[[Patch], None], invariant: str, monkeypatch: Patch
) -> None:
    fault(monkeypatch)
    found: list[str] = []
    for seed in range(HISTORIES):
        try:
            history = troubled(seed, has_database=fault in IN_THE_DATABASE).play()
        except (TapestryError, ValueError, KeyError) as error:  # the faulty product may fail
            found.append(type(error).__name__)
            continue
        found += [violation.invariant for violation in violations(history)]
        if invariant in found:
            return
    pytest.fail(f"{fault.__doc__} In {HISTORIES} histories the checker saw {sorted(set(found))}")


@pytest.fixture(scope="module")
def sound() -> History:
    """A history with publications and crashes, in which nothing is wrong."""
    logging.disable(logging.CRITICAL)
    history = next(
        history
        for history in (troubled(seed).play() for seed in range(20))
        if len(history.logs) > 1 and len(history.acknowledged) > 2
    )
    logging.disable(logging.NOTSET)
    assert not violations(history)
    return history


def invariants(history: History) -> set[str]:
    return {violation.invariant for violation in violations(history)}


def without(rows: Sequence[Any], index: int) -> tuple[Any, ...]:
    return tuple(row for i, row in enumerate(rows) if i != index)


def test_a_lost_row_of_any_kind_is_noticed(sound: History) -> None:
    records = sound.records
    for name in ("contributions", "manifests", "plans", "ledger", "heads"):
        less = replace(records, **{name: without(getattr(records, name), 0)})
        assert invariants(replace(sound, records=less)), name
    logs = [*sound.logs, without(records.events, 0)]
    assert invariants(replace(sound, logs=logs)) == {"I3"}
    ledgers = [*sound.ledgers, without(records.ledger, 0)]
    assert invariants(replace(sound, ledgers=ledgers)) == {"I3"}


def test_entries_in_another_order_are_noticed(sound: History) -> None:
    records = sound.records
    first, second, *rest = records.ledger
    swapped = ((0, *second[1:]), (1, *first[1:]), *rest)
    changed = replace(sound, records=replace(records, ledger=swapped))
    assert invariants(changed) == {"I3"}


def test_two_stories_are_noticed(sound: History) -> None:
    key = Small(CoordinatorHome(origin())).key
    told = next(t for t in sound.told if t.plan is not None)
    manifest = Manifest.parsed(told.manifest.payload, what="manifest")
    other = manifest.model_copy(update={"created_at": manifest.created_at + 1}).signed(key)
    assert payload_digest(other) != payload_digest(told.manifest)
    assert invariants(replace(sound, told=[replace(told, manifest=other)])) == {"I3"}


def test_runs_that_differ_in_substance_are_told_apart(sound: History) -> None:
    lineage = sound.records.lineage
    manifest = Manifest.parsed(lineage[-1].payload, what="manifest")
    key = Small(CoordinatorHome(origin())).key
    later = manifest.model_copy(update={"created_at": manifest.created_at + 1}).signed(key)
    assert not differences([*lineage[:-1], later], lineage), "times may differ"
    other = manifest.model_copy(update={"vector_root": "0" * 64}).signed(key)
    assert [v.invariant for v in differences([*lineage[:-1], other], lineage)] == ["I6"]
