"""An institution's proof: what left, what the kernel says, a report that others verify, leakage."""

import html
import json
import re
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapestry.errors import UntrustedError
from tapestry.identity.keys import public_bytes
from tapestry.wire.egress import EgressLedger, read_ledger
from tapestry_node.auditing import audit
from tapestry_node.canaries import plant
from tapestry_node.home import NodeHome
from tapestry_node.reporting import evidence_of, verify_report
from tests.e2e.live import Live

pytestmark = pytest.mark.slow


def test_what_left_is_proved_to_somebody_else_and_what_it_gives_away_is_measured(
    live: Live,
) -> None:
    live.found(rounds=2)
    live.serve()
    node = NodeHome(live.join("fr-bnf", "fra"))
    live.join("eu-lib", "eus")
    settings = node.load_settings()
    table = settings.node.model_copy(update={"keep_last_contribution": True})
    node.save_settings(settings.model_copy(update={"node": table}))
    plant(node, 8, repeats=2, seed=1)
    for member in ("fr-bnf", "eu-lib"):
        live.run_node(member)
    for member in ("fr-bnf", "eu-lib"):
        live.wait_done(member)

    found = json.loads(live.call("node", "audit", str(node.folder), "--json"))
    assert (found["chain"], found["problems"]) == ("whole", [])
    assert (
        sum(v["bytes"] for by in found["by_round"].values() for v in by.values())
        == (found["bytes"])
    )
    digest = settings.policy.digest()
    assert found["policies"][digest]["rules"] == settings.policy.model_dump(mode="json")
    assert [len(row["shown"]) for row in found["receipts"]] == [4, 4]
    daemon = max(found["kernel"]["sessions"], key=lambda one: one["sent"])
    assert daemon["is_closed"]
    assert daemon["messages"] < daemon["sent"] < daemon["messages"] + daemon["allowance"]

    report = live.folder / "report"
    live.call("node", "audit", str(node.folder), "--export", str(report))
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert re.sub(r' xmlns(:xlink)?="[^"]*"', "", page).count("http") == 0, "nothing from elsewhere"
    elsewhere = Path(shutil.move(report, live.folder / "regulator"))
    said = json.loads(live.call("node", "verify-report", str(elsewhere), "--json"))
    assert (said["problems"], said["rounds_acknowledged"]) == ([], [1, 2])
    assert said["leakage"] is None, "it is told where the institution says so"
    assert said["bytes"] == found["bytes"]
    refuse_changes(elsewhere)
    refuse_a_ledger_written_anew(node, live.folder / "anew.jsonl")

    text = str(live.folder / "fr-bnf-text")
    told = live.folder / "told"
    live.call(
        *("node", "audit", str(node.folder), "--leakage", "--data", text, "--export", str(told))
    )
    said = json.loads(live.call("node", "verify-report", str(told), "--json"))
    assert (said["problems"], said["rounds_acknowledged"]) == ([], [1, 2])
    assert any("round 2: the institution measured it" in one for one in said["not_shown"])
    figures = said["leakage"]
    assert text_in(figures) <= {"words", "source", "codec", "not_kept_from", "way"}
    page = (told / "report.html").read_text(encoding="utf-8")
    assert all(html.escape(one) in page for one in figures["words"])
    assert (figures["round"], figures["source"]) == (2, "kept as it was sent")
    assert (figures["canaries"]["found_in_text"], figures["canaries"]["planted"]) == (8, 8)
    assert figures["inversion"]["one_gradient"] > 0.8
    rebuilt = figures["inversion"]["rebuilt"]
    assert rebuilt["one_gradient"]["sequences"] == 1.0
    assert rebuilt["one_gradient"]["standing"] == figures["inversion"]["sequences"]
    assert rebuilt["contribution"]["sequences"] == 0.0
    assert rebuilt["contribution"]["tokens"] < rebuilt["one_gradient"]["tokens"]
    assert figures["embedding_rows"]["rows"] == 300
    assert figures["verbatim"]["contribution"]["samples"] > 0


def text_in(figures: dict[str, Any]) -> set[str]:
    """Return the names of figures that are text."""
    found = set()
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= text_in(value)
        elif not isinstance(value, int | float | None):  # a list too: of tokens, it would be text
            found.add(name)
    return found


def refuse_a_ledger_written_anew(node: NodeHome, path: Path) -> None:
    """Whole as a chain, and without one commit: the receipt says that it left."""
    with closing(EgressLedger(path, to="elsewhere:1", clock=lambda: 1.0)) as ledger:
        for one in read_ledger(node.egress):
            if not (one.call.endswith("/Commit") and one.round == 2):
                data = bytes(one.bytes)
                digest = bytes.fromhex(one.digest)
                ledger.record(one.call, data, digest=digest, round_number=one.round)
    key = public_bytes(node.identity.signing_key())
    evidence = evidence_of(node, node.identity.load(), member_key=key)
    found = audit(replace(evidence, ledger=path))
    assert found["chain"] == "whole"
    assert "is not this one" in found["problems"][0]
    assert "no line of the ledger has it" in found["problems"][1]


def refuse_changes(report: Path) -> None:
    """Every file matters: changed, missing, or one too many."""
    for name in ("egress.jsonl", "report.json", "report.html", "receipts/round-000001.json"):
        kept = (report / name).read_bytes()
        (report / name).write_bytes(kept.replace(b"1", b"2", 1))
        with pytest.raises(UntrustedError, match=name):
            verify_report(report)
        (report / name).write_bytes(kept)
    (report / "extra.txt").touch()
    with pytest.raises(UntrustedError, match="nobody signed it"):
        verify_report(report)
    (report / "extra.txt").unlink()
    with pytest.raises(UntrustedError, match="expected 0000"):
        verify_report(report, genesis="0000")
    assert verify_report(report)["problems"] == []
