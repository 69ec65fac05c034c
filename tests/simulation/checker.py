"""Whether a history is one that a federation may have: pure functions over what was recorded.

I1  every accepted contribution counts exactly once, or is left out with a reason
I2  every checkpoint is what its recorded contributions give
I3  rounds and manifests form one chain, the event log only grows, nobody hears two stories
I6  a run with crashes comes to what the same run without comes to
L   with a quorum of honest members connected, every round ends by its deadline
A   what the federation agreed upon is kept: see `agreements`
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from tapestry.checkpoints.manifest import verify_lineage
from tapestry.checkpoints.statements import Receipt, RoundPlan, payload_digest
from tapestry.errors import TapestryError, UntrustedError
from tapestry.identity.envelopes import Envelope, from_json
from tapestry.ledger.entries import CHECKPOINT, CONTRIBUTION, PLAN, read_entry
from tapestry.ledger.heads import read_head
from tapestry.ledger.merkle import Tree
from tapestry.ledger.notes import read_note, require_signature
from tapestry_coordinator.events import Published, Tick
from tapestry_coordinator.round_state import Phase
from tests.coordinator.recomputing import substance
from tests.simulation import agreements
from tests.simulation.folding import Violation, manifest_in, manifests, steps
from tests.simulation.history import History
from tests.simulation.once import cheaply

TICK_SECONDS = 4.5


Check = Callable[[History], Iterator[Violation]]


def violations(history: History) -> list[Violation]:
    """Return everything that is wrong with a history."""
    with cheaply():
        return [violation for check in CHECKS for violation in check(history)]


# I1


def counted_once(history: History) -> Iterator[Violation]:
    """Every contribution to a published round stands in exactly one manifest, with a weight or
    with the reason why it has none.
    """
    counted: Counter[str] = Counter()
    published = manifests(history)
    for manifest, _envelope in published.values():
        for part in manifest.made.participation if manifest.made is not None else ():
            counted[part.contribution] += 1
            if part.weight == 0 and not part.reason:
                yield Violation("I1", f"{part.member_id} is left out without a reason")
    stored = {str(row[2]): row for row in history.records.contributions}
    for digest, times in counted.items():
        if times > 1:
            yield Violation("I1", f"contribution {digest[:12]} counts {times} times")
        if digest not in stored:
            yield Violation("I1", f"contribution {digest[:12]} counts and was never stored")
    for digest, (number, member_id, *_rest, used_round) in stored.items():
        if used_round in published and not counted[digest]:
            yield Violation("I1", f"{member_id}'s contribution to round {number} is lost")


def receipts_honoured(history: History) -> Iterator[Violation]:
    """Every receipt that was handed out is of a contribution that is stored, and of one only."""
    stored = {(row[0], row[1]): (str(row[2]), row[5]) for row in history.records.contributions}
    heard: dict[tuple[int, str], bytes] = {}
    for told in history.acknowledged:
        try:
            receipt = Receipt.opened(
                told.receipt, public_key=history.coordinator_key, what="receipt"
            )
        except UntrustedError as error:
            yield Violation("I1", f"{told.member_id} heard a receipt that is none: {error}")
            continue
        key = (receipt.round, told.member_id)
        promised = (receipt.contribution, receipt.used_round)
        if receipt.member_id != told.member_id or stored.get(key) != promised:
            yield Violation("I1", f"{told.member_id}'s receipt for round {receipt.round} is void")
        if heard.setdefault(key, told.receipt.payload) != told.receipt.payload:
            yield Violation("I1", f"{told.member_id} has two receipts for round {receipt.round}")


def lies_refused(history: History) -> Iterator[Violation]:
    """What must not be taken was not taken."""
    for number, member_id, _digest, envelope, *_rest in history.records.contributions:
        if from_json(str(envelope).encode(), what="contribution").signature.hex() in history.lies:
            yield Violation("I1", f"a lie of {member_id} was taken into round {number}")


def events_match_contributions(history: History) -> Iterator[Violation]:
    """A contribution and its event are recorded together or not at all."""
    events = Counter(
        (number, json.loads(str(body))["member_id"], json.loads(str(body))["digest"])
        for _id, number, _at, kind, body in history.records.events
        if kind == "arrived"
    )
    rows = Counter((row[5], row[1], row[2]) for row in history.records.contributions)
    for number, member_id, _digest in (events - rows) | (rows - events):
        yield Violation("I1", f"{member_id}, round {number}: event and contribution differ")


# I2


def recomputation_agrees(history: History) -> Iterator[Violation]:
    """Made again from the records, a manifest has the same bytes."""
    for number, envelope in enumerate(history.records.lineage):
        again = history.recomputed.get(number)
        if again is not None and again != envelope.payload:
            yield Violation("I2", f"checkpoint {number} comes out differently")


# I3


def one_chain(history: History) -> Iterator[Violation]:
    """The manifests are one chain from genesis, without a gap."""
    try:
        verify_lineage(history.records.lineage)
    except TapestryError as error:
        yield Violation("I3", str(error))


def log_only_grows(history: History) -> Iterator[Violation]:
    """What was in the event log at a crash is in it ever after."""
    for before, after in zip(history.logs, history.logs[1:], strict=False):
        if after[: len(before)] != before:
            yield Violation("I3", "the event log lost or changed events")


def log_is_a_run(history: History) -> Iterator[Violation]:
    """The stored events are steps of the state machine, each of which changed something."""
    for step in steps(history):
        if not step.is_step:
            yield Violation("I3", f"round {step.number}: an event changes nothing or is refused")


def published_once(history: History) -> Iterator[Violation]:
    """Every manifest after genesis has one event, and the other way round."""
    events = Counter(
        (number, json.loads(str(body))["manifest"])
        for _id, number, _at, kind, body in history.records.events
        if kind == "published"
    )
    rows = Counter((row[0], row[1]) for row in history.records.manifests if row[0] != 0)
    for number, _digest in (events - rows) | (rows - events):
        yield Violation("I3", f"round {number}: event and manifest differ")


def one_story(history: History) -> Iterator[Violation]:
    """All members hear the same plans and manifests, and only recorded ones."""
    recorded = {row[0]: row[1] for row in history.records.manifests}
    since = {s.number: s.moment for s in steps(history) if isinstance(s.event, Published)}
    plans = {(row[0], row[1]): row[2] for row in history.records.plans}
    heard: dict[tuple[str, int], int] = defaultdict(int)
    for told in history.told:
        manifest = manifest_in(told.manifest.payload)
        if recorded.get(manifest.round) != payload_digest(told.manifest):
            yield Violation("I3", f"{told.member_id} heard of another checkpoint {manifest.round}")
        if told.at < since.get(manifest.round, 0.0):
            yield Violation("I3", f"{told.member_id} heard of {manifest.round} before it was there")
        key = (told.member_id, told.stream)
        if manifest.round < heard[key]:
            yield Violation("I3", f"{told.member_id} was told of a past checkpoint")
        heard[key] = manifest.round
        if told.plan is not None:
            plan = RoundPlan.parsed(told.plan.payload, what="plan")
            if plans.get((plan.round, plan.attempt)) != payload_digest(told.plan):
                yield Violation(
                    "I3", f"{told.member_id} heard another plan {plan.round}.{plan.attempt}"
                )
            if plan.base != payload_digest(told.manifest):
                yield Violation("I3", f"plan {plan.round} does not start from what came with it")


def ledger_only_grows(history: History) -> Iterator[Violation]:
    """Entries are numbered without gaps, and what was one at a crash is one ever after."""
    for before, after in zip(history.ledgers, history.ledgers[1:], strict=False):
        if after[: len(before)] != before:
            yield Violation("I3", "the ledger lost or changed entries")
    if [row[0] for row in history.records.ledger] != list(range(len(history.records.ledger))):
        yield Violation("I3", "the ledger has gaps")


def ledger_is_complete(history: History) -> Iterator[Violation]:
    """Every plan, contribution and checkpoint has one entry, and every such entry has its own."""
    records = history.records
    entries = Counter(
        (entry.kind, entry.round, entry.member_id, entry.payload_digest)
        for entry in (read_entry(str(row[1]).encode(), what="entry") for row in records.ledger)
        if entry.kind in (PLAN, CONTRIBUTION, CHECKPOINT)
    )
    rows = Counter((CHECKPOINT, row[0], "", row[1]) for row in records.manifests)
    rows += Counter((PLAN, row[0], "", row[2]) for row in records.plans)
    rows += Counter((CONTRIBUTION, row[0], row[1], row[2]) for row in records.contributions)
    for kind, number, member_id, _digest in (entries - rows) | (rows - entries):
        yield Violation("I3", f"{kind} of {member_id or 'round'} {number}: ledger and rows differ")


def heads_are_signed(history: History) -> Iterator[Violation]:
    """Each head is the coordinator's over just those entries, and each checkpoint is under one."""
    tree, signed = Tree(), {}
    for size, note in history.records.heads:
        signed[size] = read_note(str(note), what="head")
    for row in history.records.ledger:
        entry = str(row[1]).encode()
        size = tree.append(entry) + 1
        if size not in signed:
            if read_entry(entry, what="entry").kind == CHECKPOINT:
                yield Violation("I3", f"no head covers the checkpoint of entry {size - 1}")
            continue
        note = signed.pop(size)
        head = read_head(note.text, what="head")
        try:
            require_signature(
                note, name=head.origin, public_key=history.coordinator_key, what="head"
            )
        except UntrustedError as error:
            yield Violation("I3", str(error))
        if (head.size, head.root) != (size, tree.root()):
            yield Violation("I3", f"the head of {size} entries is of others")
    for size in signed:
        yield Violation("I3", f"a head has {size} entries, and the ledger has not")


def receipts_name_their_entry(history: History) -> Iterator[Violation]:
    """The ledger has a contribution where its receipt says."""
    for told in history.acknowledged:
        receipt = Receipt.parsed(told.receipt.payload, what="receipt")
        index = -1 if receipt.ledger_index is None else receipt.ledger_index
        found = history.records.ledger[index : index + 1] if index >= 0 else ()
        if [row[2] for row in found] != [receipt.contribution]:
            yield Violation("I3", f"{told.member_id}'s receipt names entry {index}, another's")


# Liveness


def ends_by_deadline(history: History) -> Iterator[Violation]:
    """No round that has a quorum waits longer than grace and deadline, outages aside."""
    came: dict[int, float] = {}
    for step in steps(history):
        before, after, at = step.before, step.after, step.at
        if after.phase is not Phase.AGGREGATING or before.phase is not Phase.OPEN:
            if not isinstance(step.event, Tick):
                came[step.number] = at  # a contribution, or somebody who is not waited for
            continue
        if after.rules is None:
            continue
        if before.quorum_at is None:  # late contributions alone, or the last one made the quorum
            due = max(after.deadline, came.get(step.number, at))
        else:
            due = min(before.quorum_at + after.rules.grace_seconds, after.deadline)
            due = max(due, before.quorum_at)
        out = sum(
            max(0.0, min(at, o.ended) - max(due, o.began)) for o in history.outages if o.ended > due
        )
        if at - due > TICK_SECONDS + out:
            yield Violation("L", f"round {step.number} closed {at - due:.1f} s after it was due")


def comes_to_an_end(history: History) -> Iterator[Violation]:
    """Once nothing goes wrong any more, every round is published in time."""
    if not history.healed_at:
        return
    last = history.healed_at
    published = {
        number: at
        for _id, number, at, kind, _body in history.records.events
        if kind == "published" and isinstance(at, float)
    }
    for number in range(1, history.target + 1):
        at = published.get(number, history.ended_at)
        if at > last:
            if number not in published or at - last > history.slack_seconds:
                yield Violation("L", f"round {number} took {at - last:.0f} s after healing")
                return
            last = at


CHECKS: Sequence[Check] = (
    counted_once,
    receipts_honoured,
    lies_refused,
    events_match_contributions,
    recomputation_agrees,
    one_chain,
    log_only_grows,
    log_is_a_run,
    published_once,
    one_story,
    ledger_only_grows,
    ledger_is_complete,
    heads_are_signed,
    receipts_name_their_entry,
    ends_by_deadline,
    comes_to_an_end,
    *agreements.CHECKS,
)


# I6


def differences(ours: Sequence[Envelope], others: Sequence[Envelope]) -> list[Violation]:
    """Compare two runs with equal contributions: all but their times and names of plans."""
    return [
        Violation("I6", f"checkpoint {number} differs between the runs")
        for number, (one, other) in enumerate(zip(ours, others, strict=True))
        if substance(one) != substance(other)
    ]
