"""Pairs as token ids in micro-batches, and their scores."""

import numpy as np
import pytest
import torch

from reranker_ft.errors import ModelError
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.scoring import needs_mask, position_limit, score_encodings, token_batches
from tests.reranker_ft.conftest import (
    MAX_POSITIONS,
    make_model,
    make_tokenizer,
    toy_pairs,
)

KINDS = ["bert", "roberta", "xlm-roberta"]


@pytest.mark.parametrize("max_tokens", [1, 16, 60, 10_000])
def test_token_batches_hold_every_pair_once_within_the_budget(max_tokens):
    lengths = np.random.default_rng(0).integers(1, 30, size=100)
    batches = token_batches(lengths, max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    widths = [max(lengths[batch]) for batch in batches]
    assert widths == sorted(widths, reverse=True)
    for batch, width in zip(batches, widths, strict=True):
        assert len(batch) * width <= max_tokens or len(batch) == 1
    assert token_batches([], 10) == []


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_score_like_one_padded_forward(kind):
    tokenizer, model = make_tokenizer(kind), make_model(kind)
    pairs = toy_pairs()
    encodings = PairEncoder(tokenizer, max_length=MAX_POSITIONS)(pairs)
    inputs = tokenizer(
        [query for query, _ in pairs],
        [passage for _, passage in pairs],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = model(**inputs).logits[:, 0]
    assert expected.std() > 0.01
    for max_tokens in (1, 64, 100_000):
        scores = score_encodings(model, encodings, max_tokens=max_tokens)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert score_encodings(model, PairEncoder(tokenizer)([])).shape == (0,)


def test_a_model_that_wants_a_mask_gets_one():
    class Demanding(torch.nn.Module):
        def forward(self, input_ids, attention_mask, **others): ...

    assert needs_mask(Demanding())
    assert not needs_mask(make_model())
    encodings = PairEncoder(make_tokenizer("bert"))([("red", "blue")])
    assert encodings.pad([0], always_mask=True)["attention_mask"].tolist() == [[1] * 5]


class OutOfMemory(torch.nn.Module):
    """Runs out of memory above a number of tokens, and counts the pairs that it scored."""

    def __init__(self, model, most_tokens):
        super().__init__()
        self.model, self.most_tokens, self.scored = model, most_tokens, 0

    def forward(self, input_ids, attention_mask=None, **others):
        if input_ids.numel() > self.most_tokens:
            raise torch.cuda.OutOfMemoryError("no memory left")
        self.scored += len(input_ids)
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **others)


def test_out_of_memory_makes_smaller_batches_and_repeats_nothing():
    model = make_model()
    encodings = PairEncoder(make_tokenizer("bert"))(toy_pairs())
    limited = OutOfMemory(model, 100)
    scores = score_encodings(limited, encodings, max_tokens=5000)
    torch.testing.assert_close(scores, score_encodings(model, encodings))
    assert limited.scored == len(encodings)
    with pytest.raises(ModelError, match="does not fit into the memory"):
        score_encodings(OutOfMemory(model, 5), encodings)


@pytest.mark.parametrize(("kind", "limit"), [("bert", 64), ("roberta", 64), ("xlm-roberta", 64)])
def test_the_position_limit_knows_roberta_s_offset(kind, limit):
    model = make_model(kind)
    assert position_limit(model) == limit
    inputs = torch.full((1, limit), 7)
    assert model(input_ids=inputs).logits.shape == (1, 1)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 7))
