"""The exceptions of this package. Each message says what was found, the rule, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

SHOWN_PROBLEMS = 10


class RerankerError(Exception):
    """Base class of what this package refuses; the command line prints it as one line."""


class ArgumentError(RerankerError):
    """A flag, or a combination of flags, that makes no sense."""


class ModelError(RerankerError):
    """A model or tokenizer that cannot be used as a cross-encoder."""


class DataError(RerankerError):
    """Lines of data files that break the format.

    Args:
        problems: One ``file:line: what is wrong`` each; the first ten are shown.
        total: How many problems there are when not all of them were kept.
    """

    def __init__(self, problems: Sequence[str], total: int | None = None) -> None:
        self.problems = tuple(problems)
        self.total = len(self.problems) if total is None else total
        if self.total == 1:
            super().__init__(self.problems[0])
            return
        shown = self.problems[:SHOWN_PROBLEMS]
        count = f"{self.total} problems in the data"
        if self.total > len(shown):
            count += f", the first {len(shown)} of them"
        super().__init__("\n  ".join([f"{count}:", *shown]))


class Problems:
    """Broken lines of data files: all are counted, the first ten are kept.

    Attributes:
        shown: ``file:line: what is wrong`` of the first ten.
        count: How many there are.
    """

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0

    def add(self, file: str | Path, line: int, error: Exception) -> None:
        """Count one more."""
        self.count += 1
        if len(self.shown) < SHOWN_PROBLEMS:
            self.shown.append(f"{file}:{line}: {error}")

    def refuse(self) -> None:
        """Raise them.

        Raises:
            DataError: There is at least one.
        """
        if self.count:
            raise DataError(self.shown, self.count)


def say(line: str) -> None:
    """Print why a command ends, under the name of the program."""
    sys.stderr.write(f"reranker-ft: {line}\n")


def system_refusal(error: OSError) -> str:
    """Say what the operating system refused and why: a full disk, a folder without permission."""
    found = f"{error.filename} cannot be used" if error.filename else "the system gave up"
    return f"{found} ({error.strerror or error}) - look there, then run the command again"


def one_line(error: Exception) -> str:
    """Return the message of an exception without its line breaks."""
    return " ".join(str(error).split())
