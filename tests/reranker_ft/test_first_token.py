"""The last layer at the first position: the same scores and gradients as the whole layer."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from reranker_ft.first_token import HEADS_OF_FIRST_TOKEN, last_layer_at_first_token
from reranker_ft.forward import forward_logits

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "num_labels": 1,
}  # fmt: skip
CLASSES = [
    (BertConfig, BertForSequenceClassification),
    (CamembertConfig, CamembertForSequenceClassification),
    (ElectraConfig, ElectraForSequenceClassification),
    (RobertaConfig, RobertaForSequenceClassification),
    (XLMRobertaConfig, XLMRobertaForSequenceClassification),
]


def build(config_class, model_class, **options):
    torch.manual_seed(0)
    return model_class(config_class(**SIZES, **options)).eval()


def inputs_of(*, padded):
    ids = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(1))
    if not padded:
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    mask[1:, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def widths_of_last_layer(model):
    """How many positions the last feed-forward sees, a number for each forward to come."""
    seen = []
    layer = model.base_model.encoder.layer[-1]
    feed_forward = layer.feed_forward_chunk

    def watching(states):
        seen.append(states.shape[1])
        return feed_forward(states)

    layer.feed_forward_chunk = watching
    return seen


def test_all_listed_classes_are_tested():
    assert {model_class.__name__ for _, model_class in CLASSES} == HEADS_OF_FIRST_TOKEN


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("config_class", "model_class"), CLASSES)
def test_scores_and_gradients_are_those_of_the_whole_layer(
    config_class, model_class, padded, attention
):
    if attention == "sdpa" and not model_class._supports_sdpa:
        pytest.skip("this version of transformers has no sdpa for it")
    model = build(config_class, model_class, attn_implementation=attention)
    inputs = inputs_of(padded=padded)
    expected = model(**inputs).logits[:, 0]
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
    widths = widths_of_last_layer(model)
    scores = forward_logits(model, inputs)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(scores.square().sum(), parameters, allow_unused=True)
    for mine, whole in zip(found, slopes, strict=True):
        assert (mine is None) == (whole is None)
        if whole is not None:
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-6)
    assert widths == [1]


def test_outside_the_context_the_layer_is_whole_again():
    model = build(*CLASSES[0])
    widths = widths_of_last_layer(model)
    with last_layer_at_first_token(model):
        model(**inputs_of(padded=True))
    model(**inputs_of(padded=True))
    assert widths == [1, 12]
    assert "forward" not in vars(model.base_model.encoder.layer[-1].attention)


def test_the_layer_stays_whole_where_someone_watches_or_runs_it_again():
    model = build(*CLASSES[0])
    widths = widths_of_last_layer(model)
    hook = model.base_model.encoder.layer[-1].output.register_forward_hook(lambda *_: None)
    forward_logits(model, inputs_of(padded=True))
    hook.remove()
    model.train()
    model.gradient_checkpointing_enable()
    scores = forward_logits(model, inputs_of(padded=True))
    scores.sum().backward()
    assert set(widths) == {12}


def test_other_layers_under_a_known_name_are_left_alone():
    class BertForSequenceClassification(torch.nn.Module):
        pass

    with last_layer_at_first_token(BertForSequenceClassification()):
        pass


def test_a_compiled_model_is_left_alone():
    model = build(*CLASSES[0])
    widths = widths_of_last_layer(model)
    compiled = torch.compile(model, backend="eager")
    forward_logits(compiled, inputs_of(padded=True))
    assert set(widths) == {12}
    assert "forward" not in vars(model.base_model.encoder.layer[-1].attention)
