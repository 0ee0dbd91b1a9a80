"""Layers in bf16: nothing but rounding changes, and nothing at all where they do not apply."""

from __future__ import annotations

import pytest
import torch

from reranker_ft.model.fast import bf16_layers
from reranker_ft.model.fast.bf16_layers import keep_bf16_layers
from reranker_ft.model.forward import forward_logits
from tests.reranker_ft.model.fast.test_first_token import CLASSES, build, inputs_of

LENGTHS = (12, 8, 8, 5)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_only_rounding_changes(classes, activation):
    """The error is that of transformers' own forward in bf16, or less."""
    model = build(*classes, hidden_act=activation)
    inputs = inputs_of(LENGTHS)
    with torch.no_grad():
        exact = model(**inputs).logits[:, 0]
        assert torch.equal(forward_logits(model, inputs), forward_logits(model, inputs))
        assert keep_bf16_layers(model)
        found = forward_logits(model, inputs)
        assert torch.equal(model(**inputs).logits[:, 0], exact)  # outside, its own layers again
        plain = model.bfloat16()(**inputs).logits[:, 0].float()
    assert not torch.equal(found, exact)
    spread = (exact.max() - exact.min()).item()
    assert (found - exact).abs().max() <= 1.5 * (plain - exact).abs().max() + 0.005 * spread


def test_the_layout_of_weights_changes_nothing_but_the_order_of_sums(monkeypatch):
    model, inputs = build(*CLASSES[0]), inputs_of(LENGTHS)
    with torch.no_grad():
        keep_bf16_layers(model)
        found = forward_logits(model, inputs)
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False
        )
        keep_bf16_layers(model)
        torch.testing.assert_close(forward_logits(model, inputs), found, rtol=0.01, atol=0.005)


def test_a_pair_scores_alike_alone_and_among_others():
    model, inputs = build(*CLASSES[0]), inputs_of(LENGTHS)
    with torch.no_grad():
        keep_bf16_layers(model)
        together = forward_logits(model, inputs)
        for place, length in enumerate(LENGTHS):
            alone = {name: each[place : place + 1, :length] for name, each in inputs.items()}
            torch.testing.assert_close(
                forward_logits(model, alone), together[place : place + 1], rtol=0.01, atol=0.005
            )


def test_with_gradients_and_in_training_the_weights_are_those_of_the_model():
    model = build(*CLASSES[0], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    inputs = inputs_of(LENGTHS)
    expected = forward_logits(model, inputs)
    keep_bf16_layers(model)
    assert torch.equal(forward_logits(model, inputs), expected)
    with torch.no_grad():
        assert torch.equal(forward_logits(model.train(), inputs), expected)
    assert not keep_bf16_layers(model)


def test_padding_in_front_is_scored_in_fp32():
    model, inputs = build(*CLASSES[0]), inputs_of(LENGTHS)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with torch.no_grad():
        expected = forward_logits(model, inputs)
        keep_bf16_layers(model)
        assert torch.equal(forward_logits(model, inputs), expected)


def test_a_model_that_is_gone_keeps_nothing():
    model = build(*CLASSES[0])
    before = len(bf16_layers._kept)
    keep_bf16_layers(model)
    assert len(bf16_layers._kept) == before + 1
    del model
    assert len(bf16_layers._kept) == before
