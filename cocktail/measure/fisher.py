"""The diagonal of a model's empirical Fisher information: how the loss depends on each element."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cocktail.measure.mixture import Mixture
from cocktail.measure.tasks.task import Batch, Task
from cocktail.system.heap import trim_heap


def fisher_information(
    mixture: Mixture,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    advance: Callable[[], object],
) -> dict[str, Tensor]:
    """Measure the model that the mixture holds.

    The empirical Fisher information is the mean over the examples of the squared gradient of one
    example's loss, for the example's own answer, not for answers drawn from the model.
    https://arxiv.org/abs/2111.09832, section 3

    Args:
        parameters: by name; several names may share one parameter.
        advance: called after every example.

    Returns:
        By the same names, shaped like the parameters, fp32, on the model's device.
    """
    model, count = mixture.model, len(task.places)
    sums = {parameter: torch.zeros_like(parameter.data) for parameter in parameters.values()}
    upstream = _row_gradients(task, mixture.rows(task, mixture.weights))

    def run(batch: Batch) -> None:
        rows = task.forward(model, batch)
        torch.autograd.backward(rows, upstream[batch.rows].to(rows.device, rows.dtype))
        trim_heap()

    model.zero_grad(set_to_none=True)
    for example in range(count):
        *others, last = task.batches(mixture.backward_tokens, [example])
        for batch in others:
            run(batch)
        with _squaring(sums, 1 / count):
            run(last)
        model.zero_grad(set_to_none=True)
        advance()
    return {name: sums[parameter] for name, parameter in parameters.items()}


@contextmanager
def _squaring(sums: Mapping[nn.Parameter, Tensor], share: float) -> Iterator[None]:
    """Add the square of each gradient as soon as a backward has computed it, and release it: where
    an example is one batch, the gradients are never held together."""

    def add(parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        if gradient is not None:
            sums[parameter].addcmul_(gradient, gradient, value=share)
            parameter.grad = None

    handles = [
        parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
        for parameter in sums
    ]
    try:
        yield
        for parameter in sums:
            add(parameter)  # not reached by the last of several batches
    finally:
        for handle in handles:
            handle.remove()


def _row_gradients(task: Task, rows: Tensor) -> Tensor:
    """d(loss of an example)/d(its rows), shape (R, ...), where every row belongs to one example."""
    leaf = rows.detach().clone().requires_grad_()
    one = torch.ones((), dtype=torch.float64)
    losses = [task.losses(task.scores(leaf, [i]), one) for i in range(len(task.places))]
    (gradient,) = torch.autograd.grad(torch.cat(losses).sum(), leaf)
    return gradient
