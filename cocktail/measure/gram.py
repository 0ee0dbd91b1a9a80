"""Gram matrices of the inputs of a model's linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cocktail.errors import PlanError
from cocktail.measure.memory import GRAMS_AT_ONCE
from cocktail.measure.mixture import Mixture
from cocktail.measure.tasks.task import Task


def gram_groups(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> list[dict[str, nn.Parameter]]:
    """The weights of the linear layers, by name, in groups to be measured in one run on the
    examples: each has at most ``GRAMS_AT_ONCE`` bytes of Gram matrices, or a single larger one.

    Raises:
        PlanError: the model has no linear layer.
    """
    layers = _linear_layers(model, parameters)
    if not layers:
        raise PlanError(
            [
                f"{type(model).__name__} has no torch.nn.Linear layer of its own - regmean "
                "merges these and only averages the rest - merge by another method"
            ]
        )
    groups: list[dict[str, nn.Parameter]] = []
    filled = GRAMS_AT_ONCE
    for name, own in layers.items():
        size = 4 * own[0].in_features ** 2
        if filled + size > GRAMS_AT_ONCE:
            groups.append({})
            filled = 0
        groups[-1][name] = parameters[name]
        filled += size
    return groups


def input_grams(
    mixture: Mixture,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    advance: Callable[[], object],
) -> dict[str, Tensor]:
    """Measure the model that the mixture holds.

    Every text runs by itself, so that padding does not count.
    https://arxiv.org/abs/2212.09849, section 4

    Args:
        parameters: weights of linear layers by name, see :func:`gram_groups`.
        advance: called after every example.

    Returns:
        X^T X (in, in) of the inputs X (tokens, in) of each linear layer, by the name of its
        weights, fp32, on the model's device.
    """
    model = mixture.model
    layers = _linear_layers(model, parameters)
    grams = {
        name: torch.zeros((own[0].in_features,) * 2, device=model.device)
        for name, own in layers.items()
    }
    with _hooked(layers, grams), torch.no_grad():
        for example in range(len(task.places)):
            for batch in task.batches(mixture.forward_tokens, [example]):
                for inputs in _unpadded(batch.inputs):
                    model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
            advance()
    return grams


def _linear_layers(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[str, list[nn.Linear]]:
    """The layers that have each weight, by its name; weights that other modules share, such as a
    tied output embedding, are left out."""
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for own in module.parameters(recurse=False):
            users.setdefault(id(own), []).append(module)
    found: dict[str, list[nn.Linear]] = {}
    for name, parameter in parameters.items():
        modules = users[id(parameter)]
        linear = [m for m in modules if isinstance(m, nn.Linear) and m.weight is parameter]
        if linear and len(linear) == len(modules):
            found[name] = linear
    return found


@contextmanager
def _hooked(layers: Mapping[str, list[nn.Linear]], grams: Mapping[str, Tensor]) -> Iterator[None]:
    """Sum the inputs' Gram matrices over all calls of these layers."""

    def adding_to(gram: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            rows = arguments[0].reshape(-1, gram.shape[0]).to(gram.dtype)
            gram.addmm_(rows.T, rows)

        return add

    handles = [
        layer.register_forward_pre_hook(adding_to(grams[name]))
        for name, own in layers.items()
        for layer in own
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unpadded(inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The texts of a batch (B, L) one by one (1, L'), without masked positions."""
    for row in range(len(inputs["input_ids"])):
        alone = {}
        for name, tensor in inputs.items():
            side = "decoder_" if name.startswith("decoder_") else ""
            mask = inputs.get(f"{side}attention_mask")
            own = tensor[row] if mask is None else tensor[row][mask[row].bool()]
            alone[name] = own[None]
        yield alone
