"""What the guard lets out: whole, finite, within the plan and the institution's policy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import Contribution, RoundPlan
from tapestry.errors import ConfigError, RejectedError
from tapestry.identity.keys import public_bytes
from tapestry.params.codecs import codec_named
from tapestry.params.layout import FRAGMENT_ELEMENTS, ParameterLayout
from tapestry_node.approving import decide, decision_on, summary, waiting
from tapestry_node.guard import rounded, sealed
from tapestry_node.home import NodeHome
from tapestry_node.messages import Made
from tapestry_node.policy import Policy
from tapestry_node.spool import Spooled
from tests.conftest import Federation

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
LAYOUT = ParameterLayout.from_shapes([("vector", (FRAGMENT_ELEMENTS + 300,))])
VALUES = np.random.default_rng(2).standard_normal(LAYOUT.elements).astype(np.float32)
MADE = Made(tokens=64, steps=2, documents=40, loss_first=5.43219, loss_last=4.98765)

Fragments = list[bytes]


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    made = NodeHome(tmp_path / "node")
    made.make_folders()
    return made


@pytest.fixture
def plan(federation: Federation) -> RoundPlan:
    inner = federation.closed.plan.inner.model_copy(
        update={"steps": 2, "sequences": 2, "sequence_tokens": 16}
    )
    return federation.closed.plan.model_copy(update={"codec": "float32", "inner": inner})


def encoded() -> Fragments:
    return [codec_named("float32").encode(VALUES[slice(*LAYOUT.bounds(i))]) for i in range(2)]


def writing(
    fragments: Fragments, made: Made = MADE
) -> Callable[[Path, Callable[[int], None]], Made]:
    """Return a trainer that writes these bytes, whatever they are."""

    def write(file: Path, look: Callable[[int], None]) -> Made:
        with file.open("r+b", buffering=0) as out:
            for index, data in enumerate(fragments):
                out.write(data)
                look(index)
        return made

    return write


def seal(
    home: NodeHome,
    plan: RoundPlan,
    fragments: Fragments,
    *,
    made: Made = MADE,
    **policy: object,
) -> Spooled:
    return sealed(
        home,
        plan,
        writing(fragments, made),
        layout=LAYOUT,
        policy=Policy.model_validate(policy),
        member_id="fr-bnf",
        key=KEY,
        seconds=12.3456,
    )


def test_what_is_allowed_is_signed_with_what_the_guard_itself_has_seen(
    home: NodeHome, plan: RoundPlan
) -> None:
    spooled = seal(home, plan, encoded())
    made = Contribution.opened(spooled.envelope, public_key=public_bytes(KEY), what="it")
    assert made.norm == pytest.approx(float(np.linalg.norm(VALUES.astype(np.float64))), rel=1e-6)
    assert [spooled.read_fragment(index) for index in range(2)] == encoded()
    assert made.metrics == {"loss_first": 5.43, "loss_last": 4.99, "seconds": 12.3}


def test_metrics_that_are_not_listed_stay_here(home: NodeHome, plan: RoundPlan) -> None:
    assert seal(home, plan, encoded(), metrics=["seconds"]).contribution.metrics == {
        "seconds": 12.3
    }


def test_what_follows_the_last_fragment_is_cut_off(home: NodeHome, plan: RoundPlan) -> None:
    first, last = encoded()
    spooled = seal(home, plan, [first, last + b"and the text of a document"])
    assert (spooled.folder / "fragments.bin").read_bytes() == first + last


NAN = np.full(300, np.nan, np.float32).tobytes()
HUGE = [np.full(n, 3e38, np.float32).tobytes() for n in (FRAGMENT_ELEMENTS, 300)]


@pytest.mark.parametrize(
    ("fragments", "says"),
    [
        ([encoded()[0]], "has written 1 of 2 fragments"),
        ([], "has written 0 of 2 fragments"),
        ([encoded()[0], b"short"], "fragment 1 has 5 bytes, the plan's codec needs 1,200"),
        ([*encoded(), encoded()[1]], "fragment 2 where 2 of 2 belongs"),
        ([encoded()[0], NAN], "NaN or infinit"),
    ],
    ids=["half", "nothing", "short", "one too many", "not a number"],
)
def test_a_vector_of_another_structure_does_not_leave(
    home: NodeHome, plan: RoundPlan, fragments: Fragments, says: str
) -> None:
    with pytest.raises(RejectedError, match=says):
        seal(home, plan, fragments)
    assert home.spooled() == [], "nothing of it is kept"


@pytest.mark.parametrize(
    ("policy", "made", "says"),
    [
        ({"min_tokens": 65}, {}, "min_tokens = 65, it has 64"),
        ({"min_documents": 41}, {}, "min_documents = 41, it was made of 40"),
        ({"min_inner_steps": 3}, {}, "min_inner_steps = 3, it has 2"),
        ({"max_norm": 10.0}, {}, "max_norm = 10, the update has 1024"),
        ({}, {"tokens": 65}, "it claims 65 tokens, the plan has 64"),
        ({}, {"loss_last": float("nan")}, "a loss or statistic is not finite"),
        ({}, {"statistics": {"mean": (1.0,)}}, "statistics: mean not listed"),
        ({"statistics": ["mean"]}, {"statistics": {"mean": (np.inf,)}}, "a loss or statistic is"),
    ],
)
def test_what_the_policy_does_not_let_out_does_not_leave(
    home: NodeHome,
    plan: RoundPlan,
    policy: dict[str, object],
    made: dict[str, object],
    says: str,
) -> None:
    fields = {name: getattr(MADE, name) for name in Made.__slots__}
    with pytest.raises(RejectedError, match=f"does not let the contribution .* out: {says}"):
        seal(home, plan, encoded(), made=Made(**{**fields, **made}), **policy)  # type: ignore[arg-type]
    assert home.spooled() == []


def test_listed_statistics_leave(home: NodeHome, plan: RoundPlan) -> None:
    fields = {name: getattr(MADE, name) for name in Made.__slots__}
    made = Made(**{**fields, "statistics": {"mean": (1.0, 2.0)}})
    spooled = seal(home, plan, encoded(), made=made, statistics=["mean"])
    assert spooled.contribution.statistics == {"mean": (1.0, 2.0)}


def test_bytes_that_are_changed_after_the_look_do_not_leave(
    home: NodeHome, plan: RoundPlan
) -> None:
    spooled = seal(home, plan, encoded())
    with (spooled.folder / "fragments.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"the trainer kept the file open")
    with pytest.raises(RejectedError, match="fragment 0 is damaged"):
        spooled.read_fragment(0)


@pytest.mark.parametrize(
    ("value", "left"), [(1234.5678, 1230.0), (0.000123456, 0.000123), (0.0, 0.0), (-5.4321, -5.43)]
)
def test_metrics_leave_with_three_digits(value: float, left: float) -> None:
    assert rounded(value) == left


# A person's approval


def test_a_person_sees_what_would_leave_and_says_yes_or_no(home: NodeHome, plan: RoundPlan) -> None:
    spooled = seal(home, plan, encoded())
    assert decision_on(home, spooled) is None
    (one,) = waiting(home)
    shown = summary(one)
    assert (shown["round"], shown["bytes"]) == (plan.round, spooled.size_bytes)
    assert shown["root"] == spooled.contribution.root
    decide(home, one, is_approved=False, by="head of archives", reason="not before the audit")
    decision = decision_on(home, spooled)
    assert decision is not None
    assert (decision.is_approved, decision.reason) == (False, "not before the audit")
    assert waiting(home) == []
    assert (home.approvals / f"{spooled.folder.name}.json").stat().st_mode & 0o777 == 0o600


def test_a_decision_is_about_one_contribution_and_no_other(home: NodeHome, plan: RoundPlan) -> None:
    first = seal(home, plan, encoded())
    (one,) = waiting(home)
    decide(home, one, is_approved=True, by="somebody")
    kept = (home.approvals / f"{first.folder.name}.json").read_bytes()
    changed = VALUES.copy()
    changed[0] += 1
    again = seal(
        home,
        plan,
        [codec_named("float32").encode(changed[slice(*LAYOUT.bounds(i))]) for i in range(2)],
    )
    assert (home.approvals / f"{again.folder.name}.json").read_bytes() == kept
    assert decision_on(home, again) is None


def test_a_damaged_decision_is_named(home: NodeHome, plan: RoundPlan) -> None:
    spooled = seal(home, plan, encoded())
    home.approvals.mkdir()
    (home.approvals / f"{spooled.folder.name}.json").write_text("{")
    with pytest.raises(ConfigError, match=r"round-000001\.json: not a decision .* remove it"):
        decision_on(home, spooled)
