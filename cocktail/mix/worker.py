"""An engine thread's work: a segment, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event

import numpy as np
import xxhash

from cocktail.mix.digests import SegmentDigests
from cocktail.plan.mixed_tensor import MixedTensor
from cocktail.tensors.bf16 import SUMMED, add_weighed, require_finite, rounded
from cocktail.tensors.dtypes import Bytes
from cocktail.tensors.reading import TensorReader, block_bounds

Sink = Callable[[MixedTensor, int, Bytes], None]
"""Called with a tensor of the plan, the first element of a block, and the block's bytes: shape (n *
item size,), uint8, valid until the call returns. Several threads call it."""
Progress = Callable[[int], None]
"""Called with the number of output bytes that have just been passed to the sink."""


class Worker:
    """One thread's memory, and the loop over blocks for work that needs no torch.

    Args:
        block: elements to process at a time; the result does not depend on it.
        space: the most bytes that a block takes.
        stopped: set when the mix is abandoned.
    """

    def __init__(
        self,
        reader: TensorReader,
        block: int,
        space: int,
        sink: Sink,
        progress: Progress | None,
        stopped: Event,
    ) -> None:
        self.reader = reader
        self.block = block
        self.sink = sink
        self.progress = progress
        self.stopped = stopped
        # In one piece, as NumPy asks for huge pages from 4 MiB on, which take a tenth of the time.
        self.raw, self.term, self.sum = np.empty((3, space), np.uint8)

    def run(self, tensor: MixedTensor, start: int, stop: int) -> list[SegmentDigests]:
        """Mix elements ``start:stop``, a block of every source at a time."""
        output = xxhash.xxh3_128()
        inputs = [xxhash.xxh3_128() for _ in tensor.active]
        for low, high in block_bounds(stop - start, self.block):
            if self.stopped.is_set():
                break
            mixed = self.mix(tensor, start + low, start + high, inputs)
            self.hand_over(tensor, start + low, mixed, output)
        return [[output.digest(), *(hasher.digest() for hasher in inputs)]]

    def hand_over(
        self, tensor: MixedTensor, start: int, block: Bytes, hasher: xxhash.xxh3_128
    ) -> None:
        """Pass a block to the sink, and count it."""
        hasher.update(block.data)
        self.sink(tensor, tensor.first + start, block)
        if self.progress is not None:
            self.progress(block.nbytes)

    def mix(
        self, tensor: MixedTensor, start: int, stop: int, inputs: Sequence[xxhash.xxh3_128]
    ) -> Bytes:
        """The weighted sum of the sources, or the single copied source, in the output's type."""
        total, term = (space.view(np.float32)[: stop - start] for space in (self.sum, self.term))
        raw = self.raw
        if not tensor.active:  # every weight is 0
            total.fill(0)
        for position, (source, hasher) in enumerate(zip(tensor.active, inputs, strict=True)):
            raw = self.reader.read_bytes(source.info, start, stop, self.raw)
            hasher.update(raw.data)
            if tensor.is_copy and tensor.dtype not in SUMMED:
                return raw
            with np.errstate(over="ignore", invalid="ignore"):  # an error says more than a warning
                add_weighed(raw, source.info.dtype, source.weight, term, total, first=position == 0)
        if tensor.is_copy:
            require_finite(total, tensor.dtype, tensor.key)
            return raw
        return rounded(total, tensor.dtype, term, self.raw, tensor.key)  # the last source is summed
