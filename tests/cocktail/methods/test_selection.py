"""Ranks by magnitude, against a sort, on inputs that mislead a sample."""

from __future__ import annotations

import pytest
import torch

from cocktail.methods import selection
from cocktail.methods.selection import keep_ranks, magnitude_cut


def inputs(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    noise = torch.randn(size, generator=generator)
    few = torch.zeros(size)
    few[size // 2] = -3.0
    return {
        "noise": noise,
        "sorted": noise.sort().values,
        "ties": torch.randint(-2, 3, (size,), generator=generator).float(),
        "coarse": (noise * 4).round() / 4,
        "constant": torch.full((size,), -0.25),
        "zeros": torch.zeros(size),
        "one": few,
        "tiny": noise * 1e-42,
        "huge": noise * 1e37,
        "two scales": torch.where(noise > 0, noise * 1e-6, noise),
        "fp64": noise.double() + 1e-12 * torch.arange(size),
    }


SIZES = [1, 2, 17, 5000, selection._SMALL + 12345]


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def ranks(size: int) -> list[int]:
    return sorted({0, 1 % size, size // 3, size // 2, size - 2 if size > 1 else 0, size - 1})


@pytest.mark.parametrize("name", inputs(1))
def test_the_cut_is_that_of_a_sort(name: str, size: int) -> None:
    values = inputs(size)[name]
    ordered = values.abs().sort().values
    for rank in ranks(size):
        cut = magnitude_cut(values, rank)
        assert cut.value == float(ordered[rank])
        assert cut.below == int((ordered < ordered[rank]).sum())
        assert cut.equal == int((ordered == ordered[rank]).sum())


@pytest.mark.parametrize("name", inputs(1))
def test_the_elements_of_the_ranks_stay(name: str, size: int) -> None:
    values = inputs(size)[name]
    # From the smallest to the largest; of equal ones the first is the largest.
    order = values.abs().neg().sort(stable=True).indices.flip(0)
    bounds = [(low, high) for low in ranks(size) for high in [*ranks(size), size]]
    for low, high in bounds:
        expected = torch.zeros_like(values)
        expected[order[low:high]] = values[order[low:high]]
        found = values.clone()
        keep_ranks(found, low, high)
        assert torch.equal(found, expected)


def test_a_sample_that_misses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = inputs(SIZES[-1])["noise"]
    right = magnitude_cut(values, 1000)
    monkeypatch.setattr(selection, "_bracket", lambda values, rank: (2.0, 3.0))
    assert magnitude_cut(values, 1000) == right


def test_nothing_is_selected_from_nothing() -> None:
    keep_ranks(torch.zeros(0), 0, 0)
