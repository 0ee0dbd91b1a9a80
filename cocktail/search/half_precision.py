"""Let a search's forwards compute in bf16 where that is faster and the loss does not notice."""

from __future__ import annotations

import numpy as np

from cocktail.measure.bench import Bench
from cocktail.measure.mixture import Weights
from cocktail.measure.tasks.reranker import RerankerTask
from cocktail.search.objective import MixObjective

WORTH_IT = 1 << 14
"""Padded tokens of all examples below which a search in fp32 takes only seconds."""
NOTICED = 0.1
"""Of the loss's standard error."""


def compute_in_bf16(bench: Bench, objective: MixObjective, base: Weights) -> str | None:
    """Measure the base in fp32 and in bf16, and stay with bf16 if the loss is the same to a tenth
    of its standard error.

    The weights are mixed in fp32 all the same. The base's rows are remembered in the dtype that
    was chosen, so that every mix is compared with it in one dtype.

    Returns:
        What was chosen and why; ``None`` where there was no choice.
    """
    mixture, task = bench.mixture, bench.task
    if not isinstance(task, RerankerTask) or mixture.device.type != "cpu":
        return None
    tasks = [task] if bench.retain is None else [task, bench.retain]
    tokens = sum(b.tokens for each in tasks for b in each.batches(mixture.forward_tokens))
    if tokens < WORTH_IT:
        return None
    exact, rows = objective.measure(base).losses, objective.rows(base)
    if not task.prepare_bf16(mixture.model):
        return None
    mixture.filled = task.prepare_bf16
    objective.remember(base, mixture.rows(task, base))
    errors = objective.measure(base).losses - exact
    noise = max(abs(errors.mean()), errors.std() / np.sqrt(len(errors)))
    spread = exact.std(ddof=1) / np.sqrt(len(exact)) if len(exact) > 1 else 0.0
    figures = f"it changes the base's loss by {noise:.1g}, whose standard error is {spread:.1g}"
    if noise < NOTICED * spread:
        return f"forwards compute in bfloat16: {figures}"
    mixture.filled = task.drop_bf16
    task.drop_bf16(mixture.model)
    objective.remember(base, rows)
    return f"forwards compute in float32, not in bfloat16: {figures}"
