"""One lookup of the word embeddings for a step: the same scores and gradients as one a forward."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from reranker_ft.model.fast.embedding import looked_up_once
from reranker_ft.model.forward import forward_logits
from tests.reranker_ft.conftest import make_model


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(5, 60, shape, generator=draw)} for shape in ((2, 9), (3, 7))
    ]


@pytest.fixture
def lookups(monkeypatch):
    """The tables that were looked up in, one entry a lookup."""
    seen = []
    embedding = F.embedding

    def watching(ids, weight, *others):
        seen.append(weight)
        return embedding(ids, weight, *others)

    monkeypatch.setattr(F, "embedding", watching)
    return seen


def lookups_of_words(model, lookups):
    return sum(weight is model.get_input_embeddings().weight for weight in lookups)


def scores_and_gradients(model, batches):
    scores = torch.cat([forward_logits(model, inputs) for inputs in batches])
    parameters = [p for p in model.parameters() if p.requires_grad]
    return scores, torch.autograd.grad(scores.square().sum(), parameters, allow_unused=True)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_scores_and_gradients_are_those_of_one_lookup_a_forward(kind, batches, lookups):
    model = make_model(kind)
    expected, slopes = scores_and_gradients(model, batches)
    assert lookups_of_words(model, lookups) == 2
    lookups.clear()
    with looked_up_once(model, batches):
        scores, found = scores_and_gradients(model, batches)
    assert lookups_of_words(model, lookups) == 1
    assert torch.equal(scores, expected)
    for one, other in zip(found, slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_other_inputs_are_looked_up_by_themselves(batches, lookups):
    model = make_model()
    others = {"input_ids": batches[0]["input_ids"] + 1}
    expected = forward_logits(model, others)
    with looked_up_once(model, batches):
        assert torch.equal(forward_logits(model, others), expected)
    lookups.clear()
    assert torch.equal(forward_logits(model, others), expected)
    assert lookups_of_words(model, lookups) == 1


def frozen(model):
    model.get_input_embeddings().requires_grad_(False)


def watched(model):
    model.get_input_embeddings().register_forward_hook(lambda *_: None)


def scaled_by_frequency(model):
    model.get_input_embeddings().scale_grad_by_freq = True


@pytest.mark.parametrize("change", [frozen, watched, scaled_by_frequency])
def test_nothing_changes_where_a_lookup_is_more_or_less_than_a_trained_one(
    change, batches, lookups
):
    model = make_model()
    change(model)
    with looked_up_once(model, batches):
        scores_and_gradients(model, batches)
    assert lookups_of_words(model, lookups) == 2


def test_wrapped_models_look_up_for_themselves(batches, lookups):
    """Their parameters may be split between processes."""
    model = make_model()
    wrapped = torch.nn.Sequential(model)
    with looked_up_once(wrapped, batches):
        scores_and_gradients(model, batches)
    assert lookups_of_words(model, lookups) == 2
