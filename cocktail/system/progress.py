"""Progress on the error stream: a line at the start, then a bar on a terminal and in a notebook,
elsewhere a line every half minute with the time left."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from tqdm import tqdm

SECONDS_A_LINE = 30.0
"""Between two lines where nothing can be redrawn, such as in a log."""


def draws_bars() -> bool:
    """Whether there is something to draw a bar on: a terminal, or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or type(shell).__name__ == "ZMQInteractiveShell"


def tell_start(line: str) -> None:
    """Say what begins, where seconds of importing torch come before anything else can be seen.

    Of several processes, the first does.
    """
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{line}; torch and transformers start first\n")
        sys.stderr.flush()


class LineBar(tqdm):  # type: ignore[type-arg]
    """A bar that writes lines with the time left, one every half minute, and none at the end."""

    def __init__(self, **options: Any) -> None:
        # Without a first line, and without tqdm's thread that would ask for others in between.
        super().__init__(
            **options, mininterval=SECONDS_A_LINE, maxinterval=math.inf, miniters=1,
            delay=SECONDS_A_LINE,
        )  # fmt: skip

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line."""
        if msg is not None or not self.n:
            return
        done, elapsed = self.n, self.format_dict["elapsed"]
        amount = self._amount(done)
        if self.total:
            left = _duration(max(0.0, self.total - done) * elapsed / done)
            amount = f"{amount} of {self._amount(self.total)}"
            amount += f" {self.unit.strip()}" * (not self.unit_scale) + f", {left} left"
        line = f"{self.desc.removesuffix(': ')}: {amount}"
        more = f", {self.postfix}" if self.postfix else ""
        self.fp.write(f"{line}, {_duration(elapsed)} so far{more}\n")
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


def _duration(seconds: float) -> str:
    if seconds <= 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def progress_bar(*, shown: bool, mininterval: float = 0.1, **options: Any) -> tqdm[Any]:
    """A bar with these options of tqdm's, or lines where none can be drawn."""
    if shown and not draws_bars():
        return LineBar(**options, file=sys.stderr)
    return tqdm(**options, mininterval=mininterval, disable=not shown, file=sys.stderr, leave=False)


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
    with progress_bar(total=total, desc=title, unit="B", unit_scale=True, shown=True) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance
