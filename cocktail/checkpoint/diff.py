"""Compare two checkpoints tensor by tensor, streamed."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cocktail.checkpoint.model import Checkpoint
from cocktail.checkpoint.prefixes import extra_prefix
from cocktail.checkpoint.resolve import resolve
from cocktail.errors import PlanError
from cocktail.numbers import exact_sum
from cocktail.system.notebook import html_table
from cocktail.system.progress import byte_progress
from cocktail.system.threads import default_threads
from cocktail.tensors.bf16 import in_fp64
from cocktail.tensors.dtypes import FLOATING
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import BLOCK, TensorReader, block_bounds


@dataclass(frozen=True)
class TensorDifference:
    """How far a tensor of B is from the same tensor of A.

    Attributes:
        distance: ||B - A|| / ||A||, Frobenius norms; infinite if A is zero and B is not, NaN if
            they hold NaN or infinities.
        cosine: of the angle between A and B; NaN if one of them is zero or not finite.
    """

    name: str
    numel: int
    distance: float
    cosine: float


@dataclass(frozen=True)
class Difference:
    """How far checkpoint B is from A.

    Attributes:
        tensors: those that both have in the same shape, largest distance first; before all others,
            those without a distance, because they hold NaN or infinities.
        distance: over all of them as one vector.
        cosine: likewise.
        only_in_a: names of tensors that B lacks; ``only_in_b`` the reverse.
        other_shape: names of tensors whose shapes differ.
        a, b: the two, as they were named.
    """

    tensors: tuple[TensorDifference, ...]
    distance: float
    cosine: float
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_shape: tuple[str, ...]
    a: str = ""
    b: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``None`` for what is not finite."""
        return {
            "a": self.a,
            "b": self.b,
            "distance": _finite(self.distance),
            "cosine": _finite(self.cosine),
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "other_shape": list(self.other_shape),
            "tensors": [
                {
                    "name": row.name,
                    "parameters": row.numel,
                    "distance": _finite(row.distance),
                    "cosine": _finite(row.cosine),
                }
                for row in self.tensors
            ],
        }

    def _repr_html_(self) -> str:
        rows = [(r.name, f"{r.distance:.5f}", f"{r.cosine:.5f}") for r in self.tensors[:20]]
        whole = (f"all {len(self.tensors)} tensors", f"{self.distance:.5f}", f"{self.cosine:.5f}")
        return html_table(
            [("tensor", "distance", "cosine"), *rows, whole], f"{self.b} less {self.a}"
        )


def diff_models(
    a: str | Path, b: str | Path, *, threads: int | None = None, progress: bool = True
) -> Difference:
    """Say how far model B is from model A, tensor by tensor; what ``cocktail diff`` does.

    Neither is loaded: both pass block by block.

    Args:
        a, b: local folders, Hub ids or LoRA adapters.
        threads: tensors compared at a time; one for each processor by default.
        progress: show how far it is, on stderr.

    Raises:
        PlanError: they have no floating-point tensor in common.
        CheckpointError: a file cannot be read.
    """
    ours, theirs = resolve(str(a)), resolve(str(b))
    total = sum(info.nbytes for checkpoint in (ours, theirs) for _, info in checkpoint)
    with byte_progress(total, "comparing", shown=progress) as advance:
        found = diff(ours, theirs, threads=threads or default_threads(), progress=advance)
    return replace(found, a=str(a), b=str(b))


def diff(
    a: Checkpoint,
    b: Checkpoint,
    *,
    threads: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Difference:
    """Compare two checkpoints block by block, without loading either.

    Args:
        threads: how many tensors to compare at a time.
        progress: called with the number of bytes just read.

    Raises:
        PlanError: they have no floating-point tensor in common.
        CheckpointError: a file cannot be read.
    """
    ours, theirs = dict(_floating(a)), dict(_floating(b))
    # A model saved under a head carries its class's prefix; the same model saved alone does not.
    ours, theirs = _without(extra_prefix(ours, theirs), ours), theirs
    theirs = _without(extra_prefix(theirs, ours), theirs)
    common = [name for name in ours if name in theirs]
    alike = [name for name in common if ours[name].shape == theirs[name].shape]
    if not alike:
        raise PlanError(
            [
                f"{a.reference} and {b.reference} have no tensor of the same name and shape "
                "- compare checkpoints of one architecture"
            ]
        )
    with TensorReader() as reader, ThreadPoolExecutor(threads) as executor:
        sums = list(
            executor.map(lambda name: _sums(reader, ours[name], theirs[name], progress), alike)
        )
    rows = [
        TensorDifference(name, ours[name].numel, *_measures(*row))
        for name, row in zip(alike, sums, strict=True)
    ]
    rows.sort(key=lambda row: (not math.isnan(row.distance), -row.distance))
    total = map(exact_sum, zip(*sums, strict=True))
    return Difference(
        tuple(rows),
        *_measures(*total),
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
        tuple(name for name in common if name not in alike),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _floating(checkpoint: Checkpoint) -> list[tuple[str, TensorInfo]]:
    return [(key, info) for key, info in checkpoint if info.dtype in FLOATING]


def _without(prefix: str, tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name.removeprefix(prefix): info for name, info in tensors.items()}


def _sums(
    reader: TensorReader, a: TensorInfo, b: TensorInfo, progress: Callable[[int], None]
) -> tuple[float, float, float, float]:
    """Sums of squares of B - A, of A, of B, and of their products."""
    buffers = [np.empty(BLOCK * 8, np.uint8) for _ in range(2)]
    sums = [0.0, 0.0, 0.0, 0.0]
    for start, stop in block_bounds(a.numel):
        x, y = (
            in_fp64(reader.read_bytes(info, start, stop, buffer), info.read_dtype)
            for info, buffer in zip((a, b), buffers, strict=True)
        )
        with np.errstate(invalid="ignore", over="ignore"):  # the result shows it
            gap = y - x
        for i, (left, right) in enumerate(((gap, gap), (x, x), (y, y), (x, y))):
            sums[i] += float(np.dot(left, right))
        progress((a.nbytes + b.nbytes) * (stop - start) // a.numel)
    return sums[0], sums[1], sums[2], sums[3]


def _measures(gap: float, a: float, b: float, product: float) -> tuple[float, float]:
    """Relative distance and cosine from sums of squares and products."""
    if not all(map(math.isfinite, (gap, a, b, product))):
        return math.nan, math.nan
    distance = math.sqrt(gap / a) if a > 0 else (math.inf if gap > 0 else 0.0)
    if not (a > 0 and b > 0):
        return distance, math.nan
    # Two roots: the product of two small squares would be zero.
    return distance, max(-1.0, min(1.0, product / (math.sqrt(a) * math.sqrt(b))))
