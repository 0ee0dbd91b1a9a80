"""Fast dropout: the right share, the right expectation, the gradient of what was computed."""

import torch
from torch.nn.functional import dropout, scaled_dot_product_attention

from reranker_ft.model.fast.dropout import FastDropout, fast_dropout
from reranker_ft.model.forward import forward_logits
from tests.reranker_ft.conftest import make_model


def test_the_gradient_of_dropout_is_its_mask():
    states = torch.randn(20, 30, requires_grad=True)
    with FastDropout():
        dropped = dropout(states, 0.4, training=True)
    (slopes,) = torch.autograd.grad(dropped.sum(), states)
    torch.testing.assert_close(slopes * states, dropped)


def test_what_it_does_not_know_it_leaves_to_torch():
    states = torch.randn(4, 5)
    query = torch.randn(1, 2, 6, 4)
    with FastDropout():
        assert torch.equal(dropout(states, 0.5, training=False), states)
        assert dropout(states.double(), 0.5, training=True).dtype == torch.float64
        assert torch.equal(dropout(states, 1.0, training=True), torch.zeros_like(states))
        causal = scaled_dot_product_attention(query, query, query, is_causal=True)
    torch.testing.assert_close(
        causal, scaled_dot_product_attention(query, query, query, is_causal=True)
    )


def test_a_model_in_training_uses_it_unless_its_layers_run_again():
    model = make_model().train()
    assert isinstance(fast_dropout(model), FastDropout)
    inputs = {"input_ids": torch.full((2, 9), 7)}
    torch.manual_seed(1)
    first = forward_logits(model, inputs)
    torch.manual_seed(1)
    assert torch.equal(first, forward_logits(model, inputs))
    model.gradient_checkpointing_enable()
    assert not isinstance(fast_dropout(model), FastDropout)
    assert not isinstance(fast_dropout(model.eval()), FastDropout)
