"""The low-rank change that a LoRA adapter makes to one tensor, added while the tensor is read.

W' = W + s B A, https://arxiv.org/abs/2106.09685. DoRA, https://arxiv.org/abs/2402.09353, then
rescales every row of W' to a learned length m: m (W + s B A) / ||W + s B A||. Where a layer stores
its matrix as (in, out), as embeddings and GPT-2 do, A^T B^T is added and columns are scaled.

A layer of experts has a matrix for each, with factors of its own: PEFT stores them together, A as
(experts x r, in) with a block of rows an expert, B as (out, r x experts) with an expert's columns
lying ``experts`` apart.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cocktail.tensors.dtypes import ITEM_SIZE, torch_dtype
from cocktail.tensors.info import TensorInfo

if TYPE_CHECKING:
    import torch

    from cocktail.tensors.reading import TensorReader

TILE = 1 << 15
"""Elements to multiply out at a time, in whole rows. Tiles lie at fixed places whatever range is
read, because a matrix product of another shape may round differently."""
_LEAST_ROWS = 8


@dataclass(eq=False)
class LowRank:
    """What is added to a tensor of shape (..., rows, cols); for a vector, cols is 1.

    Attributes:
        a: shape (r, in); ``None`` for a vector, to which ``b`` itself is added.
        b: shape (out, r), or (out,).
        scale: alpha / r, or alpha / sqrt(r).
        transposed: the tensor is (in, out).
        magnitude: shape (out,), the lengths that DoRA learned; ``None`` without DoRA.
        experts: how many experts' factors A and B hold, in PEFT's order.
        first: the tensor's first row among the rows of all experts' matrices.
    """

    a: TensorInfo | None
    b: TensorInfo
    scale: float
    transposed: bool = False
    magnitude: TensorInfo | None = None
    experts: int = 1
    first: int = 0
    _factors: torch.Tensor | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        """The adapter's tensors that it is made of; a reader holds them in memory."""
        return tuple(info for info in (self.a, self.b, self.magnitude) if info is not None)

    @property
    def workspace(self) -> int:
        """Bytes that a reading thread needs besides the block: fp64 tiles and a factor."""
        if self.a is None:
            return 4 * TILE * 8
        rank = self.b.shape[1] // self.experts
        cols = self.b.shape[0] if self.transposed else self.a.shape[1]
        return (rank * cols + 4 * _tile_rows(cols) * cols) * 8

    def read(
        self, reader: TensorReader, info: TensorInfo, start: int, stop: int, buffer: torch.Tensor
    ) -> torch.Tensor:
        """Read elements ``start:stop`` of the changed tensor, as ``TensorReader.read`` does.

        Everything is computed in fp64 and rounded once, to ``info.read_dtype``.
        """
        size = ITEM_SIZE[info.read_dtype]
        out = buffer[: (stop - start) * size].view(torch_dtype(info.read_dtype))
        factors = None if self.magnitude is None else self._dora_factors(reader, info)
        for low, high, changed in self._tiles(reader, info, start, stop):
            if factors is not None:
                changed *= self._spread(factors, info, low, high)
            out[low - start : high - start].copy_(changed)
        return out

    def _tiles(
        self, reader: TensorReader, info: TensorInfo, start: int, stop: int
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        """W + s B A in runs of elements ``low:high`` within one tile each: shape (high - low,)."""
        import torch  # noqa: PLC0415 - reading headers does without it

        base = replace(info, delta=None)
        cols = _columns(info)
        step = _tile_rows(cols) * cols
        scratch = torch.empty(min(step, stop - start) * 8, dtype=torch.uint8)
        for begin in range(start - start % step, stop, step):
            low, high = max(start, begin), min(stop, begin + step)
            rows = begin // cols, min(begin + step, info.numel) // cols
            product = self._product(reader, *rows).reshape(-1)[low - begin : high - begin]
            yield low, high, product + reader.read(base, low, high, scratch).double()

    def _product(self, reader: TensorReader, first: int, last: int) -> torch.Tensor:
        """Rows ``first:last`` of what is added: shape (last - first, cols), fp64."""
        import torch  # noqa: PLC0415

        b = reader.whole(self.b)
        if self.a is None:
            return b[first:last, None].double() * self.scale
        a = reader.whole(self.a)
        a, b = a.view(self.experts, -1, a.shape[1]), b.view(b.shape[0], -1, self.experts)
        first, last = first + self.first, last + self.first
        height = a.shape[2] if self.transposed else b.shape[0]
        pieces = []
        for expert in range(first // height, -(-last // height)):
            rows = slice(max(0, first - expert * height), last - expert * height)
            left, right = b[:, :, expert], a[expert]
            if self.transposed:
                left, right = right.T, left.T
            # Contiguous copies: the product's rounding may depend on how its factors lie in memory.
            pieces.append(left[rows].double().contiguous() @ right.double().contiguous())
        return torch.cat(pieces) * self.scale

    def _dora_factors(self, reader: TensorReader, info: TensorInfo) -> torch.Tensor:
        """m / ||W + s B A|| for each output: shape (out,), fp64; needs one pass over the tensor."""
        import torch  # noqa: PLC0415

        with self._lock:
            if self._factors is None and self.magnitude is not None:
                squares = torch.zeros(info.shape[-1 if self.transposed else 0], dtype=torch.float64)
                cols = _columns(info)
                for low, high, changed in self._tiles(reader, info, 0, info.numel):
                    matrix = changed.view(-1, cols).square_()
                    if self.transposed:
                        squares += matrix.sum(0)
                    else:
                        squares[low // cols : high // cols] = matrix.sum(1)
                self._factors = reader.whole(self.magnitude).double() / squares.sqrt()
            factors: torch.Tensor = self._factors  # type: ignore[assignment]  # set just above
        return factors

    def _spread(self, factors: torch.Tensor, info: TensorInfo, low: int, high: int) -> torch.Tensor:
        """The factor of each of the elements ``low:high``: shape (high - low,)."""
        cols = _columns(info)
        first, last = low // cols, -(-high // cols)
        shape = last - first, cols
        matrix = (
            factors.expand(shape) if self.transposed else factors[first:last, None].expand(shape)
        )
        return matrix.reshape(-1)[low - first * cols : high - first * cols]


def _columns(info: TensorInfo) -> int:
    return info.shape[-1] if len(info.shape) > 1 else 1


def _tile_rows(cols: int) -> int:
    return max(_LEAST_ROWS, TILE // max(1, cols))
