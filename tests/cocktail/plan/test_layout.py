"""Sizes of output files."""

from __future__ import annotations

import pytest

from cocktail.plan.layout import parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("1GiB", 2**30), (7, 7)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size
