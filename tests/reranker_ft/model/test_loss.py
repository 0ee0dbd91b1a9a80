"""Losses against hand-worked values and torch's own."""

import math

import pytest
import torch
from torch.nn import functional

from reranker_ft.model.loss import (
    LOSSES,
    binary_cross_entropy,
    distillation,
    softmax_cross_entropy,
    towards_last_layer,
)


def test_softmax_cross_entropy_by_hand():
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0, 0.0]])
    losses = softmax_cross_entropy(scores)
    torch.testing.assert_close(losses, torch.tensor([math.log(4), math.log(2)]))


def test_softmax_cross_entropy_equals_torch_s():
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    expected = functional.cross_entropy(scores, torch.zeros(5, dtype=torch.long), reduction="none")
    torch.testing.assert_close(softmax_cross_entropy(scores), expected)


def test_binary_cross_entropy_by_hand():
    losses = binary_cross_entropy(torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)]]))
    torch.testing.assert_close(losses, torch.tensor([math.log(2), math.log(4 / 3)]))


@pytest.mark.parametrize("name", LOSSES)
def test_empty_places_count_as_if_they_were_not_there(name):
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    present = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True, True] + [False] * 3])
    losses = LOSSES[name](scores, present)
    for row, width in enumerate((5, 3, 2)):
        torch.testing.assert_close(
            losses[row], LOSSES[name](scores[row : row + 1, :width], None)[0]
        )
    losses.sum().backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[~present] == 0).all()
    assert (scores.grad[present] != 0).all()


def test_distillation_by_hand():
    scores = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[math.log(3), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation(scores, teacher).item() == pytest.approx(expected)
    # The same distributions at twice the temperature, times T^2.
    assert distillation(scores, 2 * teacher, 2.0).item() == pytest.approx(4 * expected)


def test_distillation_vanishes_at_the_teacher_and_ignores_a_shift():
    teacher = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(distillation(teacher + 3, teacher), torch.zeros(4))


def test_layers_learn_from_the_last_and_it_from_none_of_them():
    scores = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = towards_last_layer(scores)
    teacher = scores[-1].detach()
    expected = distillation(scores[0], teacher) + distillation(scores[1], teacher)
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert scores.grad[:2].abs().sum() > 0
    assert torch.equal(scores.grad[-1], torch.zeros(2, 4))
    assert torch.equal(towards_last_layer(scores[:1]), torch.zeros(2))


def test_an_empty_place_teaches_no_layer_anything():
    scores = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True, True, False]])
    torch.testing.assert_close(
        towards_last_layer(scores, present), towards_last_layer(scores[:, :, :2])
    )
