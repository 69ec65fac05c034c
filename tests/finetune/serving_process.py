"""`tapestry serve` as a process of its own."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tapestry_demo.workers import Forked
from tests.forking import Forks

_UP_SECONDS = 300.0


@contextmanager
def serving(
    forks: Forks, base: Path, bundles: Sequence[Path], log: Path, *more: object
) -> Iterator[str]:
    """Serve until the block ends; yield the address."""
    arguments = ["serve", *bundles, "--base", base, "--unverified", "--port", 0, *more]
    said = log.with_name(f"{log.name}-said")
    process = forks.start([str(argument) for argument in arguments], said, errors=log)
    try:
        yield _address(process, said, log)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def _address(process: Forked, said: Path, log: Path) -> str:
    """Wait until the process says where it listens."""
    deadline = time.monotonic() + _UP_SECONDS
    while not (text := said.read_text()).endswith("\n"):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    address = text.splitlines()[0].strip()
    assert address.startswith("http://"), log.read_text()
    return address
