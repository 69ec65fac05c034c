"""Real nodes behind lines that break in the middle of a transfer, and come back.

How soon the transfers go on is measured by benchmarks/broken_line.py.
"""

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.shaped_line import Outage, ShapedLine, slow_line
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.data.tokenizer import byte_tokenizer, tokenizer_files
from tapestry.wire.egress import EGRESS_FILE, read_ledger
from tapestry.wire.limits import FETCH_CHUNK_BYTES, UPLOADS_IN_FLIGHT
from tapestry_coordinator.inviting import make_invitation
from tapestry_node.home import NodeHome
from tapestry_node.joining import join
from tests.e2e.live import Live, write_text

pytestmark = pytest.mark.slow

OUTAGE_SECONDS = 30.0
BYTES_PER_SECOND = 2e6
"""The way of the transfer that breaks: the vector takes 13 s."""
BREAKS_AT_BYTES = 6e6
FRAGMENTS = 7


@dataclass(kw_only=True)
class Transfer(Outage):
    """A member's."""

    member: str
    fetched_bytes: int = 0
    """What went over the line until the base checkpoint was here."""

    def is_over(self, live: Live) -> bool:
        """Break the line or mend it when it is time; tell whether the transfer is over."""
        self.look()
        if not self.fetched_bytes and "checkpoint 0 is here" in live.log(self.member):
            self.fetched_bytes = self.line.passed()[1]
        is_over = "contributed" in live.log(self.member) if self.is_upload else self.fetched_bytes
        return bool(self.mended_at and is_over)


def write_model(folder: Path) -> Path:
    """A model of seven fragments that trains at once: it is nearly all one layer."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=17_000,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name, content in tokenizer_files(tokenizer, model_max_length=2048).items():
        (folder / name).write_bytes(content)
    return folder


def run_behind(live: Live, line: ShapedLine, member: str) -> None:
    """Start a node whose coordinator is at the other end of a line."""
    now = time.time()  # noqa: TID251 - the two commands' own clock
    join(make_invitation(live.home, member, now=now), live.folder / member, now=now)
    NodeHome(live.folder / member).identity.change_address(line.address)
    write_text(live.folder / f"{member}-text", "fra")
    live.run_node(member)


def test_transfers_go_on_when_the_line_comes_back(live: Live) -> None:
    live.found(rounds=1, quorum=4, model=write_model(live.folder / "model"))
    live.aggregate(codec="float32")
    live.serve()
    with ExitStack() as stack:
        transfers = []
        for member, is_upload, is_silent in (
            ("fetches-cut", False, False),
            ("fetches-silent", False, True),
            ("sends-cut", True, False),
            ("sends-silent", True, True),
        ):
            line = slow_line(
                f"127.0.0.1:{live.port}",
                is_upload=is_upload,
                bytes_per_second=BYTES_PER_SECOND,
                one_way_seconds=0.05,
            )
            transfer = Transfer(
                member=member,
                line=stack.enter_context(line),
                is_upload=is_upload,
                is_silent=is_silent,
                breaks_at_bytes=BREAKS_AT_BYTES,
                seconds=OUTAGE_SECONDS,
            )
            transfers.append(transfer)
            run_behind(live, line, member)
        live.wait(lambda: sum(transfer.is_over(live) for transfer in transfers) == 4, seconds=180)
    model_bytes = (live.home.checkpoint(0) / MODEL_FILE).stat().st_size
    for transfer in transfers:
        live.processes.require_alive(transfer.member)  # the one that was started
        assert transfer.fetched_bytes < 1.01 * model_bytes + 2 * FETCH_CHUNK_BYTES, transfer
        said = live.log(transfer.member)
        assert "trying again" in said.partition("connected to")[0], "by itself, once it noticed"
        assert said.count("round 1: 3 inner steps") <= 1, "nothing is done twice"
        ledger = read_ledger(live.folder / transfer.member / EGRESS_FILE)
        calls = Counter(departure.call.rpartition("/")[2] for departure in ledger)
        assert calls["OpenUpload"] > 1 or not transfer.is_upload, "asked again what is missing"
        sent = calls["PutFragment"]
        assert sent <= FRAGMENTS + (UPLOADS_IN_FLIGHT if transfer.is_upload else 0), transfer
