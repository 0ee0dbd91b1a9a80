"""Progress: a line at the start, then a bar on a terminal and in a notebook, a line every half
minute elsewhere."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

SECONDS_A_LINE = 30.0
"""Between two lines where nothing can be redrawn, such as in a log."""


def tell_start(line: str) -> None:
    """Say what begins, where seconds of importing torch come before anything else can be seen.

    Of several processes, the first does.
    """
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{line}; torch and transformers start first\n")
        sys.stderr.flush()


def on_terminal() -> bool:
    """Whether there is something to draw a bar on: a terminal, or a notebook."""
    return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether this runs in a Jupyter notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def duration(seconds: float) -> str:
    """Return a time as one says it: ``40 s``, ``3 min``, ``2 h 5 min``."""
    if seconds <= 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class LineBar(tqdm):  # type: ignore[type-arg]
    """A bar that writes lines with the time left, one every half minute, and none at the end."""

    def __init__(self, **options: Any) -> None:
        # Without a first line, and without tqdm's thread that would ask for others in between.
        super().__init__(
            **options,
            mininterval=SECONDS_A_LINE,
            maxinterval=math.inf,
            miniters=1,
            delay=SECONDS_A_LINE,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line."""
        if msg is not None or self.n == self.initial:
            return
        done, elapsed = self.n, self.format_dict["elapsed"]
        amount = self._amount(done)
        if self.total:
            left = duration(max(0.0, self.total - done) * elapsed / (done - self.initial))
            amount = f"{amount} of {self._amount(self.total)}"
            amount += f" {self.unit.strip()}" * (not self.unit_scale) + f", {left} left"
        line = f"{self.desc.removesuffix(': ')}: {amount}"
        more = f", {self.postfix}" if self.postfix else ""
        self.fp.write(f"{line}, {duration(elapsed)} so far{more}\n")
        self.fp.flush()

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Keep what the next line is to say."""
        super().set_postfix_str(s, refresh=False)

    def _amount(self, count: float) -> str:
        return tqdm.format_sizeof(count, self.unit) if self.unit_scale else f"{count:,}"

    def close(self) -> None:
        """End without a word, as a bar does that has never been drawn."""
        if not self.disable:
            self.last_print_t = self.start_t
        super().close()


def progress_bar(
    total: int | None, label: str, *, shown: bool, unit: str = "steps", initial: int = 0
) -> tqdm[Any]:
    """Return a bar, which is also a context.

    Args:
        total: What it counts up to; ``None`` where that is unknown.
        initial: How many were done before, by another run.
    """
    return _bar(shown, total=total, desc=label, unit=unit, initial=initial)


def byte_bar(files: Sequence[Path], label: str, *, shown: bool) -> tqdm[Any]:
    """Return a bar over the bytes of some files, which is also a context."""
    total = sum(file.stat().st_size for file in files)
    return _bar(shown, total=total, desc=label, unit="B", unit_scale=True)


def _bar(shown: bool, **options: Any) -> tqdm[Any]:
    if shown and not on_terminal():
        return LineBar(**options, file=sys.stderr)
    return tqdm(**options, disable=not shown, file=sys.stderr)
