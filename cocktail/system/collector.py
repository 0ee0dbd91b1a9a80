"""Python's garbage collector, kept out of the way of imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """For what makes many objects that all stay: the modules of torch and transformers.

    The collector would look through all of them again and again, half a second in all. Also a
    decorator.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
