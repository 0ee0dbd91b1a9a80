"""Progress bars: on a terminal only, as a log has no use for them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm


def on_terminal() -> bool:
    """Whether there is a terminal to draw a bar on."""
    return sys.stderr.isatty()


def progress_bar(total: int | None, label: str, *, shown: bool, unit: str = "it") -> tqdm[Any]:
    """Return a bar, which is also a context.

    Args:
        total: What it counts up to; ``None`` where that is unknown.
    """
    return tqdm(total=total, desc=label, unit=unit, disable=not shown)


def byte_bar(files: Sequence[Path], label: str, *, shown: bool) -> tqdm[Any]:
    """Return a bar over the bytes of some files, which is also a context."""
    total = sum(file.stat().st_size for file in files)
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=not shown)
