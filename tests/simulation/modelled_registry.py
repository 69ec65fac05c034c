"""The registry's promises kept in memory: a transaction is a method, and happens whole or not.

`test_histories` holds it to the real one: the same seed leaves the same records in both.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from tapestry.checkpoints.policy import FederationPolicy
from tapestry.checkpoints.statements import payload_digest
from tapestry.errors import ConfigError
from tapestry.identity.envelopes import Envelope, to_json
from tapestry.ledger.entries import PLAN, Entry
from tapestry.ledger.merkle import Tree
from tapestry_coordinator import failpoints
from tapestry_coordinator.actions import PAUSE, Action
from tapestry_coordinator.events import Event, event_from_json, event_to_json
from tapestry_coordinator.ledgering import (
    Seal,
    StoredHead,
    entry_of_checkpoint,
    entry_of_exclusion,
    entry_of_member,
)
from tapestry_coordinator.operating import Operator
from tapestry_coordinator.policy_history import PolicyVersion
from tapestry_coordinator.receiving import Receiving, StoredContribution
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.roster import ACTIVE, CONTRIBUTOR, REVOKED, Attendance, Member
from tapestry_coordinator.testimony import MOST_EXCLUSIONS, Ruling, StoredEvaluation
from tests.simulation.history import Records, Row


@dataclass
class Tables:
    """What a database would hold."""

    members: dict[str, Member] = field(default_factory=dict)
    policies: list[PolicyVersion] = field(default_factory=list)
    events: list[tuple[int, int, float, str, str]] = field(default_factory=list)
    plans: dict[tuple[int, int], Envelope] = field(default_factory=dict)
    contributions: dict[tuple[int, str], StoredContribution] = field(default_factory=dict)
    manifests: list[Envelope] = field(default_factory=list)
    rulings: dict[int, Ruling] = field(default_factory=dict)
    evaluations: dict[tuple[int, str], StoredEvaluation] = field(default_factory=dict)
    exclusions: list[tuple[int, str, str, str]] = field(default_factory=list)
    pause: Action | None = None


class ModelledRegistry(Registry):
    """As much of the registry as rounds need."""

    def __init__(
        self, genesis: Envelope, policy: FederationPolicy, seal: Seal, *, now: float
    ) -> None:
        self.tables = Tables(manifests=[genesis])
        self.ledger: Any = ModelledLedger()
        self.ledger.add(entry_of_checkpoint(0, payload_digest(genesis)))
        self.ledger.sign(seal)
        self.adopt_policy(policy, now=now)

    def forget(self) -> None:
        """Nothing is remembered beside what is there."""

    def pause(self) -> Action | None:
        """What `pause_in_force` returns."""
        return self.tables.pause

    # Members

    def admit(self, member_id: str, *, signing_key: bytes, serial: int, now: float) -> None:
        """Invite and enrol a member."""
        self.ledger.add(entry_of_member(member_id, signing_key))
        known = self.tables.members.get(member_id)
        self.tables.members[member_id] = Member(
            member_id=member_id,
            signing_key=signing_key.hex(),
            certificate_serial=f"{serial:x}",
            previous_serial="",
            status=ACTIVE,
            joined_at=now,
            last_seen_at=now,
            tokens_per_second=0.0 if known is None else known.tokens_per_second,
        )

    def member(self, member_id: str) -> Member | None:
        return self.tables.members.get(member_id)

    def members(self) -> list[Member]:
        return [member for _name, member in sorted(self.tables.members.items())]

    def revoke(self, member_id: str, *, now: float) -> tuple[bool, int]:  # noqa: ARG002
        members = self.tables.members
        members[member_id] = replace(members[member_id], status=REVOKED)
        return True, 0

    # Policies

    def newest_policy(self) -> PolicyVersion | None:
        return self.tables.policies[-1] if self.tables.policies else None

    def adopt_policy(self, policy: FederationPolicy, *, now: float) -> PolicyVersion:
        newest, digest = self.newest_policy(), policy.digest
        if newest is not None and newest.digest == digest:
            return newest
        version = len(self.tables.policies) + 1
        adopted = PolicyVersion(version=version, digest=digest, policy=policy, at=now)
        self.tables.policies.append(adopted)
        return adopted

    def policy(self, digest: str) -> FederationPolicy:
        return next(one.policy for one in self.tables.policies if one.digest == digest)

    # Rounds

    def newest_round(self) -> int | None:
        return len(self.tables.manifests) - 1

    def newest_event_at(self) -> float:
        return max((at for _id, _round, at, _kind, _body in self.tables.events), default=0.0)

    def round_events(self, number: int) -> list[tuple[float, Event]]:
        return [
            (at, event_from_json(kind, body))
            for _id, round_, at, kind, body in self.tables.events
            if round_ == number
        ]

    def record_event(
        self,
        number: int,
        event_: Event,
        *,
        now: float,
        plan: tuple[int, str, Envelope] | None = None,
        contribution: Receiving | None = None,
        speed: float = 0.0,
        manifest: tuple[str, Envelope] | None = None,
        seal: Seal | None = None,
        attendance: Attendance | None = None,
    ) -> None:
        kind, body = event_to_json(event_)
        failpoints.reach("event-uncommitted")
        tables = self.tables
        tables.events.append((len(tables.events) + 1, number, now, kind, body))
        if plan is not None:
            assert (number, plan[0]) not in tables.plans
            tables.plans[number, plan[0]] = plan[2]
            self.ledger.add(Entry(kind=PLAN, round=number, payload_digest=plan[1]))
        if contribution is not None:
            index = self.ledger.add(contribution.entry)
            self._keep(contribution.receive(index), speed)
        if manifest is not None:
            assert number == len(tables.manifests)
            tables.manifests.append(manifest[1])
            self.ledger.add(entry_of_checkpoint(number, manifest[0]))
        if seal is not None:
            self.ledger.sign(seal)
        if attendance is not None:
            self._note_attendance(attendance)

    def _keep(self, stored: StoredContribution, speed: float) -> None:
        key = (stored.round, stored.member_id)
        used = {(c.used_round, c.member_id) for c in self.tables.contributions.values()}
        assert key not in self.tables.contributions, "one to a round"
        assert (stored.used_round, stored.member_id) not in used, "one in a round"
        self.tables.contributions[key] = stored
        if speed > 0:
            member = self.tables.members[stored.member_id]
            known = member.tokens_per_second
            speed = (known + speed) / 2 if known > 0 else speed
            self.tables.members[stored.member_id] = replace(member, tokens_per_second=speed)

    def _note_attendance(self, attendance: Attendance) -> None:
        for name, member in self.tables.members.items():
            if name in attendance.answered:
                self.tables.members[name] = replace(member, missed_rounds=0)
            elif (member.status, member.role) == (ACTIVE, CONTRIBUTOR) and (
                member.joined_at <= attendance.opened_at
            ):
                missed = member.missed_rounds + 1
                self.tables.members[name] = replace(member, missed_rounds=missed)

    def plan(self, number: int, attempt: int | None = None) -> Envelope | None:
        plans = self.tables.plans
        if attempt is None:
            attempt = max((a for n, a in plans if n == number), default=0)
        return plans.get((number, attempt))

    def contribution(self, number: int, member_id: str) -> StoredContribution | None:
        return self.tables.contributions.get((number, member_id))

    def contributions(self, number: int) -> list[StoredContribution]:
        used = [c for c in self.tables.contributions.values() if c.used_round == number]
        return sorted(used, key=lambda stored: stored.member_id)

    def contributions_before(self, number: int) -> dict[str, int]:
        counts: dict[str, int] = {}
        for stored in self.tables.contributions.values():
            if stored.used_round < number:
                counts[stored.member_id] = counts.get(stored.member_id, 0) + 1
        return counts

    def exclude(
        self,
        number: int,
        member_id: str,
        *,
        kind: str,
        reason: str,
        now: float,  # noqa: ARG002
    ) -> None:
        row, known = (number, member_id, kind, reason), self.tables.exclusions
        if row not in known and sum(one[:2] == row[:2] for one in known) < MOST_EXCLUSIONS:
            known.append(row)
            self.ledger.add(entry_of_exclusion(number, member_id, kind=kind, reason=reason))

    def lineage(self, last: int | None = None) -> list[Envelope]:
        return self.tables.manifests[: None if last is None else last + 1]

    def manifest(self, number: int) -> Envelope | None:
        known = self.tables.manifests
        return known[number] if number < len(known) else None

    def round_of(self, manifest_digest: str) -> int | None:
        digests = [payload_digest(envelope) for envelope in self.tables.manifests]
        return digests.index(manifest_digest) if manifest_digest in digests else None

    # The gate

    def rule(self, number: int, *, is_released: bool, reason: str, now: float) -> None:  # noqa: ARG002
        if number in self.tables.rulings:
            raise ConfigError(f"the operator has decided about round {number} before")
        self.tables.rulings[number] = Ruling(is_released, reason)

    def ruling(self, number: int) -> Ruling | None:
        return self.tables.rulings.get(number)

    def forget_evaluations(self, number: int) -> None:
        evaluations = self.tables.evaluations
        for key in [key for key in evaluations if key[0] == number]:
            del evaluations[key]

    def add_evaluation(self, evaluation: StoredEvaluation, *, now: float) -> None:  # noqa: ARG002
        self.tables.evaluations[evaluation.round, evaluation.member_id] = evaluation

    def evaluations(self, *, since: int = 0) -> list[StoredEvaluation]:
        found = sorted(self.tables.evaluations.items())
        return [one for (number, _member), one in found if number >= since]

    # What the checker reads

    def event_rows(self) -> tuple[Row, ...]:
        return tuple(self.tables.events)

    def ledger_rows(self) -> tuple[Row, ...]:
        return self.ledger.rows()

    def records(self) -> Records:
        """Return the tables as a database would hold them."""
        tables = self.tables
        return Records(
            events=self.event_rows(),
            contributions=tuple(
                (*key, c.digest, _text(c.envelope), _text(c.receipt), c.used_round)
                for key, c in sorted(tables.contributions.items())
            ),
            plans=tuple(
                (*key, payload_digest(envelope), _text(envelope))
                for key, envelope in sorted(tables.plans.items())
            ),
            manifests=tuple(
                (number, payload_digest(envelope), _text(envelope))
                for number, envelope in enumerate(tables.manifests)
            ),
            policies=tuple(
                (one.version, one.digest, one.policy.canonical().decode())
                for one in tables.policies
            ),
            rulings=tuple((n, int(one.is_released)) for n, one in sorted(tables.rulings.items())),
            ledger=self.ledger_rows(),
            heads=tuple(self.ledger.heads.items()),
        )


class ModelledLedger:
    """As much of the ledger as rounds need."""

    def __init__(self) -> None:
        self.leaves: list[tuple[str, str]] = []
        self.heads: dict[int, str] = {}
        self._tree = Tree()

    def add(self, entry: Entry) -> int:
        leaf = entry.leaf()
        self.leaves.append((leaf.decode(), entry.payload_digest))
        return self._tree.append(leaf)

    def sign(self, seal: Seal) -> None:
        self.heads.setdefault(self._tree.size, seal(self._tree.size, self._tree.root()))

    def have_head(self, _seal: Seal) -> None:
        """Founding has made one."""

    def head(self) -> StoredHead:
        size = max(self.heads)
        return StoredHead(size, self.heads[size])

    def rows(self) -> tuple[Row, ...]:
        return tuple((number, *leaf) for number, leaf in enumerate(self.leaves))


def _text(envelope: Envelope) -> str:
    return to_json(envelope).decode()


class ModelledOperator(Operator):
    """An operator whose log of actions is the registry's newest pause."""

    _registry: ModelledRegistry

    def pause(self, reason: str) -> dict[str, Any]:
        now = self._clock()
        self._registry.tables.pause = Action(at=now, who=self._who, what=PAUSE, detail=reason)
        return {}

    def resume(self) -> dict[str, Any]:
        self._registry.tables.pause = None
        return {}

    def _record(self, what: str, detail: str) -> None:
        """Only pauses are asked for."""
