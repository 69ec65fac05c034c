"""The no-harm gate: members measure a candidate, and who it harms has a voice."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from tapestry.checkpoints.folder import CARD_FILE, read_envelope
from tapestry.checkpoints.manifest import Card, Manifest
from tapestry.checkpoints.statements import payload_digest
from tapestry.checkpoints.vector_file import MODEL_FILE, open_vector_file
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.cli.main import main
from tapestry.errors import ConfigError
from tapestry.identity.envelopes import Envelope
from tapestry.v1 import rounds_pb2
from tapestry_coordinator.card import write_card
from tapestry_coordinator.database import database_url
from tapestry_coordinator.no_harm import dissents
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.round_state import Phase
from tapestry_coordinator.testimony import StoredEvaluation
from tests.wire.serving import CALL_SECONDS, Coordinator, Line, gathered
from tests.wire.test_policy import adopt, contribute

EVERY_DATABASE = True

Lines = dict[str, Line]


def measure(line: Line, manifest: str, bits: float) -> None:
    request = rounds_pb2.SubmitEvaluationRequest(
        manifest_digest=bytes.fromhex(manifest),
        bits_per_byte=bits,
        held_out_bytes=1000,
        language="fra",
    )
    line.rounds.SubmitEvaluation(request, timeout=CALL_SECONDS)


def closed_round(coordinator: Coordinator, stack: ExitStack, **gate: Any) -> Lines:
    """A first round whose contributions are in; genesis is measured, 2 bits per byte by all."""
    adopt(coordinator, no_harm={"max_worse": 0.1, "evaluation_seconds": 60.0, **gate})
    plan, lines = gathered(coordinator, stack, "a", "b")
    for line in lines.values():
        measure(line, plan.base, 2.0)
        contribute(line, plan)
    assert coordinator.desk.state.phase is Phase.AGGREGATING
    return lines


def vector(folder: Path) -> list[float]:
    return [float(x) for x in open_vector_file(folder / MODEL_FILE).vector]


def made(envelope: Envelope) -> Manifest:
    return Manifest.parsed(envelope.payload, what="manifest")


def test_a_candidate_that_harms_nobody_is_published_as_it_was_measured(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    lines = closed_round(coordinator, stack, action="revert")
    candidate = coordinator.propose()
    told = lines["a"].watch().first
    assert told.candidate.payload == candidate.payload
    assert payload_digest(candidate) != coordinator.plan.base
    assert made(candidate).files
    assert all(coordinator.desk.file(e.digest).is_file() for e in made(candidate).files)
    measure(lines["a"], payload_digest(candidate), 2.09)
    assert coordinator.desk.state.phase is Phase.MEASURING
    measure(lines["b"], payload_digest(candidate), 1.5)
    assert coordinator.desk.state.phase is Phase.RELEASING
    published = coordinator.aggregate()
    assert published.payload == candidate.payload
    verify_checkpoint(coordinator.home.checkpoint(1))
    assert not coordinator.home.candidate(1).exists()
    assert coordinator.desk.state.number == 2
    assert {e.member_id: e.bits_per_byte for e in coordinator.registry.evaluations()
            if e.round == 1} == {"a": 2.09, "b": 1.5}  # fmt: skip


def test_a_file_of_a_candidate_is_found_while_that_is_moved_to_where_it_is_published(
    coordinator: Coordinator, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_round(coordinator, stack, action="revert")
    (digest,) = {e.digest for e in made(coordinator.propose()).files if e.name == MODEL_FILE}
    look, candidate = Path.is_file, coordinator.home.candidate(1)

    def moved_after(path: Path) -> bool:
        found = look(path)
        if candidate.is_dir():
            candidate.rename(coordinator.home.checkpoint(1))
        return found

    monkeypatch.setattr(Path, "is_file", moved_after)
    assert coordinator.desk.file(digest) == candidate / MODEL_FILE, "to be asked for once more"
    assert coordinator.desk.file(digest) == coordinator.home.checkpoint(1) / MODEL_FILE


def test_a_member_that_was_harmed_keeps_the_consensus_as_it_was(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    lines = closed_round(coordinator, stack, action="revert")
    candidate = coordinator.propose()
    measure(lines["b"], payload_digest(candidate), 2.11)
    measure(lines["a"], payload_digest(candidate), 1.0)
    reverted = made(coordinator.aggregate())
    assert vector(coordinator.home.checkpoint(1)) == vector(coordinator.home.checkpoint(0))
    verify_checkpoint(coordinator.home.checkpoint(1))
    assert not coordinator.home.candidate(1).exists()
    assert coordinator.home.outer_state(1).read_bytes() == b""  # as there was none before
    assert reverted.made is not None
    assert reverted.made.reverted is not None
    assert reverted.made.reverted.candidate == payload_digest(candidate)
    assert reverted.made.reverted.reason == "b: 2.0000 to 2.1100 bits per byte on fra"
    assert [part.weight for part in reverted.made.participation] == [0.0, 0.0]
    readme = (coordinator.home.checkpoint(1) / "README.md").read_text(encoding="utf-8")
    assert "## Reverted" in readme


def test_the_round_after_a_reverted_one_goes_on_from_the_state_before(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    """Momentum of round 1, then a reverted round 2: round 3 is what round 2 would have been."""
    lines = closed_round(coordinator, stack, action="revert", evaluation_seconds=60.0)
    digest = payload_digest(coordinator.propose())
    for line in lines.values():
        measure(line, digest, 2.0)
    coordinator.aggregate()
    wanted = []
    for bits in (9.0, 2.0):
        coordinator.desk.pass_time()
        for line in lines.values():
            contribute(line, coordinator.plan)
        candidate = coordinator.propose()
        wanted.append(vector(coordinator.home.candidate(coordinator.desk.state.number)))
        for line in lines.values():
            measure(line, payload_digest(candidate), bits)
        coordinator.aggregate()
    assert coordinator.desk.state.number == 4
    assert vector(coordinator.home.checkpoint(2)) == vector(coordinator.home.checkpoint(1))
    assert vector(coordinator.home.checkpoint(3)) == wanted[0] == wanted[1]
    assert wanted[0] != vector(coordinator.home.checkpoint(1))


def test_who_is_silent_until_the_end_agrees(coordinator: Coordinator, stack: ExitStack) -> None:
    closed_round(coordinator, stack, action="revert")
    candidate = coordinator.propose()
    coordinator.clock.forward(59)
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.MEASURING
    coordinator.clock.forward(2)
    coordinator.desk.pass_time()
    assert coordinator.aggregate().payload == candidate.payload


@pytest.mark.parametrize("is_released", [True, False])
def test_a_held_candidate_waits_for_the_operator(
    coordinator: Coordinator, stack: ExitStack, *, is_released: bool
) -> None:
    lines = closed_round(coordinator, stack, action="hold")
    candidate = coordinator.propose()
    for line in lines.values():
        measure(line, payload_digest(candidate), 3.0)
    coordinator.clock.forward(10_000)
    coordinator.desk.pass_time()
    assert coordinator.desk.state.phase is Phase.HELD
    assert "the operator decides" in lines["a"].watch().first.notice
    command = ["release", "1"] if is_released else ["revert", "1", "--reason", "b lost too much"]
    folder = str(coordinator.home.folder)
    assert main(["coordinator", *command, "--dir", folder]) == 0
    assert main(["coordinator", *command, "--dir", folder]) == 1  # decided before
    coordinator.desk.pass_time()
    published = coordinator.aggregate()
    assert (published.payload == candidate.payload) is is_released
    reverted = made(published).made
    assert reverted is not None
    if not is_released:
        assert reverted.reverted is not None
        assert reverted.reverted.reason == "b lost too much"
    assert main(["coordinator", "release", "2", "--dir", folder]) == 1  # nothing to decide about


def test_a_restart_while_members_measure_changes_nothing(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    lines = closed_round(coordinator, stack, action="revert")
    candidate = coordinator.propose()
    measure(lines["a"], payload_digest(candidate), 2.5)
    members = {name: line.member for name, line in lines.items()}
    stack.close()
    restarted = coordinator.restarted()
    with members["b"].connected(restarted) as line:
        assert line.watch().first.candidate.payload == candidate.payload
        measure(line, payload_digest(candidate), 2.0)
    assert made(restarted.aggregate()).made.reverted is not None  # type: ignore[union-attr]
    restarted.stop()


def test_a_federation_that_publishes_at_once_has_the_dissent_on_the_card(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    lines = closed_round(coordinator, stack)
    envelope = coordinator.aggregate()
    measure(lines["a"], payload_digest(envelope), 2.2)
    measure(lines["b"], payload_digest(envelope), 2.05)
    folder = coordinator.home.checkpoint(1)
    lineage, said = coordinator.registry.lineage(1), coordinator.registry.evaluations()
    write_card(folder, lineage, said, coordinator.small.key, notes=coordinator.home.notes(1))
    verify_checkpoint(folder)
    card = Card.parsed(read_envelope(folder / CARD_FILE, what="card").payload, what="card")
    assert [(d.member_id, d.before, d.after) for d in card.dissent] == [("a", 2.0, 2.2)]
    assert "## Dissent" in (folder / "README.md").read_text(encoding="utf-8")


def test_what_is_no_candidate_cannot_be_measured(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    lines = closed_round(coordinator, stack, action="revert")
    candidate = payload_digest(coordinator.propose())
    with pytest.raises(grpc.RpcError, match="no checkpoint of this federation has the digest"):
        measure(lines["a"], "ab" * 32, 2.0)
    for line in lines.values():
        measure(line, candidate, 9.0)
    coordinator.aggregate()
    with pytest.raises(grpc.RpcError, match="no checkpoint of this federation has the digest"):
        measure(lines["a"], candidate, 2.0)
    said = [e for e in coordinator.registry.evaluations() if e.round == 1]
    coordinator.registry.forget_evaluations(1)
    assert len(said) == 2  # of the candidate: the server drops them with it


def test_a_ruling_is_made_once(coordinator: Coordinator) -> None:
    with closing(Registry(database_url(coordinator.home))) as registry:
        registry.rule(1, is_released=True, reason="", now=1.0)
        with pytest.raises(ConfigError, match="has decided about round 1 before"):
            registry.rule(1, is_released=False, reason="no", now=2.0)


def test_who_measured_only_one_of_two_checkpoints_agrees() -> None:
    def said(number: int, member: str, bits: float) -> StoredEvaluation:
        return StoredEvaluation(
            round=number, member_id=member, language="", bits_per_byte=bits, held_out_bytes=1
        )

    rows = [said(1, "a", 1.0), said(1, "b", 1.0), said(2, "b", 1.5), said(2, "c", 9.0)]
    found = dissents(rows, round_number=2, max_worse=0.25)
    assert [(d.member_id, d.words) for d in found] == [
        ("b", "1.0000 to 1.5000 bits per byte on its text")
    ]
    assert dissents(rows, round_number=2, max_worse=0.5) == []
