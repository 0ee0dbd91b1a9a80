"""Progress bars of transformers: on a terminal only, as a log has no use for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Switches transformers' bars off for the block where stderr is no terminal."""
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
