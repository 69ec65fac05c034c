"""An auditor fetches what a round was made from, over mutual TLS, and makes it once more."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tapestry.checkpoints.archive import Archive
from tapestry.checkpoints.folder import folder_name
from tapestry.checkpoints.levels import Verification, Wanted
from tapestry.checkpoints.policy import ArchivePolicy
from tapestry.errors import ConfigError, RejectedError, UntrustedError
from tapestry.v1 import archive_pb2, archive_pb2_grpc
from tapestry.wire.archives import ArchiveReader, pull_archived
from tapestry.wire.fetching import Fetcher
from tapestry_coordinator.archiving import export, kept_round
from tests.wire.serving import CALL_SECONDS, Coordinator, Line
from tests.wire.test_service import gathered, refused

DELTAS = {"a": np.float32([0.5, -0.25]), "b": np.float32([0.25, 0.5])}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def published(coordinator: Coordinator, stack: ExitStack) -> Coordinator:
    """A coordinator after two rounds of a and b."""
    plan, lines = gathered(coordinator, stack)
    for _round in range(2):
        for name, line in lines.items():
            line.commit(line.sent(plan, DELTAS[name]))
        coordinator.aggregate()
        coordinator.desk.files.index(plan.round)
        coordinator.desk.pass_time()
        if coordinator.desk.state.number > plan.round:
            plan = next(iter(lines.values())).watch().until_plan()
    return coordinator


@pytest.fixture
def auditor(published: Coordinator, stack: ExitStack) -> Line:
    return stack.enter_context(published.join("eye", role="auditor").connected())


def pulled(coordinator: Coordinator, line: Line, out: Path, number: int | None = None) -> Path:
    verified = pull_archived(
        Fetcher(line.channel, "the coordinator"),
        ArchiveReader(line.channel, "the coordinator"),
        out,
        round_number=number,
        federation=coordinator.desk.genesis.genesis_digest,
    )
    return verified.folder


def verdicts(folder: Path, archive: Path) -> list[tuple[str, str]]:
    wanted = Wanted(folder=folder, level="replay", archive=archive)
    return [(answer.level, answer.verdict) for answer in Verification(wanted).answers()]


PASSED = [
    ("files", "passed"),
    ("record", "passed"),
    ("ledger", "undecided"),  # nobody has cosigned here
    ("replay", "passed"),
]


def test_an_auditor_replays_a_round_that_it_fetched(
    published: Coordinator, auditor: Line, tmp_path: Path
) -> None:
    folder = pulled(published, auditor, tmp_path / "audit")
    assert folder == tmp_path / "audit" / "published" / folder_name(2)
    assert verdicts(folder, tmp_path / "audit") == PASSED
    assert pulled(published, auditor, tmp_path / "audit") == folder  # nothing to do


def test_a_fetch_goes_on_where_it_broke_off(
    published: Coordinator, auditor: Line, tmp_path: Path
) -> None:
    pulled(published, auditor, tmp_path / "audit")
    path = Archive(tmp_path / "audit").contribution(2, "a")
    whole = path.read_bytes()
    path.write_bytes(whole[:3])
    came: list[int] = []
    ArchiveReader(auditor.channel, "the coordinator").pull(
        2, tmp_path / "audit", on_bytes=came.append
    )
    assert path.read_bytes() == whole
    assert sum(came) == len(whole) - 3


@pytest.mark.parametrize("role", ["contributor", "observer", "operator"])
def test_only_an_auditor_may_read_what_members_sent(
    published: Coordinator, stack: ExitStack, tmp_path: Path, role: str
) -> None:
    line = stack.enter_context(published.join("other", role=role).connected())
    with pytest.raises(UntrustedError, match=f"as {role}: only an auditor may read"):
        pulled(published, line, tmp_path / "audit")
    stub = archive_pb2_grpc.ArchiveServiceStub(line.channel)
    request = archive_pb2.FetchArchivedRequest(
        round=2, name="contributions/round-000002/a.contribution"
    )
    with refused("only an auditor may read", UntrustedError):
        list(stub.FetchArchived(request, timeout=CALL_SECONDS))


@pytest.mark.parametrize(
    "name", ["", "coordinator.toml", "../fed/ca/root.key", "contributions/round-000001/a.json"]
)
def test_nothing_else_of_the_home_can_be_fetched(auditor: Line, name: str) -> None:
    stub = archive_pb2_grpc.ArchiveServiceStub(auditor.channel)
    with refused("round 2 has no file"):
        list(
            stub.FetchArchived(
                archive_pb2.FetchArchivedRequest(round=2, name=name), timeout=CALL_SECONDS
            )
        )


@pytest.mark.parametrize("number", [0, 3, 2**60])
def test_a_round_that_is_not_published_has_no_archive(
    published: Coordinator, auditor: Line, tmp_path: Path, number: int
) -> None:
    with pytest.raises((RejectedError, ConfigError), match=r"no published checkpoint|genesis"):
        pulled(published, auditor, tmp_path / "audit", number)


def test_what_is_not_kept_any_more_is_said(
    published: Coordinator, auditor: Line, tmp_path: Path
) -> None:
    published.store.prune(before=2)
    with pytest.raises(RejectedError, match="round 1: not kept any more"):
        pulled(published, auditor, tmp_path / "audit", 1)
    with pytest.raises(ConfigError, match=r"round 1: .*a\.contribution is not kept any more"):
        export(published.home, published.registry, [1], tmp_path / "out")
    kept = kept_round(published.home, published.registry, 1)
    assert (len(kept.missing), kept.is_whole) == (4, False)


def test_an_export_is_replayed_without_the_coordinator(
    published: Coordinator, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    size = export(published.home, published.registry, [1, 2], out)
    assert size == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    for number in (1, 2):
        assert verdicts(out / "published" / folder_name(number), out) == PASSED
    assert not list(out.rglob("*.key"))
    with pytest.raises(ConfigError, match="exists already"):
        export(published.home, published.registry, [1], out)


@pytest.mark.parametrize(
    ("policy", "first"),
    [
        (ArchivePolicy(keep="all"), 1),
        (ArchivePolicy(keep="none"), 8),
        (ArchivePolicy(rounds=1), 7),
        (ArchivePolicy(rounds=5), 3),
        (ArchivePolicy(rounds=50), 1),
    ],
)
def test_the_policy_says_from_which_round_on_something_is_kept(
    policy: ArchivePolicy, first: int
) -> None:
    assert policy.first_round(7) == first
