"""What the daemon looks at before it connects."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tapestry.cli.main import main
from tapestry.errors import UntrustedError
from tapestry.identity.certificates import create_authority
from tapestry.storage.locks import alone
from tapestry.wire.egress import EgressLedger, read_ledger
from tapestry_node.client import NodeClient
from tapestry_node.daemon import Daemon
from tapestry_node.home import NodeHome
from tapestry_node.listener import Listener
from tests.members import joined_member


def member_whose_certificate_is(folder: Path, *, days_old: int) -> NodeHome:
    """A member with a certificate of seven days; nobody listens at its coordinator's address."""
    issued = datetime.now(UTC) - timedelta(days=days_old)
    return joined_member(
        folder,
        create_authority("loom", now=issued),
        member_id="fr-bnf",
        issued=issued,
        address="127.0.0.1:1",
        coordinator_key="0" * 64,
        genesis="0" * 64,
        lifetime_days=7,
    )


@pytest.mark.parametrize("days_old", [8, -2])
def test_a_certificate_that_is_not_valid_now_is_named_before_anything_is_sent(
    tmp_path: Path, days_old: int
) -> None:
    home = member_whose_certificate_is(tmp_path / "node", days_old=days_old)
    with pytest.raises(UntrustedError, match=r"set the clock, or ask .* for a new invitation"):
        Daemon(home, [tmp_path], until_finished=True)
    assert home.egress.read_bytes() == b""


def test_a_certificate_that_is_valid_lets_the_daemon_start(tmp_path: Path) -> None:
    home = member_whose_certificate_is(tmp_path / "node", days_old=1)
    daemon = Daemon(home, [tmp_path], until_finished=True)
    daemon.stop()
    daemon.run()
    calls = {departure.call.rsplit("/", 1)[-1] for departure in read_ledger(home.egress)}
    assert calls <= {"WatchPlans"}


def test_a_second_daemon_is_refused_before_it_has_read_where_the_node_stands(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = member_whose_certificate_is(tmp_path / "node", days_old=1)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "text.txt").write_text("the shuttle", encoding="utf-8")

    def content() -> set[Path]:
        return {path for path in home.folder.rglob("*") if path.name != ".lock"}

    before = content()
    with alone(home.folder, who="this node"):
        assert main(["node", "run", str(home.folder), "--data", str(tmp_path / "text")]) == 1
    assert "this node runs already in another process; stop that first" in capfd.readouterr().err
    assert content() == before


def test_nothing_leaves_beside_a_record_that_was_changed(tmp_path: Path) -> None:
    home = member_whose_certificate_is(tmp_path / "node", days_old=1)
    with closing(EgressLedger(home.egress, to="a:1", clock=lambda: 9.0)) as ledger:
        for size in (1000, 10, 100):
            ledger.record("/tapestry.v1.TransferService/PutFragment", b"x" * size)
    changed = home.egress.read_bytes().replace(b"1000", b"1001")
    home.egress.write_bytes(changed)
    with pytest.raises(UntrustedError, match=r"egress\.jsonl:2: .* Nothing leaves beside a record"):
        Daemon(home, [tmp_path], until_finished=True)
    assert home.egress.read_bytes() == changed
    home.egress.rename(tmp_path / "kept.jsonl")
    Daemon(home, [tmp_path], until_finished=True)


def test_a_renewal_that_is_due_while_nobody_answers_is_put_off(tmp_path: Path) -> None:
    home = member_whose_certificate_is(tmp_path / "node", days_old=5)
    daemon = Daemon(home, [tmp_path], until_finished=True)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(daemon.run)
        while not any(d.call.endswith("/Renew") for d in read_ledger(home.egress)):
            assert not running.done()
            time.sleep(0.05)
        time.sleep(0.2)
        assert not running.done()
        daemon.stop()
        running.result(timeout=60)


def test_waiting_for_the_line_ends_when_listening_has_failed_for_good() -> None:
    def connected() -> NodeClient:
        raise UntrustedError("not a member any more")

    listener = Listener(connected)
    assert listener.wait_for_stream(after=0, timeout_seconds=20)
    with pytest.raises(UntrustedError, match="not a member any more"):
        listener.wait(after=0, timeout_seconds=20)
