"""The door to the shortcuts: one forward of a cross-encoder, and what surrounds its forwards.

What stands in ``fast/`` computes less and changes nothing. Only this room imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from reranker_ft.errors import ModelError
from reranker_ft.model.fast.attention import attention_without_plans as attention_without_plans
from reranker_ft.model.fast.bf16_layers import bf16_layers, has_bf16_layers
from reranker_ft.model.fast.bf16_layers import drop_bf16_layers as drop_bf16_layers
from reranker_ft.model.fast.bf16_layers import keep_bf16_layers as keep_bf16_layers
from reranker_ft.model.fast.dropout import FastDropout, fast_dropout
from reranker_ft.model.fast.embedding import looked_up_once as looked_up_once
from reranker_ft.model.fast.first_token import last_layer_at_first_token, layers_below_first_token
from reranker_ft.model.fast.kept_memory import keep_freed_memory as keep_freed_memory
from reranker_ft.model.fast.unpadded import Row, unpadded
from reranker_ft.model.readout import readout_of
from reranker_ft.model.turns import turn


def forward_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the (B,) raw scores of one micro-batch, in fp32.

    Threads may share a model: they take turns where the shortcut is in its layers. A call of the
    model itself meanwhile, past this function, meets that shortcut.

    Raises:
        ModelError: The model does not give one logit per pair.
    """
    readout = readout_of(model)
    if readout is not None and readout.yes is not None:
        return readout.scores(model, inputs)
    with _shortcuts(model, inputs):
        logits = model(**inputs).logits  # (B, 1)
    if logits.ndim != 2 or logits.shape[1] != 1:
        raise ModelError(
            f"the model gives logits of shape {tuple(logits.shape)} for {len(logits)} pairs - a "
            "reranker gives one score per pair - load it with num_labels=1"
        )
    scores: Tensor = logits[:, 0].float()
    return scores


@contextmanager
def _shortcuts(model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[None]:
    if any("_orig_mod" in module._modules for module in model.modules()):
        yield  # torch.compile made code of its own, and would make it anew every time
        return
    on_cpu = inputs["input_ids"].device.type == "cpu"
    with (
        fast_dropout(model) if on_cpu else nullcontext() as dropout,
        _positions_that_count(model, inputs, dropout),
    ):
        yield


@contextmanager
def _positions_that_count(
    model: nn.Module, inputs: dict[str, Tensor], dropout: FastDropout | None
) -> Iterator[None]:
    layers = layers_below_first_token(model)
    if layers is None:
        yield
        return
    row = Row.of(inputs)
    if row is None:
        shortcut = last_layer_at_first_token(layers)
    elif has_bf16_layers(model):
        shortcut = bf16_layers(model, row)
    else:
        shortcut = unpadded(layers, row, dropout)
    # The layers hold what they compute instead, for all threads that share them.
    with turn(layers[-1]), shortcut:
        yield
