"""Language models over one row of tokens: the scores of each text alone, and less to compute."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from reranker_ft.model.fast.packed import PackedRow, packs, shared_batches
from reranker_ft.model.forward import forward_logits
from reranker_ft.model.readout import Readout, attach_readout

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma": {},
    "Granite": {},
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Olmo2": {},
    "Phi3": {},
    "Qwen2": {},
    "Qwen3": {},
    "SmolLM3": {},
    "Starcoder2": {},
}
SLIDING = {"Mistral": {"sliding_window": 6}, "Gemma3": {"sliding_window": 6}}
PADDED = {
    "Gemma2": {"attn_logit_softcapping": 5.0},  # capped logits of attention
    "Mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8},  # a state
    "Bloom": {"n_head": 4},  # a bias by distance
}
TEXTS = [
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 21, 22],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 21],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 21],
    [1, 2, 30, 31, 32, 33, 34, 35, 36, 37, 38],
    [1, 2, 30, 31, 32, 33, 34, 35, 36, 40],
    [40],
]


def build(family: str, **options: Any) -> Any:
    name = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{name}Config")(**(SIZES | options))
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    attach_readout(model, Readout(None, yes=7, no=8))
    return model


def padded(texts: list[list[int]], *, left: bool = True) -> dict[str, torch.Tensor]:
    width = max(map(len, texts))
    rows = [(text, [0] * (width - len(text))) for text in texts]
    ids = [fill + text if left else text + fill for text, fill in rows]
    mask = [[0] * len(f) + [1] * len(t) if left else [1] * len(t) + [0] * len(f) for t, f in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def alone(model: Any, texts: list[list[int]]) -> torch.Tensor:
    """(B,) what the class itself computes for each text."""
    logits = [model(input_ids=torch.tensor([text])).logits[0, -1] for text in texts]
    return torch.stack([each[7] - each[8] for each in logits])


def tokens_computed(model: Any) -> list[int]:
    """How many tokens the output of the layers has in forwards to come."""
    seen: list[int] = []
    model.base_model.get_input_embeddings().register_forward_hook(
        lambda _, __, states: seen.append(states.shape[:2].numel())
    )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_scores_as_alone(family: str) -> None:
    model = build(family, **FAMILIES[family])
    assert packs(model)
    expected = alone(model, TEXTS)
    assert len({round(score, 3) for score in expected.tolist()}) == len(TEXTS) - 1
    seen = tokens_computed(model)
    for left in (True, False):
        scores = forward_logits(model, padded(TEXTS, left=left))
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    # Six texts share 1 2, four of them 3 .. 9 and end in 3, 3, 2 and 2; the other two are too short
    # to save much, with 9 and 8; and 40 stands alone. Of 68 tokens, left and right.
    assert seen == [2 + 7 + (3 + 3 + 2 + 2) + (9 + 8) + 1] * 2
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", SLIDING)
def test_texts_longer_than_a_window_are_padded(family: str) -> None:
    model = build(family, **SLIDING[family])
    expected = alone(model, TEXTS)
    scores = forward_logits(model, padded(TEXTS))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    seen = tokens_computed(model)
    short = [text[:6] for text in TEXTS[:3]]
    scores = forward_logits(model, padded(short))
    torch.testing.assert_close(scores, alone(model, short), rtol=1e-5, atol=1e-5)
    assert seen[0] < 18


@pytest.mark.parametrize("family", PADDED)
def test_other_ways_to_look_back_are_padded(family: str) -> None:
    model = build(family, **PADDED[family])
    assert not packs(model)
    scores = forward_logits(model, padded(TEXTS))
    torch.testing.assert_close(scores, alone(model, TEXTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["Gemma", "Llama", "Qwen3"])
def test_a_head_at_the_last_token_reads_a_row_too(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(**SIZES, num_labels=1)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    texts = [*TEXTS, [1, 2, 3, 0, 0], [0, 0]]  # its head passes over what looks like padding
    expected = torch.cat([model(input_ids=torch.tensor([text])).logits[0] for text in texts])
    seen = tokens_computed(model)
    for left in (True, False):
        scores = forward_logits(model, padded(texts, left=left))
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert max(seen) < sum(map(len, texts))


def test_gradients_are_those_of_the_texts_alone() -> None:
    model = build("Llama")
    factors = torch.arange(1.0, len(TEXTS) + 1)
    gradients = []
    for scores in (alone(model, TEXTS), forward_logits(model.train(), padded(TEXTS))):
        model.zero_grad()
        (scores * factors).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_keeps_the_padding() -> None:
    model = build("Llama").train()
    model.base_model.gradient_checkpointing = True
    assert not packs(model)
    assert packs(model.eval())


def test_threads_that_share_a_model_get_their_own_scores() -> None:
    model = build("Gemma3", sliding_window=10)
    texts = [TEXTS[:3], [text[:8] for text in TEXTS], TEXTS[3:]] * 8
    expected = [alone(model, each) for each in texts]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda each: forward_logits(model, padded(each)), texts)
        for scores, own in zip(found, expected, strict=True):
            torch.testing.assert_close(scores, own, rtol=1e-5, atol=1e-5)


def test_a_row_holds_shared_beginnings_once() -> None:
    row = PackedRow.of([np.array(text) for text in TEXTS[:4]])
    assert row.tokens[:9] == list(range(1, 10))
    assert len(row.tokens) == len(row.positions) == 9 + 3 + 3 + 2 + 2
    assert [row.tokens[end] for end in row.ends] == [12, 22, 21, 21]
    assert [row.positions[end] for end in row.ends] == [11, 11, 10, 10]


def test_batches_keep_beginnings_together_and_within_the_budget() -> None:
    texts = [np.array([group] * 8 + [number]) for number in range(4) for group in (1, 2, 3)]
    batches = shared_batches(texts, 12)
    assert sorted(i for batch in batches for i in batch) == list(range(12))
    assert [sorted({int(texts[i][0]) for i in batch}) for batch in batches] == [[1], [2], [3]]
    assert shared_batches(texts[:1], 2) == [[0]]
    assert shared_batches([], 12) == []
