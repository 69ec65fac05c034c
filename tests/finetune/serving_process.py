"""`tapestry serve` as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_COMMAND = """
import sys, torch
torch.set_num_threads(1)
from tapestry.cli.running import run_app
from tapestry_finetune.serving.commands import app
sys.exit(run_app(app, ["serve", *sys.argv[1:]]))
"""


def serve_command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", _COMMAND, *map(str, arguments)]


@contextmanager
def serving(base: Path, bundles: Sequence[Path], log: Path, *more: object) -> Iterator[str]:
    """Serve until the block ends; yield the address."""
    command = serve_command(*bundles, "--base", base, "--unverified", "--port", 0, *more)
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://"), log.read_text()
            yield address
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
