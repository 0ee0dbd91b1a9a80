"""Methods that work on the singular vectors of what fine-tunes changed.

They apply to matrices; the differences of other tensors are averaged, as in the papers' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cocktail.methods.linear import weighted_sum
from cocktail.system.threads import one_torch_thread


def iso_c(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    lambda_: float,
    **_: Any,
) -> torch.Tensor:
    """Sums the differences and makes all singular values of the sum equal.

    With sum_i delta_i = U diag(s) V^T, theta = theta_base + lambda mean(s) U V^T. Directions whose
    singular value is zero to rounding are arbitrary and left out. Tensors that are not matrices
    become theta_base + lambda mean_i delta_i. https://arxiv.org/abs/2502.04959
    """
    _subtract(tensors, base)
    if base.dim() != 2 or base.numel() == 0:
        return _add_mean(tensors, base, lambda_)
    total = weighted_sum(tensors, [1.0] * len(tensors))
    with one_torch_thread():
        rows = _wide(total).contiguous()
        left, values, right = _svd(_orthonormalise(rows))
        square = (left @ right).mul_(lambda_ * values.sum() / len(rows))
        return _add_product(base, square, rows)


def tsv_m(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float],
    *,
    lambda_: float,
    **_: Any,
) -> torch.Tensor:
    """Sums the leading singular directions of each difference, made orthogonal to one another.

    Of the r directions of every delta_i = U_i diag(s_i) V_i^T, the first r / K stay. With U' and V'
    the orthogonal matrices nearest to all U_i and all V_i side by side, theta = theta_base + lambda
    U' diag(s) V'^T. Tensors that are not matrices become theta_base + lambda mean_i delta_i.
    https://arxiv.org/abs/2412.00081
    """
    _subtract(tensors, base)
    if base.dim() != 2 or base.numel() == 0:
        return _add_mean(tensors, base, lambda_)
    short, long = sorted(base.shape)
    kept = max(1, short // len(tensors))
    rights = _room(tensors[0], kept * len(tensors), long)
    lefts, all_values, found = [], [], 0
    with one_torch_thread():
        for delta in tensors:
            left, values = _leading(delta, kept, rights[found:])
            lefts.append(left)
            all_values.append(values)
            found += len(values)
        if found:
            left = _nearest_orthogonal(torch.cat(lefts, dim=1)) * torch.cat(all_values)
            square, rows = _nearest_orthogonal_rows(rights[:found])
            _add_product(base, left.mul_(lambda_) @ square, rows)
    return base


def _subtract(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> None:
    for tensor in tensors:
        tensor.sub_(base)


def _add_mean(deltas: Sequence[torch.Tensor], base: torch.Tensor, lambda_: float) -> torch.Tensor:
    return base.add_(weighted_sum(deltas, [lambda_ / len(deltas)] * len(deltas)))


def _room(first: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A matrix for the right singular vectors, in the first difference's memory if that is enough.

    That is free, as each difference is copied before its decomposition and this one comes first.
    """
    if rows * columns > first.numel():  # more models than the shorter side has elements
        return first.new_empty(rows, columns)
    return first.reshape(-1)[: rows * columns].view(rows, columns)


def _leading(
    delta: torch.Tensor, kept: int, rights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most ``kept`` singular directions of a matrix that is at least as wide as high.

    Args:
        rights: (>= kept, n) whose first rows become the right ones; may share the matrix's memory.

    Returns:
        U of shape (r, s), the singular values (s,).
    """
    rows = _wide(delta).clone(memory_format=torch.contiguous_format)
    left, values, right = _svd(_orthonormalise(rows), kept)
    torch.mm(right, rows, out=rights[: len(values)])
    return left.clone(), values


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix or its transpose, as a view of shape (r, n) with r <= n."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _orthonormalise(rows: torch.Tensor) -> torch.Tensor:
    """Overwrite a contiguous matrix R of shape (r, n), r <= n, with W whose rows are orthonormal.

    What remains to decompose is small, and no second matrix of the size of R is made.

    Returns:
        S of shape (r, r) with R = S W.
    """
    columns = rows.T  # as LAPACK wants them, so that it works in place
    scales = rows.new_empty(len(rows))
    torch.geqrf(columns, out=(columns, scales))
    upper = columns[: len(rows)].triu()
    torch.linalg.householder_product(columns, scales, out=columns)
    return upper.T


def _svd(
    matrix: torch.Tensor, most: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first ``most`` singular directions, without those that are zero to rounding.

    Returns:
        U of shape (m, r), s of shape (r,), V^T of shape (r, n).
    """
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        import scipy.linalg  # noqa: PLC0415 - hardly ever needed, and slow to import

        # Divide and conquer fails on some matrices with many equal singular values, such as those
        # of two equal models; the slower iteration does not.
        found = scipy.linalg.svd(matrix.numpy(), full_matrices=False, lapack_driver="gesvd")
        left, values, right = (torch.from_numpy(array) for array in found)
    floor = float(values[0]) * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    rank = int(torch.count_nonzero(values[:most] > floor))
    return left[:, :rank], values[:rank], right[:rank]


def _nearest_orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of the matrix's singular value decomposition."""
    left, _, right = _svd(matrix)
    return left @ right


def _nearest_orthogonal_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for a matrix (r, n), which is overwritten, as a product (r, s) (s, n)."""
    if len(rows) > rows.shape[1]:
        return _nearest_orthogonal(rows), torch.eye(rows.shape[1], dtype=rows.dtype)
    return _nearest_orthogonal(_orthonormalise(rows)), rows


def _add_product(base: torch.Tensor, square: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Add ``square @ rows``, or its transpose if the matrix is higher than wide, in place."""
    if base.shape[0] <= base.shape[1]:
        return base.addmm_(square, rows)
    return base.addmm_(rows.T, square.T)
