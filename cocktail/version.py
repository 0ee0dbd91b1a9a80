"""The version of the distribution, readable without importing anything heavy."""

__version__ = "0.1.0"
