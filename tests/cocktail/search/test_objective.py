"""The scale of a ranking's scores is fitted inside its loss, whatever the model's own scale is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cocktail.measure.tasks.task import softmax_slopes
from cocktail.search.objective import SCALE_SPREAD, measure


class Scores:
    """Rows are the scores (G,) of an example each; the first passage is the positive."""

    scale_free = True

    def scores(self, rows: Tensor, examples, among=None) -> Tensor:
        return rows[list(examples)]

    def losses(self, scores: Tensor, scale: Tensor) -> Tensor:
        return -(scores * scale).log_softmax(dim=1)[:, 0]

    def scale_slopes(self, scores: Tensor, scale: float) -> tuple[float, float]:
        nobody = torch.zeros(scores.shape, dtype=torch.bool)
        return softmax_slopes(scores, nobody, torch.zeros(len(scores), dtype=torch.long), scale)

    groups = scores


@pytest.mark.parametrize("spread", [1e-3, 3e-3, 1e-2, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("count", [5, 10, 20, 50])
def test_the_best_scale_is_found(count: int, spread: float) -> None:
    """Scores that are all but alike, as a fresh head gives them, have two valleys."""
    noise = np.random.default_rng(count).normal(size=(count, 6))
    noise[:, 0] += 3
    rows = torch.from_numpy(noise * spread)
    task = Scores()
    found = measure(task, [(rows, range(count))])  # type: ignore[arg-type]
    lowest = min(
        task.losses(rows, torch.tensor(np.exp(at))).mean().item()
        + at**2 / (2 * SCALE_SPREAD**2 * count)
        for at in np.linspace(-12, 12, 481)
    )
    assert found.objective <= lowest + 1e-9
