"""The door to the shortcuts: one forward of a cross-encoder, and what surrounds its forwards.

What stands in ``fast/`` computes less and changes nothing. Only this room imports it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GenericForSequenceClassification

from reranker_ft.errors import ModelError
from reranker_ft.model.fast.attention import attention_without_plans as attention_without_plans
from reranker_ft.model.fast.bf16_layers import bf16_layers, has_bf16_layers
from reranker_ft.model.fast.bf16_layers import drop_bf16_layers as drop_bf16_layers
from reranker_ft.model.fast.bf16_layers import keep_bf16_layers as keep_bf16_layers
from reranker_ft.model.fast.dropout import FastDropout, fast_dropout
from reranker_ft.model.fast.embedding import looked_up_once as looked_up_once
from reranker_ft.model.fast.first_token import last_layer_at_first_token, layers_below_first_token
from reranker_ft.model.fast.kept_memory import keep_freed_memory as keep_freed_memory
from reranker_ft.model.fast.openvino import has_openvino, openvino_logits
from reranker_ft.model.fast.openvino import keep_openvino as keep_openvino
from reranker_ft.model.fast.packed import PackedRow, packed_attention, packs, window
from reranker_ft.model.fast.packed import shared_batches as shared_batches
from reranker_ft.model.fast.unpadded import Row, unpadded
from reranker_ft.model.fast.varlen import gpu_kernel
from reranker_ft.model.readout import Readout, first_layers, readout_of, unwrapped
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
        return _answers(model, readout, inputs)
    if has_openvino(model):
        logits = openvino_logits(model, inputs)
    elif _reads_last_token(model):
        logits = _logits_at_last_token(model, inputs)
    else:
        with _shortcuts(model, inputs):
            logits = model(**inputs).logits  # (B, 1)
    if logits.ndim != 2 or logits.shape[1] != 1:
        raise ModelError(
            f"the model gives logits of shape {tuple(logits.shape)} for {len(logits)} pairs - a "
            "reranker gives one score per pair - load it with num_labels=1"
        )
    scores: Tensor = logits[:, 0].float()
    return scores


def computes_beginnings_once(model: nn.Module) -> bool:
    """Whether pairs that begin alike are cheaper in one micro-batch than in several."""
    readout, inner = readout_of(model), unwrapped(model)
    if _is_compiled(model) or has_openvino(model):
        return False
    if readout is not None and readout.yes is not None:
        takes = set(inspect.signature(inner.forward).parameters)
        suits = {"logits_to_keep", "position_ids"} <= takes
    else:
        suits = _reads_last_token(model)
    with turn(inner):
        return suits and packs(inner)


def _reads_last_token(model: nn.Module) -> bool:
    """Whether this is a decoder with a head, ``score``, that reads a text's last token."""
    inner = unwrapped(model)
    usual = getattr(type(inner), "forward", None) is GenericForSequenceClassification.forward
    return usual and (model is inner or hasattr(model, "peft_config"))


def _logits_at_last_token(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the (B, labels) logits of a decoder with a head."""
    inner = unwrapped(model)
    with turn(inner), _dropout_of(model, inputs):
        row = _packed(model, inputs, skipped=inner.config.pad_token_id)
        if row is None:
            padded: Tensor = model(**inputs).logits
            return padded
        given = row.inputs()
        ends = given.pop("logits_to_keep")
        with packed_attention(inner):
            states = inner.base_model(**given).last_hidden_state[0, ends]
        logits: Tensor = inner.score(states)
        return logits


def forward_layers(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return (K, B) raw scores at the layers that are trained; K is 1 but in layerwise models.

    Raises:
        ModelError: As ``forward_logits``.
    """
    readout = readout_of(model)
    if readout is None or readout.start_layer is None:
        return forward_logits(model, inputs)[None]
    return readout.layer_scores(model, inputs)


def _answers(model: nn.Module, readout: Readout, inputs: dict[str, Tensor]) -> Tensor:
    """Return the (B,) scores of a language model."""
    inner = unwrapped(model)
    own_layers = "cutoff_layers" in inspect.signature(inner.forward).parameters
    count = None if own_layers else readout.layer
    # The model holds its layers and the name of its attention for all threads that share it.
    with turn(inner), first_layers(inner, count), _dropout_of(model, inputs):
        row = _packed(model, inputs)
        if row is None:
            return readout.scores(model, inputs)
        with packed_attention(inner):
            return readout.answers(model(**row.inputs()).logits[0])


def _packed(
    model: nn.Module, inputs: dict[str, Tensor], *, skipped: int | None = None
) -> PackedRow | None:
    """Return the texts of a padded micro-batch in one row; ``None`` where it must stay padded.

    Args:
        skipped: A token that a head passes over at the end of a text, as if it were padding.
    """
    if not computes_beginnings_once(model):
        return None
    inner, device = unwrapped(model), inputs["input_ids"].device
    kernel = gpu_kernel(inner)
    ids = inputs["input_ids"].cpu()
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool().cpu()
    longest = window(inner.config)
    if longest is not None and int(mask.sum(1).max()) > longest:
        return None
    texts = [text[kept].numpy() for text, kept in zip(ids, mask, strict=True)]
    if skipped is not None:
        ends = [np.flatnonzero(text != skipped)[-1:] for text in texts]
        texts = [text[: int(end.sum()) + 1] for text, end in zip(texts, ends, strict=True)]
    return PackedRow.of(texts, device=device, kernel=kernel)


def _is_compiled(model: nn.Module) -> bool:
    return any("_orig_mod" in module._modules for module in model.modules())


@contextmanager
def _shortcuts(model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[None]:
    if _is_compiled(model):
        yield  # torch.compile made code of its own, and would make it anew every time
        return
    with (
        _dropout_of(model, inputs) as dropout,
        _positions_that_count(model, inputs, dropout),
    ):
        yield


def _dropout_of(
    model: nn.Module, inputs: dict[str, Tensor]
) -> AbstractContextManager[FastDropout | None]:
    on_cpu = inputs["input_ids"].device.type == "cpu"
    return fast_dropout(model) if on_cpu else nullcontext()


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
