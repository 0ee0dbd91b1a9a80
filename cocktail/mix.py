"""The engine: the only place where weights meet tensors.

Every tensor is cut into segments of a fixed number of elements, segments are shared out to threads,
and each thread takes its segment block by block: read a block of every ingredient, add it up in
fp32 in the order of the recipe, round it to the output's type, hand it to the sink. Nothing larger
than a block is held, so that memory depends neither on the model nor on the number of ingredients,
and no result depends on the number of threads or the size of a block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, local

import torch
import xxhash

from cocktail.checkpoint import tensor_key
from cocktail.digests import SEGMENT, block_bytes, join_segments
from cocktail.dtypes import torch_dtype
from cocktail.errors import NonFiniteError
from cocktail.methods.linear import accumulate
from cocktail.plan import MixedTensor, Plan
from cocktail.reading import BLOCK, TensorReader, block_bounds

Sink = Callable[[MixedTensor, int, torch.Tensor], None]
"""Takes a tensor of the plan, the first element of a block, and the block: shape (n,), in the
output's dtype, valid until the call returns. Called from several threads."""
Progress = Callable[[int], None]
"""Takes the number of output bytes that have just been handed to the sink."""


@dataclass(frozen=True)
class Digests:
    """Fingerprints of the data that passed, xxh3-128 in hex.

    Attributes:
        outputs: by the tensor's key.
        inputs: for each ingredient, of the tensors that were read, by their name in its files.
    """

    outputs: dict[str, str]
    inputs: tuple[dict[str, str], ...]


def default_threads() -> int:
    """Threads of a mix: one for each processor this process may use, at most 16."""
    return max(
        1,
        min(
            16,
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
        ),
    )


def stream(
    plan: Plan,
    sink: Sink,
    *,
    threads: int | None = None,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> Digests:
    """Mix every tensor of ``plan`` and hand the result to ``sink`` in blocks.

    Args:
        threads: of reading, mixing and writing; the result does not depend on it.
        block: elements at a time; the result does not depend on it.

    Raises:
        CheckpointError: an ingredient cannot be read any more.
        NonFiniteError: a mixed tensor holds NaN or infinity.
    """
    segments = [
        (tensor, start, stop)
        for tensor in plan.tensors
        for start, stop in block_bounds(tensor.numel, SEGMENT)
    ]
    stopped = Event()
    workspaces = local()

    def run(tensor: MixedTensor, start: int, stop: int) -> list[bytes]:
        if not hasattr(workspaces, "mixer"):
            torch.set_num_threads(1)  # the threads here are the parallelism
            workspaces.mixer = _SegmentMixer(reader, block)
        mixer: _SegmentMixer = workspaces.mixer
        return mixer.run(tensor, start, stop, sink, progress, stopped)

    with TensorReader() as reader, _restored_torch_threads():
        executor = ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="mix")
        try:
            futures = [executor.submit(run, *segment) for segment in segments]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
            executor.shutdown(cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()
        hashes = [future.result() for future in futures]
    return _gather(plan, segments, hashes)


@contextmanager
def _restored_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _SegmentMixer:
    """One thread's memory, and the loop over the blocks of a segment."""

    def __init__(self, reader: TensorReader, block: int) -> None:
        self.reader = reader
        self.block = block
        # Wide enough for fp64; pages that narrower types do not touch are never allocated.
        self.raw = torch.empty(block * 8, dtype=torch.uint8)
        self.term = torch.empty(block * 8, dtype=torch.uint8)
        self.sum = torch.empty(block * 8, dtype=torch.uint8)
        self.rounded = torch.empty(block * 8, dtype=torch.uint8)

    def run(
        self,
        tensor: MixedTensor,
        start: int,
        stop: int,
        sink: Sink,
        progress: Progress | None,
        stopped: Event,
    ) -> list[bytes]:
        """Mix elements ``start:stop``; returns the digests of the output and of each source."""
        output = xxhash.xxh3_128()
        inputs = [xxhash.xxh3_128() for _ in tensor.active]
        for low, high in block_bounds(stop - start, self.block):
            if stopped.is_set():
                break
            mixed = self._mix(tensor, start + low, start + high, inputs)
            output.update(block_bytes(mixed))
            sink(tensor, start + low, mixed)
            if progress is not None:
                progress(mixed.nbytes)
        return [output.digest(), *(hasher.digest() for hasher in inputs)]

    def _mix(
        self, tensor: MixedTensor, start: int, stop: int, inputs: Sequence[xxhash.xxh3_128]
    ) -> torch.Tensor:
        blocks = self._blocks(tensor, start, stop, inputs)
        if tensor.is_copy:
            mixed = next(blocks)
            _require_finite(mixed, mixed.dtype, tensor)
            return mixed
        size = stop - start
        total = self._sum_dtype(tensor)
        out = self.sum.view(total)[:size]
        term = self.term.view(total)[:size]
        accumulate(blocks, [source.weight for source in tensor.active], out=out, term=term)
        dtype = torch_dtype(tensor.dtype)
        _require_finite(out, dtype, tensor)
        return out if dtype == total else self.rounded.view(dtype)[:size].copy_(out)

    def _blocks(
        self, tensor: MixedTensor, start: int, stop: int, inputs: Sequence[xxhash.xxh3_128]
    ) -> Iterator[torch.Tensor]:
        for source, hasher in zip(tensor.active, inputs, strict=True):
            block = self.reader.read(source.info, start, stop, self.raw)
            hasher.update(block_bytes(block))
            yield block

    @staticmethod
    def _sum_dtype(tensor: MixedTensor) -> torch.dtype:
        """fp32, whatever goes in; fp64 only if that is what is written."""
        return torch.float64 if tensor.dtype == "F64" else torch.float32


def _require_finite(block: torch.Tensor, dtype: torch.dtype, tensor: MixedTensor) -> None:
    """Refuse what is not finite, or would not be once it is rounded to ``dtype``."""
    if not block.is_floating_point() or block.numel() == 0:
        return
    limit = torch.finfo(dtype).max
    if block.dtype == torch.float32:
        # One cheap pass: a sum of squares below the limit's square proves every element finite
        # and in range. Where it proves nothing, look closely.
        norm = float(torch.dot(block, block))
        if norm <= min(limit * limit, torch.finfo(torch.float32).max):
            return
    if bool(block.isfinite().all()) and bool(block.to(dtype).isfinite().all()):
        return
    worst = float(block[~block.isfinite()][0]) if not bool(block.isfinite().all()) else None
    found = f"holds {worst}" if worst is not None else f"exceeds {limit:g}, the largest {dtype}"
    raise NonFiniteError(
        f"{tensor.key} {found} after mixing - a mixed model has finite weights only - look at the "
        "ingredients with `cocktail inspect`, or write a wider dtype"
    )


def _gather(
    plan: Plan, segments: Sequence[tuple[MixedTensor, int, int]], hashes: Sequence[list[bytes]]
) -> Digests:
    """Join the digests of a tensor's segments, in order, into one for the tensor."""
    outputs: dict[str, list[bytes]] = {tensor.key: [] for tensor in plan.tensors}
    inputs: list[dict[str, list[bytes]]] = [{} for _ in plan.ingredients]
    for tensor in plan.tensors:
        for source in tensor.active:
            inputs[source.ingredient][tensor_key(tensor.part, source.info.name)] = []
    for (tensor, _, _), (output, *sources) in zip(segments, hashes, strict=True):
        outputs[tensor.key].append(output)
        for source, digest in zip(tensor.active, sources, strict=True):
            inputs[source.ingredient][tensor_key(tensor.part, source.info.name)].append(digest)
    return Digests(
        {key: join_segments(parts) for key, parts in outputs.items()},
        tuple({key: join_segments(parts) for key, parts in table.items()} for table in inputs),
    )
