"""Rounds verified from their folders, and made once more from an archive: by an auditor's hands.

Shapes: P elements of the vector.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapestry.checkpoints.archive import Archive, MissingError
from tapestry.checkpoints.folder import ROUND_FILE, file_entry, read_round, write_round
from tapestry.checkpoints.levels import Answer, Verification, Wanted
from tapestry.checkpoints.manifest import Absence, Manifest, RoundRecord
from tapestry.checkpoints.record import VerifiedRound, verify_round
from tapestry.checkpoints.replay import Replayed, replay, sampled
from tapestry.checkpoints.statements import Contribution, RoundPlan
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.checkpoints.verify import VerifiedCheckpoint, verify_checkpoint
from tapestry.errors import UntrustedError
from tapestry.ledger.heads import origin_of
from tapestry.ledger.proof import PROOF_FILE, verify_ledger_proof
from tapestry.params.layout import FRAGMENT_ELEMENTS
from tapestry_coordinator.card import write_card
from tapestry_coordinator.home import CoordinatorHome
from tests.coordinator.small import (
    Small,
    forget_stores,
    found_small,
    record_in_ledger,
    signing_key,
)

forgotten = pytest.fixture(scope="module", autouse=True)(forget_stores)

MEMBERS = ("a", "b", "c", "d", "e")
SETTINGS: dict[str, dict[str, Any]] = {
    "mean": {},
    "unclipped": {"clip": 0.0, "gamma": 1.0},
    "sgd": {"optimizer": "sgd", "learning_rate": 1.0},
    "adam": {"optimizer": "adam", "learning_rate": 0.1},
    "delayed": {"optimizer": "delayed-nesterov"},
    "trimmed": {"rule": "trimmed-mean", "byzantine": 1},
    "median": {"rule": "median"},
    "krum": {"rule": "multi-krum", "byzantine": 1},
    "geometric": {"rule": "geometric-median"},
    "centred": {"rule": "centred-clipping"},
    "mixed": {"rule": "trimmed-mean", "byzantine": 1, "mixing": True},
    "rda": {"merge": "rda"},
    "bfloat16": {"downlink": "bfloat16"},
    "delta": {"downlink": "delta-int8"},
    "coarse": {"downlink": "delta-int4", "optimizer": "sgd", "learning_rate": 0.7},
    "int8": {"codec": "int8"},
    "int4": {"codec": "int4"},
}


def deltas(seed: int, elements: int = 6) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0.1, 0.05, elements).tolist() for name in MEMBERS}


def verified(folder: Path) -> tuple[VerifiedCheckpoint, VerifiedRound]:
    checkpoint = verify_checkpoint(folder)
    round_ = verify_round(folder, checkpoint.lineage)
    assert round_ is not None
    return checkpoint, round_


def replayed(home: CoordinatorHome, number: int, **options: Any) -> Replayed:
    checkpoint, round_ = verified(home.checkpoint(number))
    return replay(checkpoint, round_, Archive(home.folder), **options)


def two_rounds(folder: Path, elements: int = 6, **aggregation: Any) -> Small:
    small = found_small(folder, elements, **aggregation)
    for seed in (1, 2):
        tokens = {name: 1 + 7 * place for place, name in enumerate(MEMBERS)}
        small.publisher.publish(small.closed(deltas(seed, elements), tokens=tokens))
    return small


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_way_to_aggregate_verifies_and_comes_out_again(
    tmp_path: Path, settings: Mapping[str, Any]
) -> None:
    small = two_rounds(tmp_path / "fed", **settings)
    for number in (1, 2):
        result = replayed(small.home, number)
        assert (result.compared, result.contributions) == (1, len(MEMBERS))
        assert result.is_state_compared


def test_late_new_and_absent_members_verify(tmp_path: Path) -> None:
    policy = {
        "influence": {"newcomer_rounds": 1, "groups": {"x": ("a", "b")}, "group_cap": 0.4},
        "lateness": {"max_staleness": 2},
    }
    small = found_small(tmp_path / "fed", policy=policy)
    late = small.contributed(small.plan(("a", "b", "c")), "c", np.float32([0.4, 0.1]))
    both = {"a": [0.2, 0.1], "b": [0.1, 0.3]}
    small.publisher.publish(small.closed(both, silent=("d",), declined={"e": "not this"}))
    second = small.closed({**both, "d": [0.3, 0.1]})
    plan = small.plan(tuple("abd"), quorum=2)
    second = replace(
        second,
        plan=plan,
        plan_envelope=plan.signed(small.key),
        contributions=[*second.contributions, replace(late, staleness=1)],
        earlier={"a": 1, "b": 1},
    )
    second = replace(second, contributions=sorted(second.contributions, key=lambda s: s.member_id))
    small.publisher.publish(second)
    checkpoint, _round = verified(small.home.checkpoint(2))
    made = checkpoint.manifest.made
    assert made is not None
    assert {part.member_id: part.weight > 0 for part in made.participation} == {
        "a": True, "b": True, "c": False, "d": False,
    }  # fmt: skip
    assert replayed(small.home, 2).contributions == 2


def test_a_reverted_round_verifies(tmp_path: Path) -> None:
    small = two_rounds(tmp_path / "fed")
    closed = small.closed(deltas(3))
    envelope = small.publisher.propose(closed)
    from tapestry.checkpoints.statements import payload_digest  # noqa: PLC0415

    small.publisher.publish(
        replace(closed, candidate=payload_digest(envelope), reverted="worse for a")
    )
    assert replayed(small.home, 3).contributions == 0


def test_genesis_was_made_by_no_round(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    folder = small.home.checkpoint(0)
    assert verify_round(folder, verify_checkpoint(folder).lineage) is None


# A coordinator that lies, under its own valid signature


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return two_rounds(tmp_path_factory.mktemp("proof") / "fed", elements=6)


@pytest.fixture
def small(honest: Small, tmp_path: Path) -> Small:
    shutil.copytree(honest.home.folder, tmp_path / "fed")
    return Small(CoordinatorHome(tmp_path / "fed"))


def resigned(small: Small, change: Callable[[RoundRecord], RoundRecord], **fields: Any) -> Path:
    """Checkpoint 2 with another account of its round, signed by the coordinator."""
    folder = small.home.checkpoint(2)
    manifest = Manifest.parsed(small.lineage[-1].payload, what="manifest")
    assert manifest.made is not None
    files = tuple(file_entry(folder, entry.name) for entry in manifest.files)
    changed = manifest.model_copy(update={"made": change(manifest.made), "files": files, **fields})
    sign_again(small, changed)
    return folder


def sign_again(small: Small, manifest: Manifest) -> None:
    from tapestry.checkpoints.folder import write_statements  # noqa: PLC0415

    folder = small.home.checkpoint(2)
    lineage = [*small.lineage[:-1], manifest.signed(small.key)]
    write_statements(folder, lineage)
    write_card(folder, lineage, (), small.key, notes=small.home.notes(2))
    verify_checkpoint(folder)  # signature and files are in order


def part_of(made: RoundRecord, member: str, **changes: Any) -> RoundRecord:
    parts = tuple(
        part.model_copy(update=changes) if part.member_id == member else part
        for part in made.participation
    )
    return made.model_copy(update={"participation": parts})


def without(made: RoundRecord, member: str) -> RoundRecord:
    parts = tuple(part for part in made.participation if part.member_id != member)
    return made.model_copy(update={"participation": parts})


LIES: dict[str, tuple[Callable[[RoundRecord], RoundRecord], str]] = {
    "a weight above the cap": (lambda m: part_of(m, "e", weight=0.9), "e has the weight 0.9"),
    "another weight": (lambda m: part_of(m, "a", weight=0.1), "a has the weight 0.1, by policy"),
    "another clip factor": (lambda m: part_of(m, "a", clip_factor=0.5), "a has the clip factor"),
    "other tokens": (lambda m: part_of(m, "a", tokens=50), "contribution of a: the manifest says"),
    "another root": (lambda m: part_of(m, "a", root="0" * 64), "contribution of a: the manifest"),
    "another statement": (
        lambda m: part_of(m, "a", contribution="0" * 64),
        "contribution of a: is not the one",
    ),
    "another key": (lambda m: part_of(m, "a", key="11" * 32), "contribution of a: "),
    "late that was not": (
        lambda m: part_of(m, "a", staleness=1, base_round=0),
        "contribution of a: is for another round",
    ),
    "earlier than genesis": (
        lambda m: part_of(m, "a", staleness=9, base_round=0),
        "contribution of a: the manifest says 9 rounds late",
    ),
    "a member left out": (lambda m: without(m, "a"), "5 contributions are in the checkpoint"),
    "a member silenced": (
        lambda m: part_of(m, "a", weight=0.0, reason="a newcomer's first contributions have no "
                          "weight: influence.newcomer_rounds"),
        "a is left out as a newcomer",
    ),
    "an absence made up": (
        lambda m: m.model_copy(update={"absent": (Absence(member_id="z", reason="x"),)}),
        "those absent",
    ),
    "another plan": (lambda m: m.model_copy(update={"plan": "0" * 64}), "plan of round 2: is not"),
    "another policy": (lambda m: m.model_copy(update={"policy": "0" * 64}), r"policy\.json"),
    "another quorum": (lambda m: m.model_copy(update={"quorum": 3}), "says another policy"),
    "another clip": (lambda m: m.model_copy(update={"clip": 9.0}), "clip is 9.0, by policy 1.5"),
    "another cap": (
        lambda m: m.model_copy(update={"influence_cap": 0.9}),
        "influence_cap is 0.9, by policy 0.25",
    ),
    "another rate": (
        lambda m: m.model_copy(update={"outer": m.outer.model_copy(update={"momentum": 0.1})}),
        "outer is ",
    ),
    "another state before": (
        lambda m: m.model_copy(
            update={"outer": m.outer.model_copy(update={"state_before": "0" * 64})}
        ),
        "outer state before the round",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lie", "named"), LIES.values(), ids=LIES)
def test_a_breach_of_the_policy_under_a_valid_signature_is_named(
    small: Small, lie: Callable[[RoundRecord], RoundRecord], named: str
) -> None:
    def changed(made: RoundRecord) -> RoundRecord:
        return RoundRecord.model_validate_json(lie(made).model_dump_json())

    folder = resigned(small, changed)
    with pytest.raises(UntrustedError, match=named):
        verified(folder)


def test_a_contribution_that_another_key_signed_is_refused(small: Small) -> None:
    folder = small.home.checkpoint(2)
    plan, first, *others = read_round(folder)
    forged = Contribution.parsed(first.payload, what="a").signed(signing_key("b"))
    write_round(folder, [plan, forged, *others])
    resigned(small, lambda made: made)
    with pytest.raises(UntrustedError, match="contribution of a: signed by key"):
        verified(folder)


@pytest.mark.parametrize("order", [[0, 2, 1, 3, 4, 5], [1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 4], []])
def test_statements_reordered_or_taken_out_are_refused(small: Small, order: list[int]) -> None:
    folder = small.home.checkpoint(2)
    envelopes = read_round(folder)
    write_round(folder, [envelopes[n] for n in order])
    resigned(small, lambda made: made)
    with pytest.raises(UntrustedError, match=r"plan of round 2|contribution of|contributions are"):
        verified(folder)


def test_more_claimed_than_the_plan_allows_is_refused(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    closed = small.closed({"a": [0.1, 0.1]}, tokens={"a": 10**6})
    small.publisher.publish(closed)
    with pytest.raises(UntrustedError, match=r"contribution of a: .*claims 1,000,000 tokens"):
        verified(small.home.checkpoint(1))


def test_a_member_outside_the_cohort_is_refused(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    closed = small.closed({"a": [0.1, 0.1], "b": [0.1, 0.2]})
    plan = RoundPlan(**{**closed.plan.model_dump(), "cohort": ("a",)})
    signed = plan.signed(small.key)
    small.publisher.publish(replace(closed, plan=plan, plan_envelope=signed))
    with pytest.raises(UntrustedError, match="b has a say and was not in the plan's cohort"):
        verified(small.home.checkpoint(1))


def test_too_few_for_the_quorum_are_refused(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    closed = small.closed({"a": [0.1, 0.1]})
    plan = RoundPlan(**{**closed.plan.model_dump(), "quorum": 2})
    small.publisher.publish(replace(closed, plan=plan, plan_envelope=plan.signed(small.key)))
    with pytest.raises(UntrustedError, match="1 contributions count, the quorum is 2"):
        verified(small.home.checkpoint(1))


# An aggregate that is not what comes of the contributions


def test_an_aggregate_with_another_weight_is_found_by_the_replay_alone(small: Small) -> None:
    """The coordinator publishes another vector, with everything else in order and signed."""
    folder = small.home.checkpoint(2)
    path = folder / MODEL_FILE
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # of the last element of the vector
    path.write_bytes(data)
    from tapestry.checkpoints.vector_file import open_vector_file  # noqa: PLC0415

    root = open_vector_file(path).root().hex()
    resigned(small, lambda made: made, vector_root=root)
    verified(folder)
    with pytest.raises(UntrustedError, match=r"fragment 0 is not what comes.*element 5 differs"):
        replayed(small.home, 2)


def test_another_state_is_found_by_the_replay(small: Small) -> None:
    def lie(made: RoundRecord) -> RoundRecord:
        return made.model_copy(
            update={"outer": made.outer.model_copy(update={"state_root": "1" * 64})}
        )

    resigned(small, lie)
    with pytest.raises(UntrustedError, match="outer state after the round"):
        replayed(small.home, 2)


def test_a_norm_made_up_for_a_larger_share_is_found_by_the_replay(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", 6)
    closed = small.closed({**deltas(1), "e": [9.0] * 6})
    lied = [replace(s, norm=0.2) if s.member_id == "e" else s for s in closed.contributions]
    small.publisher.publish(replace(closed, contributions=lied))
    verified(small.home.checkpoint(1))
    with pytest.raises(UntrustedError, match="contribution of e has the norm 22"):
        replayed(small.home, 1)


@pytest.mark.parametrize("rule", ["multi-krum", "geometric-median", "centred-clipping"])
def test_weights_that_distances_do_not_give_are_found_by_the_replay(
    tmp_path: Path, rule: str
) -> None:
    small = two_rounds(tmp_path / "fed", rule=rule, byzantine=1)
    resigned(small, lambda made: part_of(part_of(made, "a", weight=0.17), "b", weight=0.01))
    with pytest.raises(UntrustedError, match=r"[ab] has the weight 0\.[01][17], by the rule"):
        replayed(small.home, 2)


# Archives


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


IN_ARCHIVE = {
    "contributions/round-000002/c.contribution": "c.contribution: fragment 0",
    "contributions/round-000002/c.json": "c.json|c.contribution",
    "outer/round-000001.f32": "round-000001.f32",
    f"published/round-000001/{MODEL_FILE}": f"round-000001/{MODEL_FILE}",
    "published/round-000001/tapestry/manifest.json": "manifest",
}


@pytest.mark.parametrize(("name", "named"), IN_ARCHIVE.items())
def test_a_flipped_bit_in_an_archive_is_named(small: Small, name: str, named: str) -> None:
    spoil(small.home.folder / name)
    with pytest.raises(UntrustedError, match=named):
        replayed(small.home, 2)


@pytest.mark.parametrize(
    "name",
    [
        "contributions/round-000002/c.contribution",
        "contributions/round-000002/c.json",
        "outer/round-000001.f32",
        "published/round-000001",
    ],
)
def test_what_is_missing_in_an_archive_decides_nothing(small: Small, name: str) -> None:
    path = small.home.folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(MissingError, match="not in the archive"):
        replayed(small.home, 2)


HOSTILE_TABLES = {
    "empty": b"",
    "no table": b"[]",
    "an empty table": b"{}",
    "nested without end": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "an unknown codec": b'{"codec": "zip", "digests": []}',
    "no digests": b'{"codec": "float32", "digests": []}',
    "digests that are numbers": b'{"codec": "float32", "digests": [1, 2]}',
    "digests that are no hex": b'{"codec": "float32", "digests": ["zz"]}',
    "one digest too many": b'{"codec": "float32", "digests": ["00", "00"]}',
    "a huge number": b'{"codec": "float32", "digests": [' + b"9" * 5000 + b"]}",
}


@pytest.mark.parametrize("data", HOSTILE_TABLES.values(), ids=HOSTILE_TABLES)
def test_a_table_of_an_archive_that_cannot_be_is_refused_in_words(
    small: Small, data: bytes
) -> None:
    (small.home.contributions / "round-000002" / "c.json").write_bytes(data)
    with pytest.raises(UntrustedError, match=r"c\.(json|contribution): "):
        replayed(small.home, 2)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"{}\n", b"[" * 100_000, b"\xff\n", b"null\n" * 7])
def test_what_is_no_record_of_a_round_is_refused_in_words(small: Small, data: bytes) -> None:
    (small.home.checkpoint(2) / ROUND_FILE).write_bytes(data)
    resigned(small, lambda made: made)
    with pytest.raises(UntrustedError, match=r"round, line 1: |plan of round 2: missing"):
        verified(small.home.checkpoint(2))


def test_the_contribution_of_another_round_does_not_pass(small: Small) -> None:
    folder = small.home.contributions
    for suffix in ("contribution", "json"):
        shutil.copyfile(
            folder / "round-000001" / f"a.{suffix}", folder / "round-000002" / f"a.{suffix}"
        )
    with pytest.raises(UntrustedError, match="its digests are not those that a signed"):
        replayed(small.home, 2)


def test_the_parent_of_another_federation_does_not_pass(small: Small, tmp_path: Path) -> None:
    other = two_rounds(tmp_path / "other", federation="warp")
    shutil.rmtree(small.home.checkpoint(1))
    shutil.copytree(other.home.checkpoint(1), small.home.checkpoint(1))
    with pytest.raises(UntrustedError, match="is not the parent"):
        replayed(small.home, 2)


# The ledger


def ledger_answer(folder: Path) -> Answer:
    *_others, last = Verification(Wanted(folder=folder)).answers()
    return last


def test_a_checkpoint_in_the_ledger_names_who_has_seen_it(small: Small) -> None:
    folder = small.home.checkpoint(2)
    assert ledger_answer(folder).verdict == "undecided"
    record_in_ledger(folder, small.key, {})
    answer = ledger_answer(folder)
    assert (answer.verdict, answer.level) == ("undecided", "ledger")
    assert "no member cosigned the head, 1 must by the policy" in answer.says
    record_in_ledger(folder, small.key, {"stranger": signing_key("stranger")})
    assert ledger_answer(folder).verdict == "undecided"
    record_in_ledger(folder, small.key, {"a": signing_key("a"), "b": signing_key("b")})
    answer = ledger_answer(folder)
    assert answer.verdict == "passed"
    assert answer.says.endswith(" a, b cosigned")


def test_what_is_wrong_with_the_ledgers_proof_is_refused(small: Small, tmp_path: Path) -> None:
    folder = small.home.checkpoint(2)
    record_in_ledger(folder, signing_key("a"), {"a": signing_key("a")})
    answer = ledger_answer(folder)
    assert answer.verdict == "refused"
    assert "ledger.json: head" in answer.says
    record_in_ledger(small.home.checkpoint(1), small.key, {"a": signing_key("a")})
    shutil.copyfile(small.home.checkpoint(1) / PROOF_FILE, folder / PROOF_FILE)
    assert "proves checkpoint" in ledger_answer(folder).says
    other = two_rounds(tmp_path / "other", federation="warp")
    record_in_ledger(other.home.checkpoint(2), other.key, {"a": signing_key("a")})
    shutil.copyfile(other.home.checkpoint(2) / PROOF_FILE, folder / PROOF_FILE)
    assert ledger_answer(folder).verdict == "refused"


def test_no_bit_of_the_ledgers_proof_can_change(small: Small) -> None:
    folder = small.home.checkpoint(2)
    record_in_ledger(folder, small.key, {"a": signing_key("a")})
    checkpoint = verify_checkpoint(folder)
    path = folder / PROOF_FILE
    data = path.read_bytes()
    assert ledger_answer(folder).verdict == "passed"
    for bit in range(0, 8 * len(data) - 8, 13):  # the last byte is a new line
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UntrustedError, match=r"ledger\.json"):
            verify_ledger_proof(
                bytes(changed),
                manifest_digest=checkpoint.manifest_digest,
                round_number=2,
                coordinator_key=checkpoint.lineage.coordinator_key,
                origin=origin_of("loom", checkpoint.genesis_digest),
                witnesses=checkpoint.lineage.keys,
                quorum=1,
            )


# Samples


def test_a_sample_is_drawn_by_a_head_that_nobody_knew() -> None:
    one = sampled(1000, 8, manifest="a" * 64, head="b" * 64)
    assert one == tuple(sorted(set(one)))
    assert len(one) == 8
    assert one != sampled(1000, 8, manifest="a" * 64, head="c" * 64)
    assert one != sampled(1000, 8, manifest="d" * 64, head="b" * 64)
    assert sampled(3, 8, manifest="a" * 64, head="b" * 64) == (0, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"downlink": "delta-int8"}, {"merge": "rda"}])
def test_a_sample_of_a_vector_of_several_fragments(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    elements = 2 * FRAGMENT_ELEMENTS + 5
    small = found_small(tmp_path / "fed", elements, codec="int8", **settings)
    rng = np.random.default_rng(0)
    for _round in range(2):
        given = {m: rng.normal(0.1, 0.05, elements).tolist() for m in ("a", "b")}
        small.publisher.publish(small.closed(given))
    assert replayed(small.home, 2).compared == 3
    some = replayed(small.home, 2, sample=(0, 2))
    assert (some.compared, some.fragments, some.is_state_compared) == (2, 3, True)
    small.home.outer_state(2).unlink()
    assert not replayed(small.home, 2, sample=(1,)).is_state_compared
    spoil(small.home.contributions / "round-000002" / "a.contribution")  # in the second fragment
    if "merge" in settings:  # its weights follow from all of them
        return
    assert replayed(small.home, 2, sample=(0, 2)).compared == 2
    with pytest.raises(UntrustedError, match="fragment 1 is not the one that was signed"):
        replayed(small.home, 2, sample=(1,))
    text = json.dumps(verify_checkpoint(small.home.checkpoint(2)).manifest.model_dump())
    assert ROUND_FILE in text
