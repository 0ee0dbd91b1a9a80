"""Fingerprints of tensors by xxh3-128, which runs at memory speed and costs next to nothing.

A tensor's digest is that of the digests of its segments of 2^24 elements, in order, so that
different threads can hash segments. The digest of a set of tensors is that of its lines
``name digest``, sorted by name, so that it does not depend on how they are spread over files.
Digests reveal damage and distinguish versions; they do not protect against forgery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

import numpy as np
import xxhash

from cocktail.checkpoint.model import Checkpoint, tensor_key
from cocktail.system.threads import one_torch_thread
from cocktail.tensors.dtypes import ITEM_SIZE, Bytes
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import BLOCK, TensorReader, block_bounds

SEGMENT = 1 << 24
"""Elements that are hashed in one run. Recorded digests depend on it, so it must never change."""
SegmentDigests = list[bytes]
"""The digests of a segment of the output, and of that segment of each source that was read."""
METHOD = "xxh3-128 over the tensors' names and data, in segments of 2^24 elements"


def join_segments(segments: Iterable[bytes]) -> str:
    """A tensor's digest in hex, from those of its segments."""
    return xxhash.xxh3_128(b"".join(segments)).hexdigest()


def join_tensors(digests: Mapping[str, str]) -> str:
    """The digest of a set of tensors in hex, from their own by name."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return xxhash.xxh3_128(lines.encode()).hexdigest()


def checkpoint_digest(
    checkpoint: Checkpoint, left_out: Iterable[str], progress: Callable[[int], None]
) -> str:
    """Read a checkpoint and compute its digest over all tensors that have elements.

    Args:
        left_out: names of tensors to leave out.
        progress: called with the number of bytes just read.

    Raises:
        CheckpointError: it cannot be read.
    """
    skipped = set(left_out)
    digests = {}
    buffer = np.empty(BLOCK * 8, np.uint8)
    # An adapter's change is multiplied out.
    adapted = any(info.delta is not None for _, info in checkpoint)
    with TensorReader() as reader, one_torch_thread() if adapted else nullcontext():
        for path, part in checkpoint.parts.items():
            for info in part.tensors.values():
                name = tensor_key(path, info.name)
                # A mix records no digest of empty tensors, as it reads nothing of them.
                if info.numel and name not in skipped:
                    digests[name] = tensor_digest(reader, info, buffer, progress)
    return join_tensors(digests)


def tensor_digest(
    reader: TensorReader, info: TensorInfo, buffer: Bytes, progress: Callable[[int], None]
) -> str:
    """Read a tensor and compute its digest; see ``checkpoint_digest``."""
    segments = []
    for start, stop in block_bounds(info.numel, SEGMENT):
        hasher = xxhash.xxh3_128()
        for low, high in block_bounds(stop - start, BLOCK):
            block = reader.read_bytes(info, start + low, start + high, buffer)
            hasher.update(block.data)
            progress((high - low) * ITEM_SIZE[info.dtype])
        segments.append(hasher.digest())
    return join_segments(segments)
