"""Late contributions and delayed momentum in published rounds, by figures to be redone by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

import tapestry_coordinator
from tapestry.checkpoints.manifest import Manifest, OuterRecord, RoundRecord
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry_coordinator.closed_round import ClosedRound
from tapestry_coordinator.events import Published
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import ACTIVE, Attendance
from tests.coordinator.small import Small, forget_stores, found_small

forgotten = pytest.fixture(scope="module", autouse=True)(forget_stores)

PLAIN = {"optimizer": "sgd", "learning_rate": 1.0, "clip": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "fed"


def made_by(small: Small, number: int) -> RoundRecord:
    made = verify_checkpoint(small.home.checkpoint(number)).manifest.made
    assert made is not None
    return made


def with_one_late(small: Small) -> ClosedRound:
    """Publish round 1 of a and b; close round 2 of both and of c, which answers round 1."""
    late = small.contributed(small.plan(("a", "b", "c")), "c", np.float32([0.4, 0.0]))
    small.publisher.publish(small.closed({"a": [0.2, 0.0], "b": [0.2, 0.0]}))
    second = small.closed({"a": [0.1, 0.0], "b": [0.1, 0.0]})
    return replace(second, contributions=[*second.contributions, replace(late, staleness=1)])


def test_a_late_contribution_is_discounted_and_its_base_is_on_record(folder: Path) -> None:
    small = found_small(folder, **PLAIN)
    small.publisher.publish(with_one_late(small))
    a, b, c = made_by(small, 2).participation
    assert (a.staleness, a.base_round, c.staleness, c.base_round) == (0, None, 1, 0)
    third = pytest.approx(1 / 3)
    assert (a.weight, b.weight, c.weight) == (third, third, pytest.approx(0.8 / 3))
    # 1 - .2 in round 1; then .1 / 3 + .1 / 3 + .4 * .8 / 3 = .52 / 3
    assert small.vector(2) == pytest.approx([0.8 - 0.52 / 3, 1.0])


def test_where_everybody_has_one_vote_the_contribution_itself_is_shortened(folder: Path) -> None:
    small = found_small(folder, rule="median", byzantine=0, **PLAIN)
    small.publisher.publish(with_one_late(small))
    a, _b, c = made_by(small, 2).participation
    assert (a.weight, c.weight) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (a.clip_factor, c.clip_factor) == (1.0, pytest.approx(0.8))


def test_a_round_with_a_late_contribution_is_made_again_to_the_bit(folder: Path) -> None:
    small = found_small(folder, **PLAIN)
    closed = with_one_late(small)
    first = small.publisher.publish(closed)
    model = (small.home.checkpoint(2) / MODEL_FILE).read_bytes()
    small.home.checkpoint(2).rename(small.home.folder / "before")
    assert small.publisher.publish(closed).payload == first.payload
    assert (small.home.checkpoint(2) / MODEL_FILE).read_bytes() == model


def test_delayed_momentum_goes_on_from_what_the_manifest_before_records(folder: Path) -> None:
    small = found_small(
        folder, optimizer="delayed-nesterov", learning_rate=1.0, momentum=0.5, clip=0.0
    )
    outer: list[OuterRecord] = []
    for member in ("a", "b", "a"):
        silent = ("b",) if member == "a" else ("a",)
        closed = small.closed({member: [1.0, 0.0]}, silent=silent)
        plan = closed.plan.model_copy(update={"is_asynchronous": True})  # quorum 1, cohort of 2
        envelope = small.publisher.publish(replace(closed, plan=plan))
        made = Manifest.parsed(envelope.payload, what="manifest").made
        assert made is not None
        outer.append(made.outer)
    assert [(one.period, one.position) for one in outer] == [(2, 1), (2, 2), (2, 1)]
    # 1 - 1 / 2; then pending 1 is the buffer: .5 - (.5 + .5 * 1); then - 1 / 2 again.
    assert [small.vector(number)[0] for number in (1, 2, 3)] == [0.5, -0.5, -1.0]


# The registry


def test_contributions_of_an_older_database_are_used_by_the_round_that_they_answer(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'coordinator.db'}"
    config = Config()
    migrations = Path(tapestry_coordinator.__path__[0]) / "migrations"
    config.set_main_option("script_location", str(migrations))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            text("insert into contributions values (7, 'a', :digest, '{}', '{}', 1.5)"),
            {"digest": "0" * 64},
        )
    Registry(url).close()
    with engine.begin() as connection:
        rows = connection.execute(text("select round, used_round, norm from contributions")).all()
    engine.dispose()
    assert [tuple(row) for row in rows] == [(7, 7, 1.5)]


def test_a_published_round_is_missed_by_who_was_a_member_and_did_not_answer(
    tmp_path: Path,
) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'coordinator.db'}")
    for name, joined in (("a", 1.0), ("b", 1.0), ("gone", 1.0), ("new", 20.0)):
        token = name.encode()
        registry.add_invitation(token, member_id=name, now=0.0, expires_at=99.0)
        registry.enrol(token, member_id=name, signing_key=b"k", certificate_serial=1, now=joined)
    registry.revoke("gone", now=30.0)
    for number in (1, 2):
        attendance = Attendance(answered=["a"], opened_at=10.0)
        registry.record_event(number, Published(manifest="0" * 64), now=30.0, attendance=attendance)
    missed = {m.member_id: m.missed_rounds for m in registry.members()}
    assert missed == {"a": 0, "b": 2, "gone": 0, "new": 0}
    registry.record_event(
        3,
        Published(manifest="0" * 64),
        now=40.0,
        attendance=Attendance(answered=["b"], opened_at=25.0),
    )
    missed = {m.member_id: m.missed_rounds for m in registry.members() if m.status == ACTIVE}
    assert missed == {"a": 1, "b": 0, "new": 1}
    registry.close()
