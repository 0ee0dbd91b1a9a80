"""What a mix writes: tensors, with everything each is made of, and the files that hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cocktail.checkpoint.model import tensor_key
from cocktail.methods.method import Method
from cocktail.numbers import shares
from cocktail.plan.alignment import Source
from cocktail.plan.vocabularies import Run
from cocktail.tensors.bf16 import SUMMED
from cocktail.tensors.dtypes import FLOATING, ITEM_SIZE
from cocktail.tensors.headers import build_header
from cocktail.tensors.info import TensorInfo
from cocktail.tensors.reading import ROWS


@dataclass(frozen=True)
class Merge:
    """How to make a tensor that is more than a weighted sum.

    Attributes:
        options: the method's options; those that differ by model are tuples.
        base: what the models are compared with, where the method has a base.
        seed: the recipe's seed.
        statistics: what was measured for each source, where the method asks for it; files of
            numbers that are not ingredients.
    """

    method: Method
    options: Mapping[str, Any]
    base: Source | None
    seed: int
    statistics: tuple[TensorInfo, ...] = ()


@dataclass(frozen=True)
class MixedTensor:
    """One tensor of the output.

    Attributes:
        part: where it belongs, ``MAIN`` for the model itself.
        name: in the file it is written to.
        dtype: the safetensors code of the type it is written in.
        sources: what it is made of: all ingredients that have it, in recipe order, without the base
            of ``merge``.
        merge: the method that combines the sources; ``None`` for their weighted sum.
        first: for a piece of a larger tensor, the element of that tensor at which it starts.
        pieces: the tensors it is joined from, in order, where its rows come from different sources.
    """

    part: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    merge: Merge | None = None
    first: int = 0
    pieces: tuple[MixedTensor, ...] = ()

    def in_pieces(self, runs: Sequence[Run], sources: Sequence[Source]) -> MixedTensor:
        """The same tensor with its rows aligned by token.

        Rows that all ingredients have are made as the whole would be; others are averaged over the
        models that have them, in the proportions of their weights, or come from the base.

        Args:
            runs: the runs of rows.
            sources: the sources of all ingredients.
        """
        return replace(self, pieces=tuple(self._piece(run, sources) for run in runs))

    def _piece(self, run: Run, sources: Sequence[Source]) -> MixedTensor:
        cut = {
            source.ingredient: replace(source, info=source.info.rows(place, run.count))
            for source, place in zip(sources, run.rows, strict=True)
            if place is not None
        }
        own = tuple(
            replace(source, info=cut[source.ingredient].info)
            for source in self.sources
            if source.ingredient in cut
        )
        merge = self.merge
        if len(cut) < len(sources):
            weights = [source.weight if merge is None else 1.0 for source in own]
            own = tuple(map(_weighted, own or cut.values(), shares(weights) if own else [1.0]))
            merge = None
        elif merge is not None and merge.base is not None:
            base = cut[merge.base.ingredient]
            merge = replace(merge, base=base)
        shape = (run.count, *self.shape[1:])
        return replace(
            self, shape=shape, sources=own, merge=merge,
            first=run.start * math.prod(self.shape[1:]),
        )  # fmt: skip

    def measured(self, statistics: Sequence[TensorInfo]) -> MixedTensor:
        """The same tensor with a statistic of each source; without any, the sources' average."""
        if self.merge is None:
            return self
        if statistics:
            return replace(self, merge=replace(self.merge, statistics=tuple(statistics)))
        parts = shares([source.weight for source in self.sources])
        return replace(self, merge=None, sources=tuple(map(_weighted, self.sources, parts)))

    def reweighted(self, weights: Sequence[float]) -> MixedTensor:
        """The same weighted sum with other weights (K,); copies stay copies.

        A tensor that only some ingredients have keeps the proportions of their weights.
        """
        if len(self.sources) == 1:
            return self
        if self.pieces:
            pieces = tuple(piece.reweighted(weights) for piece in self.pieces)
            return replace(self, pieces=pieces)
        own = [weights[source.ingredient] for source in self.sources]
        if len(own) < len(weights):
            own = shares(own)
        sources = tuple(
            replace(source, weight=weight) for source, weight in zip(self.sources, own, strict=True)
        )
        return replace(self, sources=sources)

    @property
    def key(self) -> str:
        return tensor_key(self.part, self.name)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_SIZE[self.dtype]

    def block_bytes(self, block: int) -> int:
        """The most bytes that ``block`` of its elements take: as read, summed or written."""
        read = (ITEM_SIZE[source.info.read_dtype] for source in self.active)
        return min(block, self.numel) * max(ITEM_SIZE["F32"], ITEM_SIZE[self.dtype], *read)

    @cached_property
    def active(self) -> tuple[Source, ...]:
        """The sources that are read, the base last.

        In a sum, zero times a tensor adds nothing, not even a signed zero.
        """
        if self.merge is None:
            return tuple(source for source in self.sources if source.weight != 0)
        return (*self.sources, *([self.merge.base] if self.merge.base else []))

    @cached_property
    def is_copy(self) -> bool:
        """Whether it is the bytes of one ingredient, unchanged."""
        return (
            self.merge is None
            and len(self.active) == 1
            and self.active[0].weight == 1
            and self.active[0].info.read_dtype == self.dtype
        )

    @cached_property
    def is_plain_sum(self) -> bool:
        """Whether NumPy can make it: a sum of fp32, bf16 and fp16, or a copy of integers."""
        if self.merge is not None or not all(source.info.is_plain for source in self.active):
            return False
        if self.is_copy and self.dtype not in FLOATING:
            return True
        return self._floats <= SUMMED

    @cached_property
    def halves(self) -> int:
        """The number of fp16 elements that a sum reads and writes."""
        if self.merge is not None or "F16" not in self._floats:
            return 0
        codes = [self.dtype, *(source.info.dtype for source in self.active)]
        return self.numel * codes.count("F16")

    @cached_property
    def _floats(self) -> set[str]:
        return {self.dtype, *(source.info.dtype for source in self.active)}

    @property
    def is_whole(self) -> bool:
        """Whether it must be made in one piece, because each element depends on the others."""
        return self.merge is not None and not self.merge.method.elementwise

    @property
    def is_measured(self) -> bool:
        """Whether its method uses a statistic of each source."""
        return self.merge is not None and self.merge.method.statistic is not None

    @property
    def statistic_numel(self) -> int:
        """The most elements that its method measures for one source: only a linear layer has a Gram
        matrix."""
        kind = None if self.merge is None else self.merge.method.statistic
        if kind == "gram":
            return self.shape[1] ** 2 if len(self.shape) == 2 else 0
        return self.numel if kind == "fisher" else 0

    @property
    def whole_numel(self) -> int:
        """Elements in fp32 that making it in one piece takes.

        The sources and two more tensors; with Gram matrices, two of these, and room for ``ROWS``
        rows in fp64; with singular vectors, the sources, one more tensor, and ten squares of a
        matrix's shorter side.
        """
        if self.merge is not None and self.merge.method.singular and len(self.shape) == 2:
            return self.numel * (len(self.active) + 1) + 10 * min(self.shape) ** 2
        gram, held = self.statistic_numel, self.numel * (len(self.active) + 2)
        if not gram:
            return held
        height, width = self.shape
        return held + 2 * gram + ROWS * (4 * height + 16 * width)


def _weighted(source: Source, weight: float) -> Source:
    return replace(source, weight=weight)


@dataclass(frozen=True)
class OutputFile:
    """A file of weights in the output.

    Attributes:
        path: relative to the output folder.
        tensors: in the order of their data.
        is_safetensors: whether it is a safetensors file; otherwise it is a small state dict from
            ``torch.save``.
    """

    path: str
    tensors: tuple[MixedTensor, ...]
    is_safetensors: bool

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def header(self, metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
        """The first bytes of the file and each tensor's offset; see ``build_header``."""
        return build_header([(t.name, t.dtype, t.shape) for t in self.tensors], metadata)
