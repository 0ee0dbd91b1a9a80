"""Read ranges of tensors from their files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cocktail.errors import CheckpointError
from cocktail.tensors.dtypes import ITEM_SIZE, Bytes, torch_dtype
from cocktail.tensors.info import TensorInfo

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 19
"""Elements to read at a time: with fewer, threads wait for the interpreter; more overflow the
caches."""
ROWS = 128
"""Rows to read at a time where a matrix is widened to fp64, so that only regmean's sums ever hold a
whole tensor in fp64."""


class TensorReader:
    """Reads parts of tensors into memory that the caller owns, with one descriptor per file.

    Safe to share between threads: every read names its own position. Plain reads, not a mapped
    file, so that what has been read does not stay in the process.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._whole: dict[TensorInfo, torch.Tensor] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._whole.clear()

    def read_bytes(self, info: TensorInfo, start: int, stop: int, buffer: Bytes) -> Bytes:
        """Read elements ``start:stop`` as :meth:`read` does, but without torch for a plain file.

        Args:
            buffer: at least ``(stop - start)`` elements of ``info.read_dtype`` long.

        Returns:
            The first bytes of ``buffer``, shape ((stop - start) * item size,).

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        size = ITEM_SIZE[info.read_dtype]
        raw = buffer[: (stop - start) * size]
        if info.is_plain:
            self._fill(info, info.offset + start * size, raw.data)
        else:
            import torch  # noqa: PLC0415 - seconds to import

            self.read(info, start, stop, torch.from_numpy(raw))
        return raw

    def read(self, info: TensorInfo, start: int, stop: int, buffer: torch.Tensor) -> torch.Tensor:
        """Read elements ``start:stop`` of the flattened tensor.

        Args:
            buffer: uint8, at least ``(stop - start)`` elements of ``info.read_dtype`` long.

        Returns:
            A view of ``buffer``, shape (stop - start,), in ``info.read_dtype``: the tensor's own
            dtype unless an adapter changes it.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        if info.delta is not None:
            return info.delta.read(self, info, start, stop, buffer)
        raw = buffer[: (stop - start) * ITEM_SIZE[info.dtype]]
        if info.mapped is not None:
            block = info.mapped.reshape(-1)[start:stop]
            return raw.view(torch_dtype(info.dtype)).copy_(block)
        self.read_bytes(info, start, stop, raw.numpy())
        return raw.view(torch_dtype(info.dtype))

    def whole(self, info: TensorInfo) -> torch.Tensor:
        """Read a small tensor once and hold it until the reader closes, in its shape and dtype."""
        import torch  # noqa: PLC0415 - reading headers does without it

        held = self._whole.get(info)
        if held is None:
            buffer = torch.empty(info.nbytes, dtype=torch.uint8)
            held = self.read(info, 0, info.numel, buffer).view(info.shape)
            self._whole[info] = held
        return held

    def _fill(self, info: TensorInfo, position: int, view: memoryview) -> None:
        descriptor = self._descriptor(info.file)
        while view:
            # One call reads at most 2,147,479,552 bytes, and may stop earlier.
            try:
                count = os.preadv(descriptor, [view], position)
            except OSError as error:
                raise CheckpointError(f"{info.file}: reading failed ({error.strerror})") from None
            if count == 0:
                raise CheckpointError(
                    f"{info.file}: ended inside tensor {info.name!r} - it was cut off while being "
                    "read - restore the file and run again"
                )
            view = view[count:]
            position += count

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            descriptor = self._descriptors.get(path)
            if descriptor is None:
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise CheckpointError(f"{path}: cannot open ({error.strerror})") from None
                self._descriptors[path] = descriptor
            return descriptor


class StoredMatrix:
    """A matrix in a file that is read some rows at a time instead of being held."""

    def __init__(self, reader: TensorReader, info: TensorInfo) -> None:
        self._reader = reader
        self._info = info

    def split(self, rows: int) -> Iterator[torch.Tensor]:
        """Like ``torch.Tensor.split``, in memory that the next rows overwrite.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        import torch  # noqa: PLC0415 - reading headers does without it

        height, width = self._info.shape
        buffer = torch.empty(
            min(rows, height) * width * ITEM_SIZE[self._info.dtype], dtype=torch.uint8
        )
        for start, stop in block_bounds(height, rows):
            block = self._reader.read(self._info, start * width, stop * width, buffer)
            yield block.view(stop - start, width)


def block_bounds(numel: int, block: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Cut ``range(numel)`` into runs of at most ``block``: ``(0, block), (block, 2*block), ...``"""
    return ((start, min(start + block, numel)) for start in range(0, numel, block))


def equal_tensors(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors of one dtype have the same shape and bytes."""
    if a.shape != b.shape:
        return False
    one, other = (np.empty(BLOCK * 8, np.uint8) for _ in range(2))
    with TensorReader() as reader:
        return all(
            np.array_equal(
                reader.read_bytes(a, start, stop, one), reader.read_bytes(b, start, stop, other)
            )
            for start, stop in block_bounds(a.numel)
        )
