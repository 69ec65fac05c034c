"""A network that has nothing but a loopback interface, for this process and all it starts.

In it the interface's counter is that of the benchmark alone, whatever else the machine does, and
no system that is measured reaches beyond the machine. Linux only, and for root; anybody else puts
`unshare --net --map-root-user` before the command.
"""

import ctypes
import fcntl
import socket
import struct

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_UP_AND_RUNNING = 0x41


def enter() -> bool:
    """Move this thread and what it starts to a network of its own; tell whether that is allowed."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", _UP_AND_RUNNING)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
    return True
