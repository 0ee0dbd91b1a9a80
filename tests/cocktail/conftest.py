"""Fixtures that the tests of several rooms share."""

from tests.cocktail.checkpoints import pair, save
from tests.cocktail.kitchen import data, kitchen, rows

__all__ = ["data", "kitchen", "pair", "rows", "save"]
