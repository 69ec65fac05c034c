"""`tapestry node doctor`: what would keep this machine from taking part, found before it does.

Each finding is one line: what was looked at, what was found, and what to do if it is not well.
Nothing is changed. The few requests that go to the coordinator stand in the egress ledger.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tapestry.checkpoints.manifest import Manifest
from tapestry.checkpoints.vector_file import MODEL_FILE
from tapestry.errors import TapestryError, UnavailableError
from tapestry_node.client import connected
from tapestry_node.governing import corpus_spec
from tapestry_node.hardware import (
    Finding,
    Model,
    disk,
    guarded,
    isolation,
    memory,
    open_files,
    text,
)
from tapestry_node.home import NodeHome
from tapestry_node.progress import lasting

_SAMPLE_BYTES = 2**25
_SAMPLE_SECONDS = 5.0
_ROUND_TRIPS = 5
_SKEW_SECONDS = 30.0
_SOON = timedelta(days=7)


def examine(home: NodeHome, data: Sequence[Path], *, now: float) -> Iterator[Finding]:
    """Look at everything, one thing after the other.

    Args:
        home: Of a node that has joined.
        data: Its text, where no `corpus.toml` describes it.
        now: Unix seconds.
    """
    yield from guarded("keys", lambda: _keys(home))
    yield from guarded("certificate", lambda: _certificate(home, now=now))
    yield from guarded("settings", lambda: _settings(home))
    yield from guarded("text", lambda: _text(home, data))
    yield from guarded("open files", open_files)
    yield from guarded("isolation", isolation)
    published: list[Model] = []
    yield from _line(home, published, now=now)
    model = published[0] if published else _fetched(home)
    yield from guarded("disk", lambda: disk(home.folder, model))
    yield from guarded("memory", lambda: memory(model))


def _keys(home: NodeHome) -> Finding:
    home.identity.signing_key()
    home.identity.tls_pair()
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
    return text([file for _number, file in corpus_spec(home, data).files()])


def _line(home: NodeHome, published: list[Model], *, now: float) -> Iterator[Finding]:
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
        published.append(Model(manifest.elements + frozen, manifest.elements))
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


def _fetched(home: NodeHome) -> Model:
    """Return the size of the newest checkpoint here, if there is one."""
    from tapestry.checkpoints.vector_file import open_vector_file  # noqa: PLC0415

    for folder in sorted(home.checkpoints.glob("round-*"), reverse=True):
        with contextlib.suppress(TapestryError, OSError):
            opened = open_vector_file(folder / MODEL_FILE)
            return Model(opened.model_elements, opened.layout.elements)
    return Model()
