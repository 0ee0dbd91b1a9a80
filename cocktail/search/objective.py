"""Objectives map mixing weights to a loss and its gradient, which is all that a strategy sees.

For rankings, the loss is made independent of scale. Cross-entropy on a few examples rewards
anything that shrinks over-confident scores, as mixing in noise does. So a positive factor on the
scores is fitted inside the loss, under a weak prior, and no mix is credited with it:

    L(w) = min_s  mean_e loss_e(s * scores_e(w)) + (log s)^2 / (2 sigma^2 N)

At the best s the gradient with respect to w is the partial one (the envelope theorem).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from cocktail.errors import NonFiniteError
from cocktail.measure.mixture import Mixture, Weights
from cocktail.measure.tasks.task import Task, Values, ndcg_at_10

SCALE_SPREAD = log(4)
"""Prior on log s: a factor of 4 either way costs half a nat in total, however many examples."""
_LARGEST_LOG_SCALE = 12.0
_ALIKE = 0.05
"""The standard deviation of an example's scores above which the scale has a single best value."""

Block = tuple[Tensor, Sequence[int]]
"""A model's rows, and the examples to measure with them."""


class Objective(Protocol):
    """A function on the simplex.

    Attributes:
        size: K, the number of weights.
    """

    size: int

    def value(self, weights: Weights) -> float:
        """The loss at these weights (K,)."""

    def value_and_gradient(self, weights: Weights) -> tuple[float, Weights]:
        """The loss and its K partial derivatives."""


@dataclass(frozen=True)
class Measurement:
    """How a mix does on N' examples.

    Attributes:
        losses: (N',) at the fitted scale.
        scale: the fitted scale; 1 where the loss depends on it.
        penalty: what the prior on the scale adds to the objective.
        metrics: (N',) or ``None``.
    """

    losses: Values
    scale: float
    penalty: float
    metrics: Values | None

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def objective(self) -> float:
        """What is minimised: the loss plus the penalty of the scale."""
        return self.loss + self.penalty


def measure(task: Task, blocks: Sequence[Block], among: Sequence[int] | None = None) -> Measurement:
    """Losses and metrics of blocks of examples, with one scale fitted to all of them.

    Args:
        among: see ``Task.scores``.
    """
    scores = [task.scores(rows, examples, among) for rows, examples in blocks]
    scale, penalty = _fit_scale(task, scores)
    at = torch.tensor(scale, dtype=torch.float64)
    losses = torch.cat([task.losses(each, at) for each in scores]).numpy()
    groups = [task.groups(rows, examples) for rows, examples in blocks]
    metrics = [ndcg_at_10(group) for group in groups if group.shape[1]]
    return Measurement(losses, scale, penalty, np.concatenate(metrics) if metrics else None)


def _fit_scale(task: Task, scores: Sequence[Any]) -> tuple[float, float]:
    """The scale that minimises the mean loss plus the prior's penalty, and that penalty."""
    if not task.scale_free:
        return 1.0, 0.0
    precision = 1 / SCALE_SPREAD**2

    def slopes(log_scale: float) -> tuple[float, float]:
        """The first two derivatives in log s of the summed losses and the prior."""
        scale = exp(log_scale)
        parts = [task.scale_slopes(each, scale) for each in scores]
        first, second = (sum(part[i] for part in parts) for i in (0, 1))
        slope = scale * first
        return slope + precision * log_scale, slope + scale**2 * second + precision

    count = sum(len(task.losses(each, torch.ones(()))) for each in scores)

    def value(log_scale: float) -> float:
        at = torch.tensor(exp(log_scale), dtype=torch.float64)
        losses = sum(task.losses(each, at).sum().item() for each in scores)
        return losses + precision * log_scale**2 / 2

    variance = sum(task.scale_slopes(each, 0.0)[1] for each in scores) / count
    # Near s = 1, almost equal scores carry no information, and the prior has its minimum.
    alike = variance < _ALIKE**2
    near = min(np.arange(0, _LARGEST_LOG_SCALE, 0.5).tolist(), key=value) if alike else 0.0
    best = _root(slopes, near)
    if best is None:
        return 1.0, 0.0  # not finite, which the losses will show at any scale
    return exp(best), best**2 * precision / (2 * count)


def _root(slopes: Callable[[float], tuple[float, float]], near: float) -> float | None:
    """The root of a slope that rises through zero; ``None`` if it has none.

    Takes Newton steps from a good guess, and a bracket where they do not converge.
    """
    x = near
    for _ in range(8):
        slope, curvature = slopes(x)
        if not curvature > 0 or abs(slope / curvature) > 2:
            break
        x -= slope / curvature
        if abs(slope / curvature) < 1e-9:
            return x
    low, high = -_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE
    if not slopes(low)[0] < 0 < slopes(high)[0]:
        return None
    return float(brentq(lambda x: slopes(x)[0], low, high, xtol=1e-10, rtol=1e-12))


def row_gradient(task: Task, rows: Tensor, examples: Sequence[int], scale: float) -> Tensor:
    """d(mean loss)/d(rows), shape (R, ...), in fp64, with the scale held fixed."""
    leaf = rows.detach().double().requires_grad_()
    at = torch.tensor(scale, dtype=torch.float64)
    loss = task.losses(task.scores(leaf, examples), at).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


class MixObjective:
    """The loss of the mixed model itself.

    Args:
        examples: the examples that count; all of the task's by default.
        observe: called with the weights and the loss of every evaluation.
    """

    def __init__(
        self,
        mixture: Mixture,
        task: Task,
        examples: Sequence[int] | None = None,
        *,
        observe: Callable[[Weights, float], None] | None = None,
    ) -> None:
        self.size = len(mixture.plan.ingredients)
        self.mixture = mixture
        self.task = task
        self.examples = range(len(task.places)) if examples is None else examples
        self._observe = observe
        self._subset = None if examples is None else examples
        self._rows: dict[bytes, Tensor] = {}

    def rows(self, weights: Weights) -> Tensor:
        """The mixed model's rows; each set of weights is run only once."""
        key = weights.tobytes()
        if key not in self._rows:
            self._rows[key] = self.mixture.rows(self.task, weights, self._subset)
        return self._rows[key]

    def remember(self, weights: Weights, rows: Tensor) -> None:
        """Store rows that were computed elsewhere."""
        self._rows[weights.tobytes()] = rows

    def measure(self, weights: Weights) -> Measurement:
        """Losses of the mixed model at these weights.

        Raises:
            NonFiniteError: a loss is NaN or infinite; the message names the example.
        """
        found = measure(self.task, [(self.rows(weights), self.examples)])
        self._require_finite(found.losses, weights)
        if self._observe is not None:
            self._observe(weights, found.loss)
        return found

    def value(self, weights: Weights) -> float:
        return self.measure(weights).objective

    def value_and_gradient(self, weights: Weights) -> tuple[float, Weights]:
        if self.task.scale_free:
            found = self.measure(weights)
            upstream = row_gradient(self.task, self.rows(weights), self.examples, found.scale)
            _, slopes = self.mixture.gradient(self.task, weights, upstream, self._subset)
            return found.objective, slopes
        # The loss is linear in the rows, so its gradient is known before they are.
        zero = torch.zeros(self.task.rows)
        upstream = row_gradient(self.task, zero, self.examples, 1.0)
        rows, slopes = self.mixture.gradient(self.task, weights, upstream, self._subset)
        self.remember(weights, rows)
        return self.measure(weights).objective, slopes

    def _require_finite(self, losses: Values, weights: Weights) -> None:
        broken = np.flatnonzero(~np.isfinite(losses))
        if not broken.size:
            return
        place = self.task.places[self.examples[int(broken[0])]]
        names = self.mixture.names
        alone = weights.max() == 1
        who = names[int(weights.argmax())] if alone else f"the mix {np.round(weights, 4).tolist()}"
        raise NonFiniteError(
            f"{who} has the loss {losses[broken[0]]} on {place} - a loss must be finite - look at "
            "that example, and at the model with `cocktail inspect`"
        )
