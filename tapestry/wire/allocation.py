"""How the C library hands out memory for fragments, and what Python looks through to free some."""

import ctypes
import gc
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_BYTES = 32 * 2**20
"""The largest threshold that glibc takes."""
_ARENAS = 2


def reuse_large_blocks() -> None:
    """Let blocks of a fragment's size be reused instead of returned to the system each time.

    glibc maps and unmaps every block of some megabytes anew, and each page of it is then zeroed by
    the kernel at its first touch: for a coordinator that receives gigabytes in fragments this is as
    much work as decrypting them. To be called before the process has a second thread: with that
    one's first block glibc settles for good how many heaps there may be, and each keeps what its
    threads have freed. Does nothing where the C library is another.
    """
    mallopt = _glibc("mallopt")
    mallopt(_M_MMAP_THRESHOLD, _BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * _BYTES)
    mallopt(_M_ARENA_MAX, _ARENAS)


def return_free_blocks() -> None:
    """Give the system back what is free, between used blocks too (malloc_trim(3)).

    For where one kind of work ends and another begins: what the first leaves free lies scattered,
    and the second would lay its blocks beside it. Does nothing where the C library is another.
    """
    _glibc("malloc_trim")(0)


def spare_what_is_there() -> None:
    """Let the garbage collector never look again through what the process has by now.

    That is its modules: hundreds of thousands of objects that live as long as it does. Messages
    and calls come by the thousand, and each time their number has grown by a quarter all of it
    would be gone through.
    """
    gc.collect()
    gc.freeze()


def _glibc(name: str) -> Callable[..., object]:
    """Return a function of glibc, or one that does nothing."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    function: Callable[..., object] = getattr(library, name, lambda *_: None)
    return function
