"""What a doctor finds out of a machine by itself: text, isolation, disk, memory.

Each finding is one line: what was looked at, what was found, and what to do if it is not well.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tapestry.errors import TapestryError

Verdict = Literal["ok", "warning", "problem"]

_MODELS_ON_DISK = 3
"""Two checkpoints, and what is being fetched."""
_VECTORS_ON_DISK = 5
"""The optimizer's state, kept twice while it is written, and a contribution."""
_PARAMETER_BYTES = 4
_TRAINING_BYTES = 12
"""A gradient and two moments in float32; activations come on top."""
_FEW_FILES = 256
_ISOLATE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from tapestry_node.isolation import isolate
print(json.dumps(asdict(isolate(Path(sys.argv[1])))))
"""
_DEVICES = """
import json, os, torch
name = "cpu"
if torch.accelerator.is_available():
    device = torch.accelerator.current_accelerator()
    name = f"{torch.accelerator.device_count()} x {device}"
each = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
memory = [one.total_memory for one in each]
print(json.dumps({"device": name, "memory": memory, "threads": torch.get_num_threads()}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the doctor's."""

    about: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """How large the federation's model is; zeros if that is not known."""

    elements: int = 0
    trained: int = 0

    @property
    def words(self) -> str:
        """Return it for a person."""
        if self.trained == self.elements:
            return f"{self.elements:,} parameters"
        return f"{self.elements:,} parameters, {self.trained:,} of them trained"


def guarded(about: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    """Yield what `look` finds; what it cannot find out is a problem with its own words."""
    try:
        yield look()
    except (TapestryError, OSError, ValueError, subprocess.SubprocessError) as error:
        yield Finding(about=about, verdict="problem", found=str(error))


def text(files: Sequence[Path]) -> Finding:
    """Say how much text there is."""
    size = sum(file.stat().st_size for file in files)
    found = f"{len(files):,} file{'' if len(files) == 1 else 's'}, {size / 1e6:,.1f} MB"
    return Finding(about="text", verdict="ok", found=found)


def open_files() -> Finding:
    """Say how many files a process may open."""
    import resource  # noqa: PLC0415 - not on every system

    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        return Finding(
            about="open files",
            verdict="warning",
            found=f"a process may open {soft}",
            remedy=f"allow {_FEW_FILES} (ulimit -n, or LimitNOFILE of a systemd unit)",
        )
    return Finding(about="open files", verdict="ok", found=f"a process may open {soft:,}")


def isolation() -> Finding:
    """Say whether this system keeps a trainer from network and keys."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _ISOLATE, folder], capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    if found["network"] and found["keys"]:
        said = "this system keeps the trainer from network and keys"
        return Finding(about="isolation", verdict="ok", found=said)
    return Finding(
        about="isolation",
        verdict="warning",
        found=f"this system does not: {found['obstacle']}",
        remedy="allow user namespaces, or run the node in a container that may have them; without, "
        "only Python's own calls are stopped (docs/security.md)",
    )


def disk(folder: Path, model: Model) -> Finding:
    """Compare what a node takes of the disk that `folder` is on with what is free there."""
    free = shutil.disk_usage(folder).free
    needed = 4 * (_MODELS_ON_DISK * model.elements + _VECTORS_ON_DISK * model.trained)
    found = f"{free / 1e9:,.1f} GB free in {folder}"
    if not model.elements:
        return Finding(
            about="disk",
            verdict="ok",
            found=f"{found}; what the model takes is not known before its first checkpoint",
        )
    found += f", {needed / 1e9:,.1f} GB needed for {model.words}"
    if free < needed:
        remedy = "free some, or put the node's folder on another disk"
        return Finding(about="disk", verdict="problem", found=found, remedy=remedy)
    return Finding(about="disk", verdict="ok", found=found)


def memory(model: Model) -> Finding:
    """Compare what training takes with what there is."""
    done = subprocess.run(
        [sys.executable, "-c", _DEVICES], capture_output=True, text=True, check=True
    )
    devices = json.loads(done.stdout)
    there = min(devices["memory"], default=_machine_memory())
    needed = _PARAMETER_BYTES * model.elements + _TRAINING_BYTES * model.trained
    found = f"trains on {devices['device']} ({os.cpu_count()} cores), {there / 1e9:,.1f} GB"
    if model.elements:
        found += f"; {needed / 1e9:,.2f} GB needed for {model.words}, and activations"
    if needed > there:
        remedy = "[node] processes and sharding spread it over several GPUs; or a smaller model"
        return Finding(about="memory", verdict="problem", found=found, remedy=remedy)
    if 2 * needed > there:
        remedy = "[node] gradient_checkpointing = true takes less for activations"
        return Finding(about="memory", verdict="warning", found=found, remedy=remedy)
    return Finding(about="memory", verdict="ok", found=found)


def _machine_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
