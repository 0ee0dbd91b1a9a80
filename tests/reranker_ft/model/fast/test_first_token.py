"""Layers computed where it counts: the same scores and gradients as the whole layers.

On a CPU the layers take no padding; elsewhere the last one is computed at the first position.
"""

from functools import partial

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

from reranker_ft.model.fast.first_token import (
    HEADS_OF_FIRST_TOKEN,
    last_layer_at_first_token,
    layers_below_first_token,
)
from reranker_ft.model.fast.unpadded import Row
from reranker_ft.model.forward import forward_logits

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
    return model_class(config_class(**(SIZES | options))).eval()


def inputs_of(lengths):
    ids = torch.randint(5, 60, (len(lengths), 12), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids} | ({} if mask.all() else {"attention_mask": mask})


def positions_of_layers(model):
    """(rows, positions) that the feed-forwards see in forwards to come."""
    seen = []

    def watch(feed_forward, states):
        seen.append(tuple(states.shape[:2]))
        return feed_forward(states)

    for layer in model.base_model.encoder.layer:
        layer.feed_forward_chunk = partial(watch, layer.feed_forward_chunk)
    return seen


def test_all_listed_classes_are_tested():
    assert {model_class.__name__ for _, model_class in CLASSES} == HEADS_OF_FIRST_TOKEN


@pytest.fixture(params=["without padding", "padded"])
def computed(request, monkeypatch):
    """Both ways: that of a CPU, and that of other devices."""
    if request.param == "padded":
        monkeypatch.setattr(Row, "of", lambda inputs: None)
    return request.param


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [(12, 12, 12), (12, 8, 8), (5, 12, 7)])
@pytest.mark.parametrize(("config_class", "model_class"), CLASSES)
def test_scores_and_gradients_are_those_of_the_whole_layers(
    config_class, model_class, lengths, attention, computed
):
    if attention == "sdpa" and not model_class._supports_sdpa:
        pytest.skip("this version of transformers has no sdpa for it")
    model = build(config_class, model_class, attn_implementation=attention)
    inputs = inputs_of(lengths)
    expected = model(**inputs).logits[:, 0]
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
    positions = positions_of_layers(model)
    scores = forward_logits(model, inputs)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(scores.square().sum(), parameters, allow_unused=True)
    for mine, whole in zip(found, slopes, strict=True):
        assert (mine is None) == (whole is None)
        if whole is not None:
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-6)
    inner = (3, 12) if computed == "padded" else (1, sum(lengths))
    assert positions == [inner, inner, (3, 1)]


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_scores_without_gradients_are_the_same(activation, monkeypatch):
    model = build(*CLASSES[0], hidden_act=activation)
    inputs = inputs_of((12, 8, 5))
    expected = forward_logits(model, inputs)  # with gradients nothing may be overwritten
    in_place, called = torch.ops.aten.gelu_, []

    def watched(states):
        called.append(states.shape)
        return in_place(states)

    monkeypatch.setattr(torch.ops.aten, "gelu_", watched)
    with torch.no_grad():
        assert torch.equal(forward_logits(model, inputs), expected)
        model(**inputs)  # afterwards torch's own again
    assert len(called) == (3 if activation == "gelu" else 0)


def test_a_model_of_one_layer(computed):
    model = build(*CLASSES[0], num_hidden_layers=1)
    inputs = inputs_of((12, 8, 5))
    expected = model(**inputs).logits[:, 0]
    torch.testing.assert_close(forward_logits(model, inputs), expected, rtol=1e-5, atol=1e-6)


def test_in_bf16(computed):
    model = build(*CLASSES[0]).bfloat16()
    inputs = inputs_of((12, 8, 5))
    expected = model(**inputs).logits[:, 0].float()
    torch.testing.assert_close(forward_logits(model, inputs), expected, rtol=0.02, atol=0.01)


def test_dropout_strikes_each_token_by_its_own(computed):
    """Two equal pairs side by side get different masks, and the mean is that without dropout."""
    model = build(*CLASSES[0], hidden_dropout_prob=0.05, attention_probs_dropout_prob=0.05)
    one = inputs_of((12, 8, 5))
    inputs = {name: tensor.repeat(400, 1) for name, tensor in one.items()}
    expected = forward_logits(model, one)
    with torch.no_grad():
        scores = forward_logits(model.train(), inputs).view(400, 3)
    assert len(scores.unique()) == scores.numel()
    error = scores.std(0) / 400**0.5
    assert ((scores.mean(0) - expected).abs() < 5 * error).all()


def test_padding_on_the_left_stays_where_it_is():
    """The head reads the first position, padding or not: what it reads must not change."""
    model = build(*CLASSES[0])
    inputs = inputs_of((12, 8, 5))
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    expected = model(**inputs).logits[:, 0]
    torch.testing.assert_close(forward_logits(model, inputs), expected, rtol=1e-5, atol=1e-6)


def test_outside_the_context_the_layers_are_whole_again():
    model = build(*CLASSES[0])
    positions = positions_of_layers(model)
    with last_layer_at_first_token(layers_below_first_token(model)):
        model(**inputs_of((12, 8, 8)))
    forward_logits(model, inputs_of((12, 8, 8)))
    model(**inputs_of((12, 8, 8)))
    assert positions[2::3] == [(3, 1), (3, 1), (3, 12)]
    assert not any("forward" in vars(layer.attention) for layer in model.base_model.encoder.layer)


def test_the_layers_stay_whole_where_someone_watches_or_runs_them_again():
    model = build(*CLASSES[0])
    positions = positions_of_layers(model)
    hook = model.base_model.encoder.layer[0].output.register_forward_hook(lambda *_: None)
    forward_logits(model, inputs_of((12, 8, 8)))
    hook.remove()
    model.train()
    model.gradient_checkpointing_enable()
    scores = forward_logits(model, inputs_of((12, 8, 8)))
    scores.sum().backward()
    assert set(positions) == {(3, 12)}


def test_other_layers_under_a_known_name_are_left_alone():
    class BertForSequenceClassification(torch.nn.Module):
        pass

    assert layers_below_first_token(BertForSequenceClassification()) is None


def test_a_compiled_model_is_left_alone():
    model = build(*CLASSES[0])
    positions = positions_of_layers(model)
    compiled = torch.compile(model, backend="eager")
    forward_logits(compiled, inputs_of((12, 8, 8)))
    assert set(positions) == {(3, 12)}
