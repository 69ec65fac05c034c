"""The ledger between real coordinators and real witnesses, over mutual TLS."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.statements import Receipt, RoundPlan, payload_digest
from tapestry.errors import RejectedError, TapestryError, UnavailableError, UntrustedError
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.identity.membership import Membership
from tapestry.ledger.entries import MAX_ENTRY_BYTES
from tapestry.ledger.evidence import verify_evidence
from tapestry.ledger.heads import Head, cosign_head, open_head, origin_of, sign_head
from tapestry.ledger.merkle import Tree, verify_consistency, verify_inclusion
from tapestry.ledger.notes import read_note
from tapestry.ledger.proof import PROOF_FILE
from tapestry.v1 import ledger_pb2, ledger_pb2_grpc
from tapestry.wire.fetching import Fetcher
from tapestry.wire.ledger import MAX_ENTRIES_OF_ANSWER
from tapestry_coordinator.ledger_files import make_up_ledger_files, proof_of
from tapestry_coordinator.ledgering import entry_of_checkpoint, entry_of_member, ledger_origin
from tapestry_node.home import NodeHome
from tapestry_node.witnessing import Witness
from tests.coordinator.small import Small, found_small, signing_key
from tests.servers import sqlite_alone
from tests.wire.conftest import ROUNDS
from tests.wire.serving import CALL_SECONDS, Clock, Coordinator, Line, Member


def note(coordinator: Coordinator) -> str:
    head = coordinator.registry.ledger.head()
    assert head is not None
    return head.note


def head_of(coordinator: Coordinator) -> Head:
    genesis = coordinator.desk.genesis
    return open_head(
        note(coordinator),
        origin=ledger_origin(genesis),
        public_key=genesis.coordinator_key,
        what="head",
    ).head


PLAYERS: dict[Path, list[Member]] = {}
"""The members a and b of each coordinator's folder, once they have joined."""


def played(coordinator: Coordinator, *, push: float = 1.0) -> tuple[Envelope, dict[str, Receipt]]:
    """One round of the members a and b, who join if they have not; its manifest and receipts."""
    folder = coordinator.home.folder
    if folder not in PLAYERS:
        PLAYERS[folder] = [coordinator.join(name) for name in ("a", "b")]
    receipts = {}
    with ExitStack() as stack:
        lines = [stack.enter_context(one.connected(coordinator)) for one in PLAYERS[folder]]
        watches = [line.watch() for line in lines]
        for watch in watches:
            stack.callback(watch.end)
        plan = watches[0].until_plan()
        for line in lines:
            receipt = line.commit(line.sent(plan, np.float32([push, 0.5])))
            receipts[line.member.member_id] = Receipt.parsed(receipt.payload, what="receipt")
    return coordinator.aggregate(), receipts


class Station:
    """A member's folder and connection, and its witness, which may start anew."""

    def __init__(self, folder: Path, member: Member, line: Line, at: Clock) -> None:
        self.home, self.member, self.line, self.clock = NodeHome(folder), member, line, at
        self.home.make_folders()
        self.witness = self.started()

    def started(self) -> Witness:
        genesis = self.member.coordinator.desk.genesis
        membership = Membership(
            federation=genesis.origin.federation,
            member_id=self.member.member_id,
            address="here",
            coordinator_key=genesis.coordinator_key.hex(),
            genesis=genesis.genesis_digest,
        )
        self.witness = Witness(
            self.home,
            membership,
            self.member.signing_key,
            shown=lambda: self.line.ledger,
            clock=self.clock,
        )
        return self.witness

    def keep(self, receipt: Receipt) -> None:
        """As delivering does."""
        key = self.member.coordinator.small.key
        path = self.home.receipts / f"round-{receipt.round:06d}.json"
        path.write_bytes(to_json(receipt.signed(key)))

    @property
    def evidence(self) -> list[Path]:
        return sorted(self.home.folder.glob("ledger-evidence-*.json"))


@contextmanager
def station(
    folder: Path, coordinator: Coordinator, name: str = "w", *, member: Member | None = None
) -> Iterator[Station]:
    """A member that watches."""
    member = member or coordinator.join(name, role="observer")
    with member.connected(coordinator) as line:
        yield Station(folder / name, member, line, coordinator.clock)


# The service


def test_members_read_the_ledger_and_can_prove_it(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    manifest, receipts = played(coordinator)
    member = coordinator.join("w")
    ledger = stack.enter_context(member.connected()).ledger
    shown, keys = ledger.head()
    head = head_of(coordinator)
    assert shown == note(coordinator)
    assert keys == {name: _public(name) for name in ("a", "b", "w")}
    leaves = ledger.entries(0, head.size)
    assert (len(leaves), head.size) == (7, 7)  # genesis, a, b, plan, two contributions, checkpoint
    digest = payload_digest(manifest)
    index, leaf, path = ledger.inclusion(digest, head.size)
    assert (index, leaf) == (6, leaves[6])
    assert leaf == entry_of_checkpoint(1, digest).leaf()
    assert verify_inclusion(leaf, index, head.size, path, head.root)
    assert ledger.inclusion(6, head.size) == (index, leaf, path)
    growth = ledger.growth(1, head.size)
    assert verify_consistency(1, growth.old_root, head.size, head.root, growth.path)
    for name, receipt in receipts.items():
        assert receipt.ledger_index is not None
        entry = json.loads(leaves[receipt.ledger_index])
        assert (entry["payload_digest"], entry["member_id"]) == (receipt.contribution, name)


def test_what_no_head_covers_is_not_shown(coordinator: Coordinator, stack: ExitStack) -> None:
    ledger = stack.enter_context(coordinator.join("w").connected()).ledger
    assert head_of(coordinator).size == 1  # the member's own entry waits for the next head
    for ask in (
        lambda: ledger.entries(0, 2),
        lambda: ledger.growth(1, 2),
        lambda: ledger.growth(2, 1),
        lambda: ledger.inclusion(1, 2),
        lambda: ledger.inclusion(1, 1),
        lambda: ledger.inclusion("ab" * 32, 1),
        lambda: ledger.growth(2**64 - 1, 2**64 - 1),
        lambda: ledger.inclusion(2**64 - 1, 2**64 - 1),
    ):
        with pytest.raises(RejectedError):
            ask()


def test_answers_are_bounded(coordinator: Coordinator, stack: ExitStack) -> None:
    ledger, count = coordinator.registry.ledger, 2 * MAX_ENTRIES_OF_ANSWER + 5
    with ledger.recording() as connection:
        for number in range(count - 1):
            ledger.append(connection, entry_of_member(f"m{number}", b"k"))
        ledger.seal(connection, coordinator.desk._standing._seal)  # noqa: SLF001
    line = stack.enter_context(coordinator.join("w").connected())
    stub = ledger_pb2_grpc.LedgerServiceStub(line.channel)
    request = ledger_pb2.EntriesRequest(begin=3, end=count)
    answer = stub.Entries(request, timeout=CALL_SECONDS)
    assert len(answer.entries) == MAX_ENTRIES_OF_ANSWER
    assert MAX_ENTRIES_OF_ANSWER * (MAX_ENTRY_BYTES + 8) < 4 * 2**20
    assert len(line.ledger.entries(0, count)) == count


def test_strangers_and_former_members_see_nothing(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    gone = coordinator.join("gone")
    coordinator.revoke("gone")
    for member in (gone, coordinator.issue("stranger")):
        ledger = stack.enter_context(member.connected()).ledger
        for ask in (ledger.head, lambda: ledger.entries(0, 1), lambda: ledger.growth(1, 1)):  # noqa: B023
            with pytest.raises(UntrustedError, match="is not a member"):
                ask()


def test_a_cosignature_counts_for_its_head_and_its_member_alone(
    coordinator: Coordinator, stack: ExitStack
) -> None:
    line = stack.enter_context(coordinator.join("w").connected())
    head, now = head_of(coordinator), coordinator.clock.now

    def signed(head: Head, name: str, key: str, *, now: float = now) -> str:
        return cosign_head(head, member_id=name, key=signing_key(key), now=now).line

    wrong = Head(head.origin, head.size, bytes(32))
    for text, size in (
        (signed(wrong, "w", "w"), head.size),
        (signed(head, "w", "x"), head.size),
        (signed(head, "x", "w"), head.size),
        (signed(head, "w", "w"), head.size + 1),
        (signed(head, "w", "w", now=now + 1e6), head.size),
        (signed(head, "w", "w")[:-3], head.size),
        ("", head.size),
        ("x" * 1000, head.size),
        (f"{signed(head, 'w', 'w')}\n— more", head.size),
    ):
        with pytest.raises(TapestryError):
            line.ledger.cosign(size, text)
    assert len(read_note(note(coordinator), what="head").signatures) == 1
    line.ledger.cosign(head.size, signed(head, "w", "w"))
    line.ledger.cosign(head.size, signed(head, "w", "w", now=now - 5))
    signatures = read_note(note(coordinator), what="head").signatures
    assert [one.line for one in signatures[1:]] == [signed(head, "w", "w")]


def test_a_heads_cosignatures_reach_the_checkpoints_proof(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    manifest, _receipts = played(coordinator)
    with station(tmp_path, coordinator) as watching:
        watching.witness.take(note(coordinator))
    genesis = coordinator.desk.genesis
    proof = proof_of(coordinator.registry, genesis, manifest)
    assert proof is not None
    names = [one.name for one in read_note(json.loads(proof)["head"], what="head").signatures]
    assert names == [ledger_origin(genesis), f"{ledger_origin(genesis)}/w"]
    make_up_ledger_files(coordinator.home, coordinator.registry, genesis)
    with coordinator.join("z").connected() as line:
        assert line.describe(1).ledger_proof == proof
        fetcher = Fetcher(line.channel, "the coordinator")
        pulled = tmp_path / "pulled"
        fetcher.pull(pulled, round_number=1, federation=genesis.genesis_digest)
    assert (pulled / PROOF_FILE).read_bytes() == proof


def test_a_cosignature_that_comes_while_the_proof_is_written_is_in_the_next_one(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    played(coordinator)
    written = list[int]()

    def write(number: int) -> None:
        written.append(number)
        if written == [0, 1]:
            with station(tmp_path, coordinator) as watching:
                watching.witness.take(note(coordinator))

    coordinator.desk.proofs.renew(write, before=coordinator.clock())
    assert written == [0, 1]
    coordinator.desk.proofs.renew(write, before=coordinator.clock())
    assert written == [0, 1, 1]
    coordinator.desk.proofs.renew(write, before=coordinator.clock())
    assert written == [0, 1, 1], "and nothing else is due"
    again = coordinator.restarted()  # one may have come when nobody wrote any more
    again.desk.proofs.renew(write, before=again.clock())
    again.stop()
    assert written == [0, 1, 1, 1]


# Witnesses


def test_a_witness_follows_cosigns_and_goes_on_after_a_restart(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    with station(tmp_path, coordinator) as watching:
        watching.witness.take(note(coordinator))
        for number in (1, 2, 3):
            manifest, _receipts = played(coordinator)
            if number == 2:
                watching.started()
            watching.witness.take(note(coordinator))
            watching.witness.take(note(coordinator))
            watching.witness.require(payload_digest(manifest), number)
        with pytest.raises(UntrustedError, match="checkpoint 4, as the coordinator shows it, is n"):
            watching.witness.require("ab" * 32, 4)
        lines = read_note(note(coordinator), what="head").signatures
        assert [one.name.rsplit("/", 1)[1] for one in lines[1:]] == ["w"]
        genesis = coordinator.desk.genesis
        mine = watching.home.ledger.read(
            origin=ledger_origin(genesis), public_key=genesis.coordinator_key
        )
    assert mine.entries == coordinator.registry.ledger.entries(0, mine.head.head.size)
    kept = mine.head.note.signatures
    assert [one.name.rsplit("/", 1)[1] for one in kept[1:]] == ["w"], "its own stands there"


def test_a_head_that_was_told_late_is_not_taken_for_a_lost_one(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    with station(tmp_path, coordinator) as watching:
        before = note(coordinator)
        played(coordinator)
        watching.witness.take(note(coordinator))
        watching.witness.take(before)  # whoever showed it has more by now
        assert watching.home.ledger.head_file.read_text().startswith(head_of(coordinator).text)


def test_a_witness_that_lost_its_copy_fetches_it_and_compares_it_with_its_head(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    played(coordinator)
    with station(tmp_path, coordinator) as watching:
        watching.witness.take(note(coordinator))
        bundle = next((watching.home.folder / "ledger/tile/entries").rglob("[0-9]*"))
        shutil.rmtree(bundle)
        played(coordinator)
        watching.started().take(note(coordinator))
        folder = watching.home.ledger
        genesis = coordinator.desk.genesis
        stored = folder.read(origin=ledger_origin(genesis), public_key=genesis.coordinator_key)
        assert folder.require_tiles(stored) == 1
        assert stored.head.head == head_of(coordinator)


def test_nothing_is_trained_before_enough_members_have_seen_it(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed", rounds=ROUNDS, policy={"ledger": {"witnesses": 2}})
    coordinator = Coordinator(small)
    try:
        with (
            station(tmp_path, coordinator, "v") as one,
            station(tmp_path, coordinator, "w") as other,
        ):
            manifest, _receipts = played(coordinator)
            plan = coordinator.registry.plan(1)
            assert plan is not None
            assert RoundPlan.parsed(plan.payload, what="plan").witnesses == 2
            one.witness.take(note(coordinator))
            one.witness.require(payload_digest(manifest), 1)
            with pytest.raises(UnavailableError, match=r"1 of 2 members have cosigned .*\(v\)"):
                one.witness.require_witnesses(2)
            other.witness.take(note(coordinator))
            one.witness.require_witnesses(2)
            with pytest.raises(UnavailableError, match=r"2 of 3 members .*\(v, w\)"):
                one.witness.require_witnesses(3)
            announced = coordinator.desk.announcement("v", after=-1, timeout_seconds=0)
            assert announced is not None
            assert announced.ledger_head == note(coordinator)
    finally:
        coordinator.stop()


def test_members_are_told_when_enough_have_seen_it_even_if_more_came_at_once(
    tmp_path: Path,
) -> None:
    small = found_small(tmp_path / "fed", rounds=ROUNDS, policy={"ledger": {"witnesses": 2}})
    coordinator = Coordinator(small)
    try:
        desk, head = coordinator.desk, head_of(coordinator)
        before = desk.announcement("v", after=-1, timeout_seconds=0)
        assert before is not None
        for member in "uvw":  # three are stored before the first of them is noted
            line = cosign_head(
                head, member_id=member, key=signing_key(member), now=coordinator.clock.now
            ).line
            coordinator.registry.ledger.cosign(head.size, member, line)
        for _member in "uvw":
            desk.note_cosignature(head.size)
        told = desk.announcement("v", after=before.version, timeout_seconds=0)
        assert told is not None
        assert told.version == before.version + 1, "once"
        assert len(read_note(told.ledger_head, what="head").signatures) == 1 + 2
    finally:
        coordinator.stop()


def test_a_witness_that_the_ledger_does_not_know_does_not_count(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    """A coordinator that makes members up, without a trace in the ledger, has no more of them."""
    with station(tmp_path, coordinator) as watching:
        played(coordinator)
        head = head_of(coordinator)
        coordinator.join("x")  # no head covers its entry yet
        ghost = cosign_head(head, member_id="x", key=signing_key("x"), now=coordinator.clock.now)
        assert coordinator.registry.ledger.cosign(head.size, "x", ghost.line)
        with pytest.raises(UnavailableError, match=r"1 of 2 members"):
            watching.witness.require_witnesses(2)


# Lies


def twin(coordinator: Coordinator, folder: Path) -> Coordinator:
    """The same coordinator, keys and all, as it is now: as from a backup."""
    shutil.copytree(coordinator.home.folder, folder)
    PLAYERS[folder.resolve()] = PLAYERS[coordinator.home.folder]
    return Coordinator(Small(type(coordinator.home)(folder.resolve())), clock=coordinator.clock)


@pytest.fixture
def forked(coordinator: Coordinator, tmp_path: Path) -> Iterator[tuple[Coordinator, Coordinator]]:
    """Two coordinators of one federation, of one history up to round 1."""
    played(coordinator)
    other = twin(coordinator, tmp_path / "twin")
    yield coordinator, other
    other.stop()


@sqlite_alone
def test_a_coordinator_from_an_old_backup_is_refused(
    forked: tuple[Coordinator, Coordinator], tmp_path: Path
) -> None:
    coordinator, restored = forked
    with station(tmp_path, coordinator) as watching:
        played(coordinator)
        watching.witness.take(note(coordinator))
        with restored.join("w", role="observer").connected() as watching.line:
            with pytest.raises(UntrustedError, match=r"entries are gone, as after an old backup"):
                watching.witness.take(note(restored))
            with pytest.raises(UntrustedError, match=r"entries are gone"):
                watching.started().take(note(restored))
    assert not watching.evidence  # to have lost something is not to have lied


@sqlite_alone
@pytest.mark.parametrize("rounds", [1, 2])
def test_two_histories_stop_the_node_and_leave_evidence(
    forked: tuple[Coordinator, Coordinator], tmp_path: Path, rounds: int
) -> None:
    coordinator, liar = forked
    with station(tmp_path, coordinator) as watching:
        played(coordinator)
        watching.witness.take(note(coordinator))
        there = liar.join("w", role="observer")
        for _round in range(rounds):
            played(liar, push=-1.0)
        accepted = head_of(coordinator)
        with there.connected() as watching.line:
            for _try in range(2):
                with pytest.raises(UntrustedError, match=r"two histories.*The proof is in"):
                    watching.started().take(note(liar))
    (path, *_more) = watching.evidence
    genesis = coordinator.desk.genesis
    origin = origin_of(genesis.origin.federation, genesis.genesis_digest)
    fork = verify_evidence(
        path.read_bytes(), origin=origin, public_key=genesis.coordinator_key, what=str(path)
    )
    assert {fork.first, fork.second} == {accepted, head_of(liar)}


@sqlite_alone
def test_a_shorter_history_that_is_another_leaves_evidence_too(
    forked: tuple[Coordinator, Coordinator], tmp_path: Path
) -> None:
    coordinator, liar = forked
    with station(tmp_path, coordinator) as watching:
        for _round in range(2):
            played(coordinator)
        watching.witness.take(note(coordinator))
        there = liar.join("w", role="observer")
        played(liar, push=-1.0)
        assert head_of(liar).size < head_of(coordinator).size
        with (
            there.connected() as watching.line,
            pytest.raises(UntrustedError, match=r"two histories"),
        ):
            watching.witness.take(note(liar))
    assert len(watching.evidence) == 1


def test_a_head_whose_entries_are_withheld_is_refused(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    """Signed, longer, and nothing that leads to it: refused, though it proves nothing."""
    with station(tmp_path, coordinator) as watching:
        watching.witness.take(note(coordinator))
        played(coordinator)
        true = head_of(coordinator)
        made_up = sign_head(Head(true.origin, true.size, bytes(32)), coordinator.small.key).body
        with pytest.raises(UntrustedError, match=r"does not show how its ledger of"):
            watching.witness.take(made_up)
        assert not watching.evidence
        for broken in ("", "x", made_up[:-5], made_up.replace("loom", "warp")):
            with pytest.raises(UntrustedError):
                watching.witness.take(broken)
        watching.witness.take(note(coordinator))


def test_a_receipt_whose_entry_is_another_stops_the_node(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    _manifest, receipts = played(coordinator)
    true = receipts["a"]
    with station(tmp_path, coordinator) as watching:
        watching.witness.expect(true)
        watching.witness.take(note(coordinator))
        lie = true.model_copy(update={"ledger_index": 0})
        with pytest.raises(UntrustedError, match=r"is entry 0 of its ledger, and that is a checkp"):
            watching.witness.expect(lie)
        manifest, receipts = played(coordinator)
        watching.keep(receipts["a"].model_copy(update={"ledger_index": 500}))
        watching.started().take(note(coordinator))
        with pytest.raises(UntrustedError, match=r"has checkpoint 2 already and not that entry"):
            watching.witness.require(payload_digest(manifest), 2)


def test_a_long_ledger_is_kept_in_full_tiles(coordinator: Coordinator, tmp_path: Path) -> None:
    ledger, desk = coordinator.registry.ledger, coordinator.desk

    def grow(count: int) -> None:
        with ledger.recording() as connection:
            for number in range(count):
                ledger.append(connection, entry_of_member(f"m{number}", b"k"))
            ledger.seal(connection, desk._standing._seal)  # noqa: SLF001

    with station(tmp_path, coordinator) as watching:
        for count in (100, 200, 300, 1):
            grow(count)
            watching.witness.take(note(coordinator))
        grow(700)
        watching.started().take(note(coordinator))
        genesis = desk.genesis
        stored = watching.home.ledger.read(
            origin=ledger_origin(genesis), public_key=genesis.coordinator_key
        )
        watching.home.ledger.require_tiles(stored)
        tree = Tree()
        for leaf in ledger.entries(0, 2000):
            tree.append(leaf)
        assert stored.tree.root() == tree.root()


def _public(name: str) -> bytes:
    return signing_key(name).public_key().public_bytes_raw()
