"""What the trainer's process gives up before it reads any text: the network, the keys, its rights.

On Linux the kernel takes them away: a network namespace in which there is nothing but the process
itself (network_namespaces(7)), a mount namespace in which the folder of keys is empty and the
node's own records can only be read, and no capability to undo that. A kernel that does not allow it
is named, and an audit hook (PEP 578) stands alone: it stops Python code that would connect, and
native code it does not see.
"""

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_REC, _MS_PRIVATE, _MS_RDONLY, _MS_BIND, _MS_REMOUNT = 0x4000, 0x40000, 0x1, 0x1000, 0x20
_ST_RELATIME, _MS_RELATIME = 0x1000, 0x200000
_KEPT_FLAGS = 0x2 | 0x4 | 0x8 | 0x400 | 0x800
"""Of a mount, which may not be taken away: nosuid, nodev, noexec, noatime, nodiratime."""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION = 0x20080522
_KEPT_CAPABILITIES = 0b1111
"""CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER: a node that runs as root goes on reading text of
other users; everything that could reach a network or another process goes."""
_SIGKILL = 9
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_CONNECTING = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
}
"""Audit event -> which of its arguments says where to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Isolation:
    """What the kernel took from this process."""

    network: bool
    """There is no network to reach."""
    keys: bool
    """The folder of keys is empty for it."""
    obstacle: str = ""
    """Why not both."""


def isolate(
    keys: Path,
    *,
    records: Path | None = None,
    writable: Sequence[str] = (),
    dies_with_parent: bool = True,
    has_network: bool = False,
) -> Isolation:
    """Give up the network and the folder `keys`; the process must have one thread.

    Args:
        keys: Folder that is empty from now on, if there is one.
        records: Folder that can only be read from now on: ledger, policy, a person's decisions.
        writable: Names of folders in there that are excepted.
        dies_with_parent: Whether this process is ended when its parent ends.
        has_network: Whether it keeps the network, to train with processes on other hosts.

    Returns:
        What came of it; nothing is raised where the kernel does not allow it.
    """
    if not sys.platform.startswith("linux"):
        return Isolation(network=False, keys=False, obstacle=f"no namespaces on {sys.platform}")
    libc = ctypes.CDLL(None, use_errno=True)
    if dies_with_parent:
        end_with_parent()
    try:
        _unshare(libc, _CLONE_NEWNS if has_network else _CLONE_NEWNS | _CLONE_NEWNET)
    except OSError as error:
        return Isolation(network=False, keys=False, obstacle=f"unshare: {error.strerror}")
    network, hidden, obstacle = not has_network, True, ""
    try:
        if not has_network:
            _raise_loopback()
        _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
        if records is not None:
            _bind(libc, records, writable)
        if keys.is_dir():
            _hide(libc, keys)
        if records is not None:
            _seal(libc, records)
    except OSError as error:
        hidden, obstacle = False, f"mount: {error.strerror}"
    try:
        _drop_rights(libc)
    except OSError as error:
        network, obstacle = False, f"capset: {error.strerror}"
    return Isolation(network=network, keys=hidden, obstacle=obstacle)


def end_with_parent() -> None:
    """Have this process killed when the one that started it ends, where the kernel does that."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def protect_memory() -> None:
    """Keep processes of the same user from reading this one's memory, where the keys are."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def forbid_connections(report: Callable[[str, str], None]) -> None:
    """Make every attempt of Python code to reach a network fail, from now on.

    Args:
        report: Told of each attempt: the call, and where it would have gone.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CONNECTING:
            return
        to = arguments[_CONNECTING[event]]
        if event.startswith("socket.s") and not isinstance(to, tuple):
            return  # to where the socket is connected already, or no address at all
        if event == "socket.connect" and not isinstance(to, tuple):
            return  # a path: a socket of this machine
        shown = ":".join(map(str, to[:2])) if isinstance(to, tuple) else str(to)
        report(event, shown)
        raise PermissionError(
            f"{event} to {shown}: the trainer of a Tapestry node has no network; this attempt is "
            "on record"
        )

    sys.addaudithook(hook)


def _unshare(libc: ctypes.CDLL, namespaces: int) -> None:
    """Enter namespaces of one's own; as a user of one's own where that is needed."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(namespaces) == 0:
        return
    _check(libc.unshare(_CLONE_NEWUSER | namespaces))
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")


def _raise_loopback() -> None:
    """Let the processes of one trainer speak with one another."""
    import fcntl  # noqa: PLC0415 - not on every system

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _hide(libc: ctypes.CDLL, folder: Path) -> None:
    """Put an empty folder over `folder`, for this process and its children only."""
    where = os.fsencode(folder)
    _check(libc.mount(b"tmpfs", where, b"tmpfs", _MS_RDONLY, b"size=4k,mode=0500"))


def _bind(libc: ctypes.CDLL, folder: Path, writable: Sequence[str]) -> None:
    """Make mounts of `folder` and of some folders in it, so that each can have its own rights."""
    for path in (folder, *(folder / name for name in writable if (folder / name).is_dir())):
        where = os.fsencode(path)
        _check(libc.mount(where, where, None, _MS_BIND | _MS_REC, None))


def _seal(libc: ctypes.CDLL, folder: Path) -> None:
    """Let a mount be read only."""
    found = os.statvfs(folder).f_flag
    flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY | (found & _KEPT_FLAGS)
    if found & _ST_RELATIME:
        flags |= _MS_RELATIME
    _check(libc.mount(b"none", os.fsencode(folder), None, flags, None))


def _drop_rights(libc: ctypes.CDLL) -> None:
    """Give up, for good, what could undo the above."""
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    found = ctypes.create_string_buffer(24)
    _check(libc.capget(header, found))
    _effective, permitted, *_others = struct.unpack("6I", found.raw)
    kept = permitted & _KEPT_CAPABILITIES
    _check(libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
