"""How many threads to work with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 16
"""With more, threads only wait for the disk together."""


def default_threads() -> int:
    """One thread for each processor that this process may use, at most ``MOST``."""
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(MOST, processors))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone, and restore its threads at the end.

    Linear algebra that splits its sums among threads rounds differently for each number of them.
    """
    import torch  # noqa: PLC0415 - seconds to import

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
