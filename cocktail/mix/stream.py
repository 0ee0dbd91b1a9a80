"""The engine: the only place where weights meet tensors.

Every tensor is cut into segments of a fixed number of elements, which are distributed to threads,
or to processes where NumPy sums. Each makes its segment block by block: read a block of every
ingredient, combine them in fp32 in recipe order, round the result to the output's type, and pass it
to the sink. Nothing larger than a block is held, so memory depends neither on the model nor, for a
weighted sum, on the number of ingredients. A method that needs a whole tensor gets it; such tensors
together never take more room than the largest one. No result depends on the number of threads or
processes, or on the size of a block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Event, local

from cocktail.checkpoint.model import tensor_key
from cocktail.mix.digests import SEGMENT, SegmentDigests, join_segments
from cocktail.mix.worker import Progress, Sink, Worker
from cocktail.plan.mixed_tensor import MixedTensor
from cocktail.plan.plan import Plan
from cocktail.system.threads import default_threads, one_torch_thread
from cocktail.tensors.dtypes import ITEM_SIZE
from cocktail.tensors.reading import BLOCK, TensorReader, block_bounds

Job = tuple[MixedTensor, int, int]
"""A tensor, and the range of its elements that one thread makes."""


_ELEMENTS_A_JOB = 1 << 16
"""With fewer, threads wait for the interpreter rather than for memory, and one alone is faster."""
_ELEMENTS_TO_FORK = 1 << 26
"""Of a model; smaller ones are mixed before processes have begun."""
_SUM_BLOCK = 1 << 17
"""Elements of a block that NumPy sums: in fp32, the sum stays in an L2 cache of two megabytes from
the first ingredient to the rounding."""


@dataclass(frozen=True)
class Digests:
    """Fingerprints, xxh3-128 in hex, of the data that was processed.

    Attributes:
        outputs: by the tensor's key; without those that were joined from pieces.
        inputs: for each ingredient, those of the tensors that were read whole, by their name in its
            files.
    """

    outputs: dict[str, str]
    inputs: tuple[dict[str, str], ...]


def stream(
    plan: Plan,
    sink: Sink,
    *,
    threads: int | None = None,
    block: int | None = None,
    progress: Progress | None = None,
    forks: bool = False,
) -> Digests:
    """Mix every tensor of ``plan`` and pass the result to ``sink`` in blocks.

    Args:
        threads: how many threads or processes read, mix and write; the result does not depend on
            it. By default, one per processor, or a single one if the tensors are small.
        block: elements to process at a time; the result does not depend on it. By default, fewer
            for sums by NumPy than for methods, whose many calls take a time of their own.
        forks: whether copies of this process may call the sink, which then only writes to
            descriptors. Large sums that need no torch are then made in processes.

    Raises:
        CheckpointError: an ingredient can no longer be read.
        NonFiniteError: a mixed tensor holds NaN or infinity.
    """
    make_worker = _worker_for(plan)
    block = block or (_SUM_BLOCK if make_worker is Worker else BLOCK)
    jobs = _jobs(plan)
    count = threads or _useful_threads(jobs)
    arguments = block, plan.block_bytes(block), sink
    if forks and make_worker is Worker and count > 1 and _elements(jobs) >= _ELEMENTS_TO_FORK:
        from cocktail.mix.processes import can_fork  # noqa: PLC0415 - tens of milliseconds

        digests = _in_processes(jobs, count, arguments, progress) if can_fork() else None
        if digests is not None:
            return _gather(plan, jobs, digests)
    return _gather(plan, jobs, _in_threads(jobs, count, make_worker, arguments, progress))


def _in_processes(
    jobs: Sequence[Job], count: int, arguments: tuple[int, int, Sink], progress: Progress | None
) -> list[list[SegmentDigests]] | None:
    """Segments that NumPy sums, without torch; ``None`` if no processes can be started."""
    from cocktail.mix.processes import in_processes  # noqa: PLC0415

    def make() -> Callable[[Job], list[SegmentDigests]]:
        worker = Worker(TensorReader(), *arguments, None, Event())
        return lambda job: worker.run(*job)

    def done(job: Job) -> None:
        tensor, start, stop = job
        if progress is not None:
            progress((stop - start) * ITEM_SIZE[tensor.dtype])

    return in_processes(make, jobs, count, done)


def _in_threads(
    jobs: Sequence[Job],
    count: int,
    make_worker: Callable[..., Worker],
    arguments: tuple[int, int, Sink],
    progress: Progress | None,
) -> list[list[SegmentDigests]]:
    has_torch = _has_torch()  # the sink may use it even where the mix does not
    stopped = Event()
    workers = local()

    def start_thread() -> None:
        if has_torch:
            sys.modules["torch"].set_num_threads(1)  # the threads here are the parallelism
        workers.own = make_worker(reader, *arguments, progress, stopped)

    def run(tensor: MixedTensor, start: int, stop: int) -> list[SegmentDigests]:
        worker: Worker = workers.own
        return worker.run(tensor, start, stop)

    with TensorReader() as reader, one_torch_thread() if has_torch else nullcontext():
        executor = ThreadPoolExecutor(count, "mix", initializer=start_thread)
        try:
            futures = [executor.submit(run, *job) for job in jobs]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
            executor.shutdown(cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()
        return [future.result() for future in futures]


def _worker_for(plan: Plan) -> Callable[..., Worker]:
    """What makes a thread's worker: one without torch, which takes a second to import, if the plan
    has only sums of plain tensors. Where torch is there, its fewer and longer calls are better
    shared among threads."""
    if plan.is_plain_sum and not _has_torch():
        return Worker
    from cocktail.mix.torch_worker import MergingWorker, Room  # noqa: PLC0415 - imports torch

    largest = max((piece.whole_numel for piece in plan.pieces if piece.is_whole), default=0)
    return partial(MergingWorker, Room(largest))


def _has_torch() -> bool:
    return "torch" in sys.modules


def _jobs(plan: Plan) -> list[Job]:
    """The segments in file order, after the tensors that are made whole, the largest first, so that
    no thread is left alone with one at the end."""
    whole = sorted((piece for piece in plan.pieces if piece.is_whole), key=lambda t: -t.numel)
    segments = [
        (tensor, start, stop)
        for tensor in plan.pieces
        if not tensor.is_whole
        for start, stop in block_bounds(tensor.numel, SEGMENT)
    ]
    return [*((tensor, 0, tensor.numel) for tensor in whole), *segments]


def _useful_threads(jobs: Sequence[Job]) -> int:
    return default_threads() if _elements(jobs) >= _ELEMENTS_A_JOB * len(jobs) else 1


def _elements(jobs: Sequence[Job]) -> int:
    return sum(stop - start for _, start, stop in jobs)


def _gather(plan: Plan, jobs: Sequence[Job], digests: Sequence[list[SegmentDigests]]) -> Digests:
    """Join the digests of each tensor's segments, in order, into one for the tensor."""
    outputs: dict[str, list[bytes]] = {}
    inputs: list[dict[str, list[bytes]]] = [{} for _ in plan.ingredients]
    whole = {tensor.key for tensor in plan.tensors if not tensor.pieces}
    for (tensor, _, _), segments in zip(jobs, digests, strict=True):
        for output, *sources in segments if tensor.key in whole else ():
            outputs.setdefault(tensor.key, []).append(output)
            for source, digest in zip(tensor.active, sources, strict=True):
                name = tensor_key(tensor.part, source.info.name)
                inputs[source.ingredient].setdefault(name, []).append(digest)
    return Digests(
        {key: join_segments(parts) for key, parts in outputs.items()},
        tuple({key: join_segments(parts) for key, parts in table.items()} for table in inputs),
    )
