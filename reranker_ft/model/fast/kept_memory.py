"""Keep freed memory with the process."""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next allocation; does nothing where it is not.

    Each step of a training takes and frees the same gigabyte. What glibc returned to the kernel in
    between, the kernel would clear and map again page by page, 15,000 of them in a step of MiniLM.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
