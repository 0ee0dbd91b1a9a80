"""Fixtures that the tests of several rooms share."""

from tests.cocktail.checkpoints import pair, save

__all__ = ["pair", "save"]
