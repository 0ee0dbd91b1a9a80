"""The exceptions of this package. Each message says what was found, the rule, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_PROBLEMS = 10


class RerankerError(Exception):
    """Base class: whatever this package refuses, the command line prints as one line."""


class ArgumentError(RerankerError):
    """A flag, or a combination of flags, that cannot be meant."""


class ModelError(RerankerError):
    """A model or tokenizer that cannot be used as a cross-encoder."""


class DataError(RerankerError):
    """Lines of data files that break the format.

    Args:
        problems: One `file:line: what is wrong` each; the first ten are shown.
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


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
