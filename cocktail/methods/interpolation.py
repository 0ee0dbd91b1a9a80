"""Methods that move along a sphere instead of along a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cocktail.methods.blocks import flat
from cocktail.methods.gram import gram
from cocktail.methods.linear import accumulate

# mergekit's constants: what counts as a zero norm, and as parallel.
_ZERO_NORM = 1e-8
_PARALLEL = 0.9995


def slerp(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    t: float,
    **_: Any,
) -> torch.Tensor:
    """Moves from the base to one model along the arc between them.

    theta = sin((1 - t) a) / sin(a) theta_base + sin(t a) / sin(a) theta_1, a the angle between the
    two; a straight line where they are almost parallel (|cos a| > 0.9995).
    https://en.wikipedia.org/wiki/Slerp
    """
    ends = [flat(base), flat(tensors[0])]
    products = gram(ends)
    norms = np.sqrt(products.diagonal())
    norms[norms <= _ZERO_NORM] = 1.0
    cosine = float(np.clip(products[0, 1] / norms[0] / norms[1], -1.0, 1.0))
    if abs(cosine) > _PARALLEL:
        parts = [1 - t, t]
    else:
        angle = math.acos(cosine)
        parts = [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    return accumulate(ends, parts, out=ends[0], term=torch.empty_like(ends[0])).view(base.shape)
