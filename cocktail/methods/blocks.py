"""Walk over large tensors in pieces that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

BLOCK = 1 << 18
"""Elements at a time: a handful of such blocks in fp32 fit a core's caches. With smaller ones, the
threads of a mix spend their time passing the interpreter to each other."""


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements in order, shape (n,); a view if it is contiguous."""
    return tensor.reshape(-1)


def blocks_of(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Views of the same elements of every tensor, ``BLOCK`` at a time.

    Args:
        tensors: each of shape (n,).
    """
    for start in range(0, tensors[0].numel(), BLOCK):
        yield [tensor[start : start + BLOCK] for tensor in tensors]
