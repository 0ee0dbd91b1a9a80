"""NearSwap: adopt what lies close to the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def nearswap(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    t: float,
    **_: Any,
) -> torch.Tensor:
    """Adopts a model's elements that are near the base, and less of those that are farther away.

    theta = s theta_1 + (1 - s) theta_base, s = min(1, t / |theta_1 - theta_base|).
    https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
    """
    (other,) = tensors
    share = (base - other).abs_().clamp_(min=1e-6).reciprocal_().mul_(t).clamp_(max=1.0)
    other.mul_(share)
    return base.mul_(share.neg_().add_(1.0)).add_(other)
