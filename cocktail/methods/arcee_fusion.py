"""Arcee Fusion: adopt the differences that matter most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cocktail.methods.blocks import BLOCK, flat
from cocktail.methods.selection import magnitude_cut

_EPSILON = 1e-8


def arcee_fusion(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, weights: Sequence[float], **_: Any
) -> torch.Tensor:
    """Adopts a model's elements where their importance is an outlier.

    Importance: |delta| times the divergence of its row, KL(softmax(theta_1) + e, softmax(base) + e)
    with e = 1e-8, a row being a vector along the last index. theta = theta_base + delta where the
    importance is at least median + 1.5 (third quartile - first quartile), and theta_base elsewhere.
    https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration
    """
    (other,) = tensors
    count = base.numel()
    if count == 0:
        return base
    importance = torch.empty_like(base)
    columns = base.shape[-1] if base.dim() else 1
    rows = [tensor.view(-1, columns) for tensor in (other, base, importance)]
    height = max(1, BLOCK // columns)
    for top in range(0, len(rows[0]), height):
        model, origin, out = (tensor[top : top + height].numpy() for tensor in rows)
        np.abs(model - origin, out=out)
        out *= _divergence(model, origin)
    quarter, median, three_quarters = (
        magnitude_cut(flat(importance), (count - 1) * i // 4).value for i in (1, 2, 3)
    )
    threshold = median + 1.5 * (three_quarters - quarter)
    mask = torch.ge(importance, threshold, out=importance)
    return base.add_(other.sub_(base).mul_(mask))


def _divergence(model: NDArray[Any], origin: NDArray[Any]) -> NDArray[Any]:
    """KL divergence of every row, in fp64: a fine-tune's would be lost in the noise of fp32.

    Returns:
        Shape (rows, 1), in the inputs' type.
    """
    p, q = _softmax(model), _softmax(origin)
    sums: NDArray[np.float64] = np.einsum("mn,mn->m", p, np.log(p / q))
    return sums[:, None].astype(model.dtype)


def _softmax(rows: NDArray[Any]) -> NDArray[np.float64]:
    values = rows.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=1, keepdims=True)
    values += _EPSILON
    return values
