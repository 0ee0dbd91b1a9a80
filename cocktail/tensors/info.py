"""What is known about a stored tensor without reading its data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cocktail.errors import CheckpointError
from cocktail.tensors.dtypes import ITEM_SIZE

if TYPE_CHECKING:
    import torch


class Delta(Protocol):
    """What an adapter adds to a tensor whenever it is read."""

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        """The adapter's own tensors; a reader holds them in memory."""

    @property
    def workspace(self) -> int:
        """Bytes that a thread needs, besides the block, to read the tensor."""

    def read(
        self, reader: Any, info: TensorInfo, start: int, stop: int, buffer: torch.Tensor
    ) -> torch.Tensor:
        """Read elements ``start:stop`` of the changed tensor."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is; its data has not been read.

    Attributes:
        name: the name in its file.
        dtype: safetensors code, ``"BF16"``.
        file: the file that holds the data.
        offset: of the first byte, from the start of ``file``.
        mapped: the tensor itself, mapped from a pickled file, which has no flat layout to address.
        delta: what an adapter adds to the tensor whenever it is read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    mapped: torch.Tensor | None = field(default=None, compare=False, repr=False)
    delta: Delta | None = field(default=None, repr=False)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_SIZE[self.dtype]

    @property
    def is_plain(self) -> bool:
        """Whether its elements lie in the file one after another, in reading order."""
        return self.mapped is None and self.delta is None

    def rows(self, start: int, count: int) -> TensorInfo:
        """Rows ``start:start + count`` as a tensor of their own.

        Raises:
            CheckpointError: an adapter changes the tensor.
        """
        if self.delta is not None:
            raise CheckpointError(
                f"{self.file}: tensor {self.name!r} is changed by an adapter, and its rows must be "
                "aligned by token - only one of the two is possible - merge the adapter into its "
                "base first, with merge_and_unload()"
            )
        shape = (count, *self.shape[1:])
        skipped = start * math.prod(self.shape[1:]) * ITEM_SIZE[self.dtype]
        mapped = None if self.mapped is None else self.mapped[start : start + count]
        return replace(self, shape=shape, offset=self.offset + skipped, mapped=mapped)

    @property
    def read_dtype(self) -> str:
        """The type that blocks are read in: fp32 or wider where an adapter changes the tensor."""
        return self.dtype if self.delta is None or self.dtype == "F64" else "F32"
