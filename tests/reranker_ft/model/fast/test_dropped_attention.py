"""Attention with dropout, and its gradient."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from reranker_ft.model.fast.dropout import FastDropout
from reranker_ft.model.fast.dropped_attention import Lengths, attention_with_dropout


@pytest.mark.parametrize("kind", ["none", "boolean", "added"])
def test_attention_and_its_gradient_are_those_of_the_same_masks(kind):
    torch.manual_seed(0)
    query, key = (torch.randn(2, 3, 7, 4, requires_grad=True) for _ in range(2))
    # The identity for values: what comes out are the dropped probabilities themselves.
    identity = torch.eye(7).expand(2, 3, 7, 7)
    value = torch.randn(2, 3, 7, 4, requires_grad=True)
    allowed = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    allowed[1, :, :, 5:] = False
    added = torch.zeros(2, 1, 7, 7).masked_fill(~allowed, -1e9)
    mask = {"none": None, "boolean": allowed, "added": added}[kind]

    def attend(values):
        torch.manual_seed(5)
        with FastDropout():
            return scaled_dot_product_attention(query, key, values, mask, dropout_p=0.3)

    kept = attend(identity).detach() != 0
    logits = query @ key.transpose(-1, -2) / 2
    if mask is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    expected = (logits.softmax(-1) * kept / 0.7) @ value
    found = attend(value)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    leaves = (query, key, value)
    weights = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["boolean", "added"])
def test_positions_that_may_ask_nobody_gather_what_they_do_in_torch(kind):
    torch.manual_seed(0)
    leaves = [torch.randn(2, 3, 7, 4, requires_grad=True) for _ in range(3)]
    allowed = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril(1)
    allowed[1, :, 4:] = False
    added = torch.zeros(2, 1, 7, 7).masked_fill(~allowed, -torch.inf)
    mask = allowed if kind == "boolean" else added
    expected = scaled_dot_product_attention(*leaves, mask)
    with FastDropout():
        found = scaled_dot_product_attention(*leaves, mask, dropout_p=1e-9)  # drops none of these
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_attention_of_a_row_is_that_of_each_sequence():
    lengths = [Lengths(3, 3), Lengths(1, 5), Lengths(4, 2)]
    torch.manual_seed(0)
    query = torch.randn(8, 2, 4, requires_grad=True)
    key = torch.randn(10, 2, 4, requires_grad=True)
    value = torch.randn(10, 2, 6, requires_grad=True)

    def draw(count, p):
        torch.manual_seed(3)
        return (torch.rand(count) >= p).to(torch.uint8)

    found = attention_with_dropout(query, key, value, lengths, SimpleNamespace(draw=draw), p=0.3)
    kept = iter(draw([2 * (9 + 5 + 8)], 0.3).split([2 * 9, 2 * 5, 2 * 8]))
    asked = list(zip(key.split([3, 5, 2]), value.split([3, 5, 2]), strict=True))
    expected = torch.cat(
        [
            torch.einsum(
                "hqk,khd->qhd",
                (torch.einsum("qhd,khd->hqk", own, keys) / 2).softmax(-1)
                * next(kept).view(2, len(own), len(keys))
                / 0.7,
                values,
            )
            for own, (keys, values) in zip(query.split([3, 1, 4]), asked, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
