"""An engine thread's work with torch: merge methods, adapters, fp64, large amounts of fp16, and any
sum where torch is there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from threading import Condition, Lock
from typing import Any

import numpy as np
import torch
import xxhash

from cocktail.methods.linear import accumulate
from cocktail.methods.random_words import RandomWords
from cocktail.mix.digests import SEGMENT, SegmentDigests
from cocktail.mix.worker import Worker
from cocktail.plan.mixed_tensor import Merge, MixedTensor
from cocktail.system.heap import trim_heap
from cocktail.tensors.bf16 import not_finite
from cocktail.tensors.dtypes import Bytes, as_bytes, torch_dtype
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import StoredMatrix, block_bounds


class Room:
    """Lets threads hold tensors that together take no more room than the largest one.

    First come, first served: a large tensor would never find room if small ones could overtake it.

    Args:
        elements: what the largest tensor that is made in one piece takes.
    """

    def __init__(self, elements: int) -> None:
        self._free = elements
        self._turn = Lock()
        self._changed = Condition()

    @contextmanager
    def hold(self, elements: int) -> Iterator[None]:
        """Wait until there is room for a tensor, and reserve it within the ``with`` block."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= elements)
            self._free -= elements
        try:
            yield
        finally:
            with self._changed:
                self._free += elements
                self._changed.notify_all()


class MergingWorker(Worker):
    """A worker for every tensor: block by block, or in one piece.

    Args:
        room: the room for tensors that are made in one piece.
        others: the arguments of :class:`Worker`.
    """

    def __init__(self, room: Room, *others: Any) -> None:
        super().__init__(*others)
        self._room = room
        self._raw, self._term, self._sum = map(torch.from_numpy, (self.raw, self.term, self.sum))
        self._out = torch.empty(self.raw.nbytes, dtype=torch.uint8)
        self._spaces: list[torch.Tensor] = []

    def run(self, tensor: MixedTensor, start: int, stop: int) -> list[SegmentDigests]:
        """Mix elements ``start:stop``, which are all of them if the tensor is made whole."""
        if tensor.merge is None or not tensor.is_whole:
            return super().run(tensor, start, stop)
        with self._room.hold(tensor.whole_numel):
            return self._run_whole(tensor, tensor.merge)

    def _run_whole(self, tensor: MixedTensor, merge: Merge) -> list[SegmentDigests]:
        """Make a tensor in one piece: read all sources, merge, round and pass on."""
        segments = list(block_bounds(tensor.numel, SEGMENT))
        digests: list[SegmentDigests] = [[] for _ in segments]
        tensors = []
        for source in tensor.active:
            flat = _large(tensor.numel, _sum_dtype(tensor))
            for (start, stop), found in zip(segments, digests, strict=True):
                hasher = xxhash.xxh3_128()
                for low, high in block_bounds(stop - start, self.block):
                    if self.stopped.is_set():
                        return digests
                    place = flat[start + low : start + high]
                    place.copy_(self._read(source.info, start + low, start + high, hasher))
                found.append(hasher.digest())
            # A method may select by magnitude, in which NaN has no rank.
            _require_finite(flat, flat.dtype, source.info.name, "before")
            tensors.append(flat.view(tensor.shape))
        statistics = [StoredMatrix(self.reader, info) for info in merge.statistics]
        merged = _merged(tensor, merge, tensors, statistics).reshape(-1)
        if merge.method.singular:
            trim_heap()  # singular vectors take up to the size of the largest tensor
        for (start, stop), found in zip(segments, digests, strict=True):
            output = xxhash.xxh3_128()
            for low, high in block_bounds(stop - start, self.block):
                block = self._rounded(tensor, merged[start + low : start + high])
                self.hand_over(tensor, start + low, block, output)
            found.insert(0, output.digest())
        return digests

    def mix(
        self, tensor: MixedTensor, start: int, stop: int, inputs: Sequence[xxhash.xxh3_128]
    ) -> Bytes:
        """The sources, combined by the tensor's method or by weights, in the output's type."""
        blocks = (
            self._read(source.info, start, stop, hasher)
            for source, hasher in zip(tensor.active, inputs, strict=True)
        )
        if tensor.is_copy:
            mixed = next(blocks)
            _require_finite(mixed, mixed.dtype, tensor.key)
            return as_bytes(mixed)
        dtype, size = _sum_dtype(tensor), stop - start
        if tensor.merge is not None:
            measured = tensor.merge.statistics
            count = len(tensor.active)
            places = self._places(count + len(measured), dtype, size)
            # Statistics are read like ingredients, but not hashed.
            found = (self.reader.read(info, start, stop, self._raw) for info in measured)
            held = [
                place.copy_(block)
                for place, block in zip(places, chain(blocks, found), strict=True)
            ]
            merged = _merged(tensor, tensor.merge, held[:count], held[count:], start)
            return self._rounded(tensor, merged)
        out, term = (space.view(dtype)[:size] for space in (self._sum, self._term))
        accumulate(blocks, [source.weight for source in tensor.active], out=out, term=term)
        return self._rounded(tensor, out)

    def _read(
        self, info: TensorInfo, start: int, stop: int, hasher: xxhash.xxh3_128
    ) -> torch.Tensor:
        block = self.reader.read(info, start, stop, self._raw)
        hasher.update(as_bytes(block).data)
        return block

    def _places(self, count: int, dtype: torch.dtype, size: int) -> list[torch.Tensor]:
        """Memory for a block of each of ``count`` sources."""
        while len(self._spaces) < count:
            self._spaces.append(torch.empty(self.raw.nbytes, dtype=torch.uint8))
        return [space.view(dtype)[:size] for space in self._spaces[:count]]

    def _rounded(self, tensor: MixedTensor, block: torch.Tensor) -> Bytes:
        """The block in the output's type, checked."""
        dtype = torch_dtype(tensor.dtype)
        _require_finite(block, dtype, tensor.key)
        if block.dtype == dtype:
            return as_bytes(block.contiguous())
        return as_bytes(self._out.view(dtype)[: block.numel()].copy_(block))


def _merged(
    tensor: MixedTensor,
    merge: Merge,
    held: list[torch.Tensor],
    statistics: Sequence[torch.Tensor | StoredMatrix],
    start: int = 0,
) -> torch.Tensor:
    """Run the method on the sources, with the base last, and on their statistics.

    Args:
        start: where in the tensor the held elements lie.
    """
    base = held.pop() if merge.base is not None else None
    # Seeded by recipe and name, so that neither threads nor the tensors' order matters.
    seed = xxhash.xxh3_64_intdigest(f"{merge.seed} {tensor.key}".encode()) >> 1
    return merge.method.merge(
        held,
        base,
        [source.weight for source in tensor.sources],
        generator=RandomWords(seed, tensor.first + start),
        options=merge.options,
        statistics=statistics,
    )


def _large(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory for a whole tensor, shape (numel,), from NumPy, which asks the system for huge pages:
    creating small ones takes longer than filling them."""
    return torch.from_numpy(np.empty(numel, np.float64 if dtype == torch.float64 else np.float32))


def _sum_dtype(tensor: MixedTensor) -> torch.dtype:
    """The type to sum in: fp32 for any input, or fp64 if that is what is written."""
    return torch.float64 if tensor.dtype == "F64" else torch.float32


def _require_finite(
    block: torch.Tensor, dtype: torch.dtype, name: str, when: str = "after"
) -> None:
    """Refuse what is not finite, or would not be once rounded to ``dtype``."""
    if not block.is_floating_point() or block.numel() == 0:
        return
    limit = torch.finfo(dtype).max
    if block.dtype == torch.float32:
        # One cheap pass: a sum of squares below the limit's square proves every element finite
        # and in range. Otherwise, look closely.
        norm = float(torch.dot(block, block))
        if norm <= min(limit * limit, torch.finfo(torch.float32).max):
            return
    if bool(block.isfinite().all()) and bool(block.to(dtype).isfinite().all()):
        return
    worst = float(block[~block.isfinite()][0]) if not bool(block.isfinite().all()) else None
    raise not_finite(name, worst, limit, str(dtype), when)
