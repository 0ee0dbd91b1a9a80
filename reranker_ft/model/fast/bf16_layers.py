"""The layers of a BERT-like cross-encoder in bf16 on a CPU that multiplies it, for scoring.

There matrix products are so fast that what surrounds them decides. So the weights are laid out once
as the processor wants them, not in every call; queries, keys and values come out of one product;
and activations and residuals are added where they lie. Products and norms add up in fp32 and the
softmax is computed in it: only what passes between them is rounded to bf16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from reranker_ft.model.fast.first_token import (
    attend,
    classifier_at_first_token,
    layers_below_first_token,
)
from reranker_ft.model.fast.unpadded import Row, cut, has_exact_gelu

_PACKED_FOR = 1024  # rows of a product that the layout suits; others are computed as well
_kept: WeakKeyDictionary[nn.Module, list[_Layer]] = WeakKeyDictionary()


class _Product:
    """x W^T + b of linear layers side by side: (T, h) -> (T, sum of their widths), in bf16."""

    def __init__(self, linears: Sequence[Any]) -> None:
        biases = [
            torch.zeros(each.out_features) if each.bias is None else each.bias for each in linears
        ]
        self._bias = torch.cat(biases).bfloat16()
        self._weight = torch.cat([each.weight for each in linears]).bfloat16()
        operations = torch.ops.mkldnn
        self._is_packed = operations._is_mkldnn_bf16_supported()
        if self._is_packed:
            self._weight = operations._reorder_linear_weight(self._weight, _PACKED_FOR)

    def __call__(self, states: Tensor) -> Tensor:
        if not self._is_packed:
            return functional.linear(states, self._weight, self._bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self._weight, self._bias, "none", [], ""
        )
        return product


class _Layer:
    """One layer with its weights in bf16; norms keep theirs in fp32."""

    def __init__(self, layer: Any, *, is_last: bool) -> None:
        own = layer.attention.self
        self._attention = layer.attention
        self._is_last = is_last
        self._query = _Product([own.query])
        self._key_value = _Product([own.key, own.value])
        self._query_key_value = _Product([own.query, own.key, own.value])
        self._gathered = _Product([layer.attention.output.dense])
        self._wider = _Product([layer.intermediate.dense])
        self._activation: Any = layer.intermediate.intermediate_act_fn
        if has_exact_gelu(layer):
            self._activation = torch.ops.aten.gelu_
        self._narrower = _Product([layer.output.dense])
        self._norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)

    def __call__(self, hidden: Tensor, row: Row) -> Tensor:
        """(T, h) -> (T, h), or (B, h) at the first positions in the last layer."""
        runs = row.runs
        width = hidden.shape[1]
        if self._is_last:
            asking = hidden[row.starts]
            query, asking_runs = self._query(asking), [(count, 1) for count, _ in runs]
            key, value = torch.split(self._key_value(hidden), width, 1)
        else:
            asking, asking_runs = hidden, runs
            query, key, value = torch.split(self._query_key_value(hidden), width, 1)
        heads = self._attention.self.num_attention_heads
        parts = (
            cut(torch.unflatten(each, 1, (heads, -1)), lengths)
            for each, lengths in ((query, asking_runs), (key, runs), (value, runs))
        )
        mixed = [attend(self._attention, *part).flatten(0, 1) for part in zip(*parts, strict=True)]
        first, second = self._norms
        states = _normed(first, self._gathered(torch.cat(mixed)).add_(asking))
        return _normed(second, self._narrower(self._activation(self._wider(states))).add_(states))


def _normed(norm: Any, states: Tensor) -> Tensor:
    return functional.layer_norm(states, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@torch.no_grad()
def keep_bf16_layers(model: nn.Module) -> bool:
    """Lay out copies of the layers' weights, for ``forward_logits`` without gradients.

    Returns:
        Whether the model is of those whose layers are known here.
    """
    layers = layers_below_first_token(model)
    if layers is None or model.training:
        return False
    last = layers[-1]
    _kept[model] = [_Layer(layer, is_last=layer is last) for layer in layers]
    return True


def drop_bf16_layers(model: nn.Module) -> None:
    """Forget the copies: the model computes in its own dtype again."""
    _kept.pop(model, None)


def has_bf16_layers(model: nn.Module) -> bool:
    """Whether forwards without gradients may run in ``bf16_layers``."""
    return model in _kept and not model.training and not torch.is_grad_enabled()


@contextmanager
def bf16_layers(model: nn.Module, row: Row) -> Iterator[None]:
    """Forwards inside compute the layers in bf16 at the tokens of ``row``.

    The layers take the padded hidden states (B, L, h) in fp32, and give (B, 1, h) in fp32.
    """
    layers = _kept[model]

    def forward(hidden: Tensor, *_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        states = row.pack(hidden)[0].bfloat16()
        for layer in layers:
            states = layer(states, row)
        # The stub of the class wants a FloatTensor, which no tensor's type is any more.
        first: Any = states[:, None].float()
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=first)

    classifier: Any = classifier_at_first_token(model)
    encoder = classifier.base_model.encoder
    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward
