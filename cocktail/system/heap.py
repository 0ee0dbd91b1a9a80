"""The C library's heap, which keeps freed memory for later."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def trim_heap() -> None:
    """Return freed memory to the system where the next step has no use for it.

    Matrices of a few megabytes stay in the process after they are freed: activations while weights
    are read, or a thread's blocks after the thread has ended.
    """
    with suppress(AttributeError, OSError):  # only the GNU library can
        ctypes.CDLL(None).malloc_trim(0)
