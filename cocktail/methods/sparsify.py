"""Ways to thin out what a fine-tune changed. Each works on shape (n,) and in place."""

from __future__ import annotations

import torch

from cocktail.methods.selection import keep_ranks


def keep_largest(delta: torch.Tensor, density: float) -> None:
    """Keep the ``density`` of the elements that are largest in magnitude, at least one."""
    if density < 1:
        count = delta.numel()
        kept = max(1, int(density * count)) if density > 0 else 0
        keep_ranks(delta, count - kept, count)
