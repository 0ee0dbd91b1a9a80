"""Methods that move along a sphere instead of along a line.

Every point that they visit is a weighted sum of the models, which the models' inner products fully
describe: these are computed once, in fp64, and only the last step touches the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cocktail.methods.gram import gram, norms_of
from cocktail.methods.linear import sum_to_divide_by, weighted_sum

# mergekit's constants: smaller norms count as zero, larger cosines as parallel.
_ZERO_NORM = 1e-8
_ZERO_ROW = 1e-7
_PARALLEL = 0.9995
# Half the digits of fp64: the rounding of 1 - cos^2 where two directions are the same.
_SAME_DIRECTION = 1e-12


def slerp(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    t: float,
    **_: Any,
) -> torch.Tensor:
    """Moves from the base to one model along the arc between them.

    theta = (sin((1 - t) a) theta_base + sin(t a) theta_1) / sin a, where a is the angle between the
    two; a straight line where they are almost parallel (|cos a| > 0.9995).
    https://en.wikipedia.org/wiki/Slerp
    """
    products = gram([base.view(1, -1), tensors[0].view(1, -1)])[..., 0]
    norms = np.sqrt(products.diagonal())
    norms[norms <= _ZERO_NORM] = 1.0
    cosine = float(np.clip(products[0, 1] / norms[0] / norms[1], -1.0, 1.0))
    parts = [1 - t, t]
    if abs(cosine) <= _PARALLEL:
        angle = math.acos(cosine)
        parts = [math.sin(part * angle) / math.sin(angle) for part in parts]
    return weighted_sum([base, tensors[0]], parts)


def nuslerp(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    weights: Sequence[float],
    *,
    nuslerp_row_wise: bool,
    nuslerp_flatten: bool,
    **_: Any,
) -> torch.Tensor:
    """Moves from one model to the other along an arc, by the second's share of the weight.

    Like slerp with t = w_2 / (w_1 + w_2), or one half where the weights cancel; with a base, the
    arc runs between the differences from it. Without ``nuslerp_flatten``, every vector along the
    last index has its own angle; with ``nuslerp_row_wise``, every vector along the first.
    https://github.com/arcee-ai/mergekit
    """
    total = weights[0] + weights[1]
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    if base is not None:
        for tensor in tensors:
            tensor.sub_(base)
    if nuslerp_flatten or tensors[0].dim() < 2:
        rows = [tensor.view(1, -1) for tensor in tensors]
    elif nuslerp_row_wise:
        rows = [tensor.flatten(1).T for tensor in tensors]
    else:
        rows = [tensor.view(-1, tensor.shape[-1]) for tensor in tensors]
    parts = _arc(gram(rows), t)
    for tensor, part in zip(rows, parts, strict=True):
        tensor.mul_(torch.from_numpy(part).to(tensor.dtype).unsqueeze(1))
    mixed = tensors[0].add_(tensors[1])
    return mixed if base is None else mixed.add_(base)


def _arc(products: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """The coefficients of two vectors at a point on the arc between them, shape (2, rows)."""
    norms = np.maximum(norms_of(products), _ZERO_ROW)
    cosine = np.clip(products[0, 1] / norms[0] / norms[1], -1.0, 1.0)
    straight = 1 - cosine**2 <= _SAME_DIRECTION
    angle = np.arccos(np.where(straight, 0.0, cosine))
    return np.stack(
        [np.where(straight, part, np.sin(part * angle) / np.sin(angle)) for part in (1 - t, t)]
    )


def multislerp(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    weights: Sequence[float],
    *,
    normalize_weights: bool,
    eps: float,
    **_: Any,
) -> torch.Tensor:
    """Averages the models' directions and lengths separately.

    theta = (sum_i w_i |v_i|) m / |m| with m = sum_i w_i v_i / |v_i|, where the v_i are the models,
    or their differences from a base, to which the result is then added. Where m is zero, it is the
    weighted mean of the v_i.
    The step in the tangent space at m is zero, because m is the weighted mean of the same points.
    https://goddard.blog/posts/multislerp-wow-what-a-cool-idea

    Raises:
        RecipeError: the weights are to be normalised but sum to zero.
    """
    total = sum_to_divide_by(weights, "normalize_weights") if normalize_weights else 1.0
    if len(tensors) == 1:
        return tensors[0]
    if base is not None:
        for tensor in tensors:
            tensor.sub_(base)
    shares = np.array(weights) / total
    products = gram([tensor.view(1, -1) for tensor in tensors])[..., 0]
    norms = np.sqrt(products.diagonal())
    direction = shares / (norms + eps)
    length = math.sqrt(max(0.0, float(direction @ products @ direction)))
    parts = shares if length < eps else direction * float(shares @ norms) / length
    mixed = weighted_sum(tensors, parts.tolist())
    return mixed if base is None else mixed.add_(base)


def karcher(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    weights: Sequence[float],
    *,
    max_iter: int,
    tol: float,
    **_: Any,
) -> torch.Tensor:
    """Averages the models on the sphere: the point with the least squared angles to all.

    theta = mean_i |theta_i| m, where m, of length one, solves
    sum_i a_i (u_i - cos(a_i) m) / sin(a_i) = 0, with a_i the angle between m and
    u_i = theta_i / |theta_i|; it is found by repeated steps along that sum. All models count
    equally; models that are zero have no direction and do not count.
    https://arxiv.org/abs/2603.04972
    """
    if len(tensors) == 1:
        return tensors[0]
    products = gram([tensor.view(1, -1) for tensor in tensors])[..., 0]
    norms = np.sqrt(products.diagonal())
    valid = norms > tol
    if not valid.any():
        return tensors[0].zero_()
    inverse = np.where(valid, 1.0 / np.where(valid, norms, 1.0), 0.0)
    units = products * inverse * inverse[:, None]
    mean = _karcher_mean(units, valid / valid.sum(), max_iter, tol)
    return weighted_sum(tensors, (mean * inverse * norms.mean()).tolist())


def _karcher_mean(
    units: NDArray[np.float64], shares: NDArray[np.float64], max_iter: int, tol: float
) -> NDArray[np.float64]:
    """The mean of K unit vectors as a weighted sum of them.

    Args:
        units: their inner products, shape (K, K).
        shares: shape (K,), zero for a vector that does not count.
    """

    def length(parts: NDArray[np.float64]) -> float:
        return math.sqrt(max(0.0, float(parts @ units @ parts)))

    mean = shares
    if length(mean) < tol:
        mean = np.zeros(len(shares))
        mean[np.flatnonzero(shares)[0]] = 1.0
    mean = mean / length(mean)
    for _ in range(max_iter):
        cosines = np.clip(units @ mean, -1.0, 1.0)
        angles = np.arccos(cosines)
        # A vector at the mean does not pull; one opposite to it pulls in no defined direction.
        pulls = (angles >= tol) & (1 - cosines**2 > _SAME_DIRECTION)
        stretch = np.where(pulls, shares * angles / np.where(pulls, np.sin(angles), 1.0), 0.0)
        step = stretch - float(stretch @ cosines) * mean
        size = length(step)
        if size < tol:
            break
        mean = math.cos(size) * mean + math.sin(size) * step / size
        mean = mean / length(mean)
    return mean
