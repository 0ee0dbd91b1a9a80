"""Split examples across the processes of ``torchrun``; a single process works alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from cocktail.errors import RecipeError

T = TypeVar("T")


class Processes:
    """This process's share of the work, and the sum over all processes.

    Every process makes the same decisions from the same numbers, so only rows and gradients are
    exchanged. Joins the group that ``torchrun`` announces in the environment.

    Attributes:
        local_rank: the rank among this machine's processes.

    Raises:
        RecipeError: the announced group cannot be joined.
    """

    def __init__(self) -> None:
        announced = os.environ.get("WORLD_SIZE", "1")
        self._started = False
        try:
            self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
            if int(announced) > 1 and dist.is_available() and not dist.is_initialized():
                dist.init_process_group("gloo")
                self._started = True
        except (ValueError, RuntimeError) as error:
            raise RecipeError(
                f"WORLD_SIZE is {announced}, but the processes cannot find each other "
                f"({str(error).strip().splitlines()[0]}) - torchrun starts several and tells each "
                "where the others are - use it, or unset WORLD_SIZE"
            ) from None
        together = dist.is_available() and dist.is_initialized()
        self.count = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th piece, so that pieces sorted by size give even shares."""
        return work[self.rank :: self.count]

    def gather(self, mine: list[Any]) -> list[Any]:
        """The pieces of all processes, in the order before ``share``."""
        if self.count == 1:
            return mine
        parts: list[list[Any]] = [[] for _ in range(self.count)]
        dist.all_gather_object(parts, mine)
        total = sum(map(len, parts))
        return [parts[i % self.count][i // self.count] for i in range(total)]

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum of an array over the processes, added in rank order."""
        parts = [values]
        if self.count > 1:
            parts = [values] * self.count
            dist.all_gather_object(parts, values)
        total: npt.NDArray[np.float64] = np.sum(parts, axis=0)
        return total

    def wait(self) -> None:
        """Wait until all processes have come this far."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the group, if this object joined it."""
        if self._started:
            dist.destroy_process_group()
