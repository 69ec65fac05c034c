"""How the C library hands out memory for fragments, and what Python looks through to free some."""

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_BYTES = 32 * 2**20
"""The largest threshold that glibc takes."""
_ARENAS = 2


def reuse_large_blocks() -> None:
    """Let blocks of a fragment's size be reused instead of returned to the system each time.

    glibc maps and unmaps every block of some megabytes anew, and each page of it is then zeroed by
    the kernel at its first touch: for a coordinator that receives gigabytes in fragments this is as
    much work as decrypting them. Does nothing where the C library is another.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * _BYTES)
    mallopt(_M_ARENA_MAX, _ARENAS)


def spare_what_is_there() -> None:
    """Let the garbage collector never look again through what the process has by now.

    That is its modules: hundreds of thousands of objects that live as long as it does. Messages
    and calls come by the thousand, and each time their number has grown by a quarter all of it
    would be gone through.
    """
    gc.collect()
    gc.freeze()
