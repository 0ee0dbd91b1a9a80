"""Start flushing data to disk while more is being made, so that a sync has little left to do."""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from typing import Any

ENOUGH = 16 << 20
"""Bytes to start at a time: with fewer, the calls cost time; with more, the disk idles at first."""
_SYNC_FILE_RANGE_WRITE = 2


class Writeback:
    """Follows what each thread writes, and starts flushing it run by run.

    It starts and does not wait: only a sync tells what has reached the disk. The data stay in the
    page cache for whoever loads the model next. Systems without ``sync_file_range`` start on their
    own, some seconds later.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._sync_file_range: Any = None
        with suppress(AttributeError, OSError):  # only Linux can
            self._sync_file_range = ctypes.CDLL(None).sync_file_range
            self._sync_file_range.argtypes = (
                ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint,
            )  # fmt: skip

    def wrote(self, descriptor: int, start: int, stop: int) -> None:
        """The calling thread has written bytes ``start:stop`` of a file."""
        run = getattr(self._own, "run", None)
        if run is not None and run[::2] == (descriptor, start):
            start = run[1]
        elif run is not None:
            self._begin(*run)
        if stop - start >= ENOUGH:
            self._begin(descriptor, start, stop)
            start = stop
        self._own.run = (descriptor, start, stop)

    def _begin(self, descriptor: int, start: int, stop: int) -> None:
        if self._sync_file_range is not None and stop > start:
            self._sync_file_range(descriptor, start, stop - start, _SYNC_FILE_RANGE_WRITE)
