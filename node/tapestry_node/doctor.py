"""`tapestry node doctor`: what would keep this machine from taking part, found before it does.

Each finding is one line: what was looked at, what was found, and what to do if it is not well.
Nothing is changed. The few requests that go to the coordinator stand in the egress ledger.
"""

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.errors import TapestryError, UnavailableError
from tapestry_node.client import connected
from tapestry_node.governing import corpus_spec
from tapestry_node.home import NodeHome
from tapestry_node.progress import lasting

Verdict = Literal["ok", "warning", "problem"]

_SAMPLE_BYTES = 2**25
_SAMPLE_SECONDS = 5.0
_ROUND_TRIPS = 5
_MODELS_ON_DISK = 3
"""Two checkpoints, and what is being fetched."""
_VECTORS_ON_DISK = 5
"""The optimizer's state, kept twice while it is written, and a contribution."""
_PARAMETER_BYTES = 4
_TRAINING_BYTES = 12
"""A gradient and two moments in float32; activations come on top."""
_SKEW_SECONDS = 30.0
_FEW_FILES = 256
_SOON = timedelta(days=7)
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
class _Model:
    """How large the federation's model is; zeros if that is not known."""

    elements: int = 0
    trained: int = 0

    @property
    def words(self) -> str:
        if self.trained == self.elements:
            return f"{self.elements:,} parameters"
        return f"{self.elements:,} parameters, {self.trained:,} of them trained"


def examine(home: NodeHome, data: Sequence[Path], *, now: float) -> Iterator[Finding]:
    """Look at everything, one thing after the other.

    Args:
        home: Of a node that has joined.
        data: Its text, where no `corpus.toml` describes it.
        now: Unix seconds.
    """
    yield from _guarded("keys", lambda: _keys(home))
    yield from _guarded("certificate", lambda: _certificate(home, now=now))
    yield from _guarded("settings", lambda: _settings(home))
    yield from _guarded("text", lambda: _text(home, data))
    yield from _guarded("open files", _open_files)
    yield from _guarded("isolation", _isolation)
    published: list[_Model] = []
    yield from _line(home, published, now=now)
    model = published[0] if published else _fetched(home)
    yield from _guarded("disk", lambda: _disk(home, model))
    yield from _guarded("memory", lambda: _memory(model))


def _guarded(about: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    """Yield what `look` finds; what it cannot find out is a problem with its own words."""
    try:
        yield look()
    except (TapestryError, OSError, ValueError, subprocess.SubprocessError) as error:
        yield Finding(about=about, verdict="problem", found=str(error))


def _keys(home: NodeHome) -> Finding:
    home.identity.signing_key()
    home.identity.tls_key_pem()
    return Finding(about="keys", verdict="ok", found="there, and only their owner can read them")


def _certificate(home: NodeHome, *, now: float) -> Finding:
    begin, end = home.identity.validity()
    here = datetime.fromtimestamp(now, UTC)
    said = f"valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
    if not begin <= here < end:
        remedy = "set the clock, or ask the coordinator's operator for a new invitation"
        found = f"{said}; this machine's clock says {here:%Y-%m-%d %H:%M}"
        return Finding(about="certificate", verdict="problem", found=found, remedy=remedy)
    if end - here < _SOON:
        remedy = "`tapestry node run` renews it while the coordinator answers"
        return Finding(about="certificate", verdict="warning", found=said, remedy=remedy)
    return Finding(about="certificate", verdict="ok", found=said)


def _settings(home: NodeHome) -> Finding:
    is_manual = home.load_settings().policy.approval == "manual"
    found = "node.toml can be read; contributions " + (
        "wait for a person's approval" if is_manual else "leave without a person's approval"
    )
    return Finding(about="settings", verdict="ok", found=found)


def _text(home: NodeHome, data: Sequence[Path]) -> Finding:
    files = [file for _number, file in corpus_spec(home, data).files()]
    size = sum(file.stat().st_size for file in files)
    found = f"{len(files):,} file{'' if len(files) == 1 else 's'}, {size / 1e6:,.1f} MB"
    return Finding(about="text", verdict="ok", found=found)


def _open_files() -> Finding:
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


def _isolation() -> Finding:
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


def _line(home: NodeHome, published: list[_Model], *, now: float) -> Iterator[Finding]:
    """Yield how far the coordinator is, how fast it sends, and what its clock says.

    Args:
        home: Of the node.
        published: Takes the size of the newest model, if that could be asked.
        now: Unix seconds.
    """
    membership = home.identity.load()
    about = "coordinator"
    with connected(home, clock=lambda: now) as client:
        try:
            seconds = [_seconds(client.exclusions) for _ in range(_ROUND_TRIPS)]
            envelope, _card = client.fetcher.describe()
        except UnavailableError as error:
            remedy = "compare the address, and let connections to that port out of the firewall"
            yield Finding(about=about, verdict="problem", found=str(error), remedy=remedy)
            return
        except TapestryError as error:
            yield Finding(about=about, verdict="problem", found=str(error))
            return
        trip = 1e3 * statistics.median(seconds)
        found = f"{membership.address} answers in {trip:,.0f} ms (median of {_ROUND_TRIPS})"
        yield Finding(about=about, verdict="ok", found=found)
        key = bytes.fromhex(membership.coordinator_key)
        manifest = Manifest.opened(envelope, public_key=key, what="manifest")
        yield _clock(manifest, now=now)
        (entry,) = [one for one in manifest.files if one.name == MODEL_FILE]
        (first,) = client.fetcher.lineage(0)
        genesis = Manifest.opened(first, public_key=key, what="genesis manifest")
        beside = genesis.origin.beside if genesis.origin is not None else None
        frozen = beside.elements if beside is not None else 0
        published.append(_Model(manifest.elements + frozen, manifest.elements))
        came, took = client.fetcher.sample(
            entry, most_bytes=_SAMPLE_BYTES, most_seconds=_SAMPLE_SECONDS
        )
        rate = came / max(took, 1e-9)
        if not came:
            found = f"nothing came within {_SAMPLE_SECONDS:g} s"
            yield Finding(about="bandwidth", verdict="warning", found=found)
            return
        found = f"{came / 1e6:,.1f} MB came at {8 * rate / 1e6:,.1f} Mbit/s"
        whole = lasting(math.ceil(entry.size_bytes / rate))
        yield Finding(
            about="bandwidth",
            verdict="ok",
            found=f"{found}: a whole model of {entry.size_bytes / 1e6:,.1f} MB takes "
            f"{whole}; what goes up was not measured",
        )


def _clock(manifest: Manifest, *, now: float) -> Finding:
    """Judge by the newest checkpoint, which cannot have been made in the future."""
    ahead = manifest.created_at - now
    if ahead > _SKEW_SECONDS:
        return Finding(
            about="clock",
            verdict="problem",
            found=f"checkpoint {manifest.round} was made {ahead:,.0f} s in this machine's future",
            remedy="set the clock (chrony, ntpd, or timedatectl set-ntp true)",
        )
    found = f"not behind the coordinator's: checkpoint {manifest.round} lies in the past"
    return Finding(about="clock", verdict="ok", found=found)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _fetched(home: NodeHome) -> _Model:
    """Return the size of the newest checkpoint here, if there is one."""
    from tapestry.checkpoints.vector_file import open_vector_file  # noqa: PLC0415

    for folder in sorted(home.checkpoints.glob("round-*"), reverse=True):
        with contextlib.suppress(TapestryError, OSError):
            opened = open_vector_file(folder / MODEL_FILE)
            return _Model(opened.model_elements, opened.layout.elements)
    return _Model()


def _disk(home: NodeHome, model: _Model) -> Finding:
    free = shutil.disk_usage(home.folder).free
    needed = 4 * (_MODELS_ON_DISK * model.elements + _VECTORS_ON_DISK * model.trained)
    found = f"{free / 1e9:,.1f} GB free in {home.folder}"
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


def _memory(model: _Model) -> Finding:
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
