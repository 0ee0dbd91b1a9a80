"""The diagonal of a model's empirical Fisher information: which elements the loss depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cocktail.kinds.task import Task
from cocktail.search.mixture import Mixture


def fisher_information(
    mixture: Mixture,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    advance: Callable[[], object],
) -> dict[str, Tensor]:
    """Measure the model that the mixture holds.

    The empirical Fisher information: the mean over the examples of the squared gradient of one
    example's loss, for the answer that the example gives, not for answers drawn from the model.
    https://arxiv.org/abs/2111.09832, section 3

    Args:
        parameters: by names, of which several may stand for one parameter.
        advance: called after every example.

    Returns:
        By the same names, shaped like the parameters, fp32, on the model's device.
    """
    model, count = mixture.model, len(task.places)
    distinct = {id(parameter): parameter for parameter in parameters.values()}
    sums = {key: torch.zeros_like(parameter.data) for key, parameter in distinct.items()}
    upstream = _row_gradients(task, mixture.rows(task, mixture.weights))
    for example in range(count):
        model.zero_grad(set_to_none=True)
        for batch in task.batches([example]):
            rows = task.forward(model, batch)
            torch.autograd.backward(rows, upstream[batch.rows].to(rows.device, rows.dtype))
        for key, parameter in distinct.items():
            if parameter.grad is not None:
                sums[key].addcmul_(parameter.grad, parameter.grad, value=1 / count)
        advance()
    model.zero_grad(set_to_none=True)
    return {name: sums[id(parameter)] for name, parameter in parameters.items()}


def _row_gradients(task: Task, rows: Tensor) -> Tensor:
    """d(loss of an example)/d(its rows), shape (R, ...): every row belongs to one example, whose
    loss is taken by itself."""
    leaf = rows.detach().clone().requires_grad_()
    one = torch.ones((), dtype=torch.float64)
    losses = [task.losses(task.scores(leaf, [i]), one) for i in range(len(task.places))]
    (gradient,) = torch.autograd.grad(torch.cat(losses).sum(), leaf)
    return gradient
