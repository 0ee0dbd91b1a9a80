"""Dropout masks drawn eight bits per element."""

import pytest
import torch
from torch.nn.functional import dropout

from reranker_ft.model.fast.dropout import FastDropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999, 1e-6])
def test_share_and_expectation(p):
    states = torch.ones(400, 1001)  # an odd count: eight elements share a draw
    torch.manual_seed(0)
    with FastDropout():
        dropped = dropout(states, p, training=True)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / states.numel()) ** 0.5)
    assert dropped.mean().item() == pytest.approx(1, abs=5e-3 / (1 - p))
    assert len(dropped.unique()) <= 2


def test_masks_of_neighbours_are_independent():
    torch.manual_seed(0)
    with FastDropout():
        first, second = (dropout(torch.ones(1000, 400), 0.5, training=True) > 0 for _ in range(2))
    for one, other in ((first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1])):
        assert (one == other).float().mean().item() == pytest.approx(0.5, abs=0.004)


def test_torch_s_seed_is_the_seed():
    states = torch.randn(30, 40)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        with FastDropout():
            found.append(dropout(states, 0.3, training=True))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
