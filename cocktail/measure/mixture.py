"""One model in memory that is refilled, run and differentiated at any mixing weights.

As theta(w) = sum_i w_i theta_i, dL/dw_i = <dL/dtheta, theta_i>. So the gradient with respect to the
parameters, from one backward, and one pass over the ingredients' files give all K derivatives
exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cocktail.checkpoint.model import MAIN
from cocktail.errors import CheckpointError, CocktailError, PlanError, counted, listed
from cocktail.measure.in_memory import ModelInMemory, put_block
from cocktail.measure.processes import Processes
from cocktail.measure.tasks.task import BACKWARD_SHARE, Batch, Task, token_budget
from cocktail.mix.stream import stream
from cocktail.plan.mixed_tensor import MixedTensor
from cocktail.plan.plan import Plan
from cocktail.system.collector import collection_paused
from cocktail.system.heap import trim_heap
from cocktail.system.threads import default_threads
from cocktail.tensors.dtypes import Bytes
from cocktail.tensors.reading import BLOCK, TensorReader, block_bounds

BACKWARD_COST = 2.0
"""The cost of a backward in forwards: it multiplies twice where a forward does once."""

Weights = npt.NDArray[np.float64]


@dataclass
class Cost:
    """What a search has spent.

    Attributes:
        forwards: passes over the target's examples; a backward counts as two.
        mixes: how often the model was refilled from the ingredients' files.
    """

    forwards: float = 0.0
    mixes: int = 0


@dataclass
class Mixture:
    """K ingredients as one model.

    Args:
        plan: the plan of the mix; its dtype is the model's. In fp32 (or fp64) nothing is rounded
            between the ingredients and the model.
        device: where the model runs.
        trust_remote_code: run custom code to build the model and its tokenizer.
        threads: how many threads read the ingredients.

    Attributes:
        homes: the model's parameter for each mixed tensor, by the tensor's name.
        forward_tokens: padded tokens of a batch; fewer once the device has run out of memory.

    Raises:
        PlanError: the model cannot be built, or not around the mixed tensors.
        CocktailError: it does not fit into the device's memory.
    """

    plan: Plan
    device: torch.device
    trust_remote_code: bool = False
    threads: int | None = None
    processes: Processes = field(default_factory=Processes)
    cost: Cost = field(default_factory=Cost)
    unit_tokens: int = 1
    """Padded tokens of one forward equivalent."""
    ran: Callable[[], object] = lambda: None
    """Called whenever the model has run at some weights, forward or backward."""

    filled: Callable[[Any], object] = lambda model: None
    """Called with the model whenever it has got other weights."""

    def __post_init__(self) -> None:
        self.weights: Weights = np.array(self.plan.recipe.weights)
        memory = ModelInMemory(self.plan, trust_remote_code=self.trust_remote_code)
        stream(self.plan, memory.write_block, threads=self.threads)
        self.cost.mixes += 1
        model = memory.build()
        self.homes = _homes(model, memory)
        self.forward_tokens = token_budget(self.device)
        try:
            self.model: Any = model.to(self.device)
        except torch.cuda.OutOfMemoryError:
            raise out_of_memory(self.device, "the model") from None

    @property
    def backward_tokens(self) -> int:
        """Padded tokens of a batch that is differentiated."""
        return self.forward_tokens // BACKWARD_SHARE

    @property
    def names(self) -> list[str]:
        return [checkpoint.reference for checkpoint in self.plan.ingredients]

    @collection_paused()
    def tokenizer(self) -> Any:
        """The tokenizer of the ingredient that provides the config.

        Raises:
            CheckpointError: it does not load.
        """
        from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import

        folder = self.plan.donor.main_folder
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(
                f"{folder}: its tokenizer does not load ({reason}) - examples are tokenised with "
                "the first ingredient's tokenizer - save it there"
            ) from None

    def fill(self, weights: Weights) -> None:
        """Mix the ingredients into the model, unless it already holds this mix."""
        if np.array_equal(weights, self.weights):
            return
        homes = self.homes

        def write(tensor: MixedTensor, start: int, block: Bytes) -> None:
            home = homes.get(tensor.name) if tensor.part == MAIN else None
            if home is not None:
                put_block(home.data, start, block, tensor.dtype)

        self.weights = np.full_like(weights, np.nan)  # until it is complete again
        trim_heap()  # what the last forward left behind
        stream(self.plan.reweighted(list(weights)), write, threads=self.threads)
        trim_heap()
        self.filled(self.model)
        self.weights = weights.copy()
        self.cost.mixes += 1

    def rows(
        self,
        task: Task,
        weights: Weights,
        examples: Sequence[int] | None = None,
        *,
        keep: bool = False,
    ) -> Tensor:
        """Run the model at these weights.

        Args:
            examples: only these; the rows of the others stay zero.
            keep: return what ``task.keep`` does instead of plain rows.

        Returns:
            Shape (R, ...), on the CPU.
        """
        self.fill(weights)
        run = task.keep if keep else task.forward
        with torch.no_grad():
            return self._run(task, examples, lambda batch: run(self.model, batch).cpu())

    def gradient(
        self, task: Task, weights: Weights, row_gradient: Tensor, examples: Sequence[int] | None
    ) -> tuple[Tensor, Weights]:
        """Run the model and differentiate the loss with respect to the K weights.

        Args:
            row_gradient: dL/d(row), shape (R, ...).

        Returns:
            The rows (R, ...) on the CPU, and the derivatives (K,).
        """
        self.fill(weights)
        self.model.zero_grad(set_to_none=True)

        def differentiate(batch: Batch) -> Tensor:
            rows = task.forward(self.model, batch)
            upstream = row_gradient[batch.rows].to(rows.device, rows.dtype)
            torch.autograd.backward(rows, upstream)
            return rows.detach().cpu()

        rows = self._run(task, examples, differentiate, backward=True)
        slopes = self.processes.sum(self._dot_ingredients())
        self.model.zero_grad(set_to_none=True)
        return rows, slopes

    def _run(
        self,
        task: Task,
        examples: Sequence[int] | None,
        run: Callable[[Batch], Tensor],
        *,
        backward: bool = False,
    ) -> Tensor:
        """The rows (R, ...) that ``run`` gives for all batches.

        Where the device runs out of memory, a single process continues with batches half as large,
        down to one text each.

        Raises:
            CocktailError: it runs out of memory all the same.
        """
        while True:
            max_tokens = self.backward_tokens if backward else self.forward_tokens
            batches = task.batches(max_tokens, examples)
            failures = np.zeros(1)
            try:
                mine = [run(batch) for batch in self.processes.share(batches)]
            except torch.cuda.OutOfMemoryError:
                failures += 1
            if not self.processes.sum(failures):
                break
            # Only the process that ran a row knows what its task kept of it, so several processes
            # cannot redistribute the rows.
            if self.processes.count > 1 or all(batch.texts == 1 for batch in batches):
                raise out_of_memory(self.device, f"a batch of {batches[0].tokens} tokens")
            self.model.zero_grad(set_to_none=True)
            self.forward_tokens //= 2
        tokens = sum(batch.tokens for batch in batches) / self.unit_tokens
        self.cost.forwards += (1 + BACKWARD_COST if backward else 1) * tokens
        self.ran()
        return _assemble(task.rows, batches, self.processes.gather(mine))

    def _dot_ingredients(self) -> Weights:
        """<dL/dtheta, theta_i> for every ingredient, streamed from the files."""
        work: list[tuple[MixedTensor, Tensor]] = []
        for tensor in self.plan.tensors:
            home = self.homes.get(tensor.name) if tensor.part == MAIN else None
            # A tensor with one source is copied whatever the weights are.
            if home is not None and home.grad is not None and len(tensor.sources) > 1:
                work.append((tensor, home.grad.detach().reshape(-1)))
        spaces = local()
        with TensorReader() as reader:

            def dot(item: tuple[MixedTensor, Tensor]) -> Weights:
                if not hasattr(spaces, "buffer"):
                    spaces.buffer = torch.empty(BLOCK * 8, dtype=torch.uint8)
                tensor, gradient = item
                sums = np.zeros(len(tensor.sources))
                # Millions of products are added up, for which bf16 is too coarse.
                wide = torch.promote_types(gradient.dtype, torch.float32)
                for start, stop in block_bounds(tensor.numel):
                    part = gradient[start:stop].to(wide)
                    for i, source in enumerate(tensor.sources):
                        block = reader.read(source.info, start, stop, spaces.buffer)
                        sums[i] += torch.dot(part, block.to(part.device, part.dtype)).item()
                return sums

            with ThreadPoolExecutor(self.threads or default_threads()) as executor:
                # Added in the order of the tensors, whichever is done first.
                total = np.zeros(len(self.plan.ingredients))
                for sums in executor.map(dot, work):
                    total += sums
        return total


def _homes(model: nn.Module, memory: ModelInMemory) -> dict[str, nn.Parameter]:
    """The parameter for each mixed tensor, by the tensor's name.

    A tensor that the model does not use (the stored copy of a tied embedding) has no home. A
    parameter that two names share is the home of the tensor whose memory it uses, and carries the
    gradient of both uses.

    Raises:
        PlanError: a parameter is not one of the mixed tensors, and refilling would miss it.
    """
    by_address = {
        tensor.data_ptr(): name for name, tensor in memory.tensors.items() if tensor.numel()
    }
    homes: dict[str, nn.Parameter] = {}
    lost = []
    for name, parameter in model.named_parameters():
        stored = by_address.get(parameter.data_ptr())
        if stored is not None and memory.tensors[stored].shape == parameter.shape:
            homes[stored] = parameter
        elif parameter.numel():
            lost.append(name)
    for name, buffer in model.named_buffers():
        stored = by_address.get(buffer.data_ptr())
        if stored is not None and buffer.is_floating_point():
            homes[stored] = buffer  # type: ignore[assignment]  # refilled, never differentiated
        elif name in memory.tensors and buffer.is_floating_point():
            lost.append(name)
    if lost:
        raise PlanError(
            [
                f"transformers rearranges {counted(len(lost), 'tensor')} of this model as it loads "
                f"them ({listed(lost)}) - measuring on examples refills one model in place - mix "
                "by a method and weights that need none"
            ]
        )
    return homes


def out_of_memory(device: torch.device, what: str) -> CocktailError:
    """The error for what does not fit."""
    return CocktailError(
        f"{what} does not fit into the memory of {device} - it must hold one model, and as much "
        "again for a gradient - give shorter texts, search in bfloat16 (--compute-dtype), or use "
        "the CPU (--device cpu; CUDA_VISIBLE_DEVICES= where there is no such option)"
    )


def _assemble(rows: int, batches: Sequence[Batch], outputs: Sequence[Tensor]) -> Tensor:
    """The rows of all batches, put in their places."""
    whole = torch.zeros((rows, *outputs[0].shape[1:]), dtype=outputs[0].dtype)
    for batch, output in zip(batches, outputs, strict=True):
        whole[batch.rows] = output
    return whole


def simplex_vertex(index: int, count: int) -> Weights:
    """(K,) all weight on one ingredient."""
    weights = np.zeros(count)
    weights[index] = 1.0
    return weights
