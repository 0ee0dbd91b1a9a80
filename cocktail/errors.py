"""Errors that the user can mend.

Every message says what was found, the rule it breaks, and what to do. The command line prints it
without a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class CocktailError(Exception):
    """Base of everything that this package raises on purpose."""


class CheckpointError(CocktailError):
    """One checkpoint cannot be read as it stands."""


class RecipeError(CocktailError):
    """The recipe asks for something meaningless."""


class OutputError(CocktailError):
    """The output path cannot be written."""


class NonFiniteError(CocktailError):
    """A mixed tensor holds NaN or infinity."""


class PlanError(CocktailError):
    """The ingredients do not agree; ``problems`` lists every reason that was found."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            super().__init__(f"{len(self.problems)} problems, nothing was written:\n{lines}")


def counted(count: int, noun: str) -> str:
    """A number and its noun, in the plural unless it is one.

    >>> counted(1, "weight"), counted(2, "weight")
    ('1 weight', '2 weights')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Join ``names`` for a message: the first ``limit`` in full, and the count of the rest.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
