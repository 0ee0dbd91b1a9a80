"""Keep the progress bars of transformers off where there is no terminal to draw them on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from reranker_ft.progress import on_terminal


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Switch the bars of transformers off inside the block if stderr is not a terminal."""
    if on_terminal() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
