"""Methods that work on the singular vectors of what fine-tunes changed.

They see matrices; the differences of other tensors are averaged, as in the papers' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cocktail.methods.linear import weighted_sum
from cocktail.threads import one_torch_thread


def iso_c(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    lambda_: float,
    **_: Any,
) -> torch.Tensor:
    """Sums the differences and makes all singular values of the sum equal.

    With sum_i delta_i = U diag(s) V^T: theta = theta_base + lambda mean(s) U V^T. Directions whose
    singular value is zero to rounding are left out: any others would do. Tensors that are not
    matrices: theta_base + lambda mean_i delta_i. https://arxiv.org/abs/2502.04959
    """
    _subtract(tensors, base)
    if base.dim() != 2 or base.numel() == 0:
        return _add_mean(tensors, base, lambda_)
    total = weighted_sum(tensors, [1.0] * len(tensors))
    with one_torch_thread():
        left, values, right = _svd(total)
        merged = torch.mm(left, right, out=total).mul_(values.sum() / min(base.shape))
    return base.add_(merged.mul_(lambda_))


def tsv_m(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    lambda_: float,
    **_: Any,
) -> torch.Tensor:
    """Sums the leading singular directions of each difference, made orthogonal to one another.

    Of every delta_i = U_i diag(s_i) V_i^T the first r / K of its r directions stay. With U' and V'
    the orthogonal matrices nearest to all U_i and all V_i side by side: theta = theta_base + lambda
    U' diag(s) V'^T. Tensors that are not matrices: theta_base + lambda mean_i delta_i.
    https://arxiv.org/abs/2412.00081
    """
    _subtract(tensors, base)
    if base.dim() != 2 or base.numel() == 0:
        return _add_mean(tensors, base, lambda_)
    kept = max(1, min(base.shape) // len(tensors))
    with one_torch_thread():
        parts = [_svd(delta, kept) for delta in tensors]
        left = torch.cat([part[0] for part in parts], dim=1)
        values = torch.cat([part[1] for part in parts])
        right = torch.cat([part[2] for part in parts])
        del parts
        if len(values):
            merged = (_nearest_orthogonal(left) * values) @ _nearest_orthogonal(right)
            base.add_(merged.mul_(lambda_))
    return base


def _subtract(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> None:
    for tensor in tensors:
        tensor.sub_(base)


def _add_mean(deltas: Sequence[torch.Tensor], base: torch.Tensor, lambda_: float) -> torch.Tensor:
    return base.add_(weighted_sum(deltas, [lambda_ / len(deltas)] * len(deltas)))


def _svd(
    matrix: torch.Tensor, most: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first ``most`` singular directions, without those that are zero to rounding.

    Returns:
        U of shape (m, r), s of shape (r,), V^T of shape (r, n).
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    floor = float(values[0]) * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    rank = int(torch.count_nonzero(values[:most] > floor))
    return left[:, :rank].clone(), values[:rank].clone(), right[:rank].clone()


def _nearest_orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of the matrix's singular value decomposition."""
    left, _, right = _svd(matrix)
    return left @ right
