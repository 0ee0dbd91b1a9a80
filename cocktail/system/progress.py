"""A progress bar in bytes, on the terminal's error stream, that several threads may advance."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from tqdm import tqdm


@contextmanager
def byte_progress(total: int, title: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` bytes are done, the rate, and the time left.

    Yields:
        A function to call with the number of bytes just done.
    """
    if not shown:
        yield lambda _: None
        return
    lock = Lock()
    with tqdm(
        total=total, desc=title, unit="B", unit_scale=True, file=sys.stderr, leave=False
    ) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance
