"""Pairs -> token ids -> micro-batches -> scores."""

import json

import numpy as np
import pytest
import torch

from reranker_ft.data.examples import parse_example
from reranker_ft.errors import ArgumentError, ModelError
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.scoring import needs_mask, position_limit, score_encodings, token_batches
from reranker_ft.train.collate import GroupCollator, group_scores
from reranker_ft.train.groups import GroupDataset, GroupKey, KnownPositives
from tests.reranker_ft.conftest import MAX_POSITIONS, make_model, make_tokenizer, toy_rows

KINDS = ["bert", "roberta", "xlm-roberta"]


def toy_pairs(count=6):
    return [(row["query"], text) for row in toy_rows(count) for text in row["pos"] + row["neg"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [12, 64])
def test_encodings_equal_the_tokenizer_s_pairs(kind, max_length):
    tokenizer = make_tokenizer(kind)
    pairs = toy_pairs()
    encodings = PairEncoder(tokenizer, max_length=max_length, query_max_length=6)(pairs)
    cut = [tokenizer.decode(ids[:6]) for ids in _ids(tokenizer, [query for query, _ in pairs])]
    for number, ((_, passage), query) in enumerate(zip(pairs, cut, strict=True)):
        expected = tokenizer(query, passage, truncation="only_second", max_length=max_length)
        assert encodings.ids(number).tolist() == expected["input_ids"]
        inputs = encodings.pad([number])
        assert "attention_mask" not in inputs
        if "token_type_ids" in expected:
            assert inputs["token_type_ids"].tolist() == [expected["token_type_ids"]]
        else:
            assert "token_type_ids" not in inputs


def _ids(tokenizer, texts):
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_equals_the_tokenizer_s(kind, side):
    tokenizer = make_tokenizer(kind)
    tokenizer.padding_side = side
    pairs = toy_pairs(2)
    encodings = PairEncoder(tokenizer, max_length=64, pad_to_multiple_of=8)(pairs)
    expected = tokenizer(
        [query for query, _ in pairs],
        [passage for _, passage in pairs],
        padding=True,
        pad_to_multiple_of=8,
        return_tensors="pt",
    )
    padded = encodings.pad(range(len(pairs)))
    assert padded.keys() == expected.keys()
    for name, tensor in padded.items():
        assert torch.equal(tensor, expected[name]), name


def test_only_the_passage_is_cut_and_the_query_is_capped():
    tokenizer = make_tokenizer("bert")
    long_query, long_passage = "red " * 50, "blue " * 50
    encoder = PairEncoder(tokenizer, max_length=40)
    red, blue = (_ids(tokenizer, [word])[0][0] for word in ("red", "blue"))

    def counts(encoder, query, passage):
        ids = encoder([(query, passage)]).ids(0).tolist()
        return ids.count(red), ids.count(blue), len(ids)

    assert counts(encoder, long_query, long_passage) == (30, 7, 40)
    assert counts(encoder, "red", long_passage) == (1, 36, 40)
    assert counts(encoder, long_query, "blue") == (30, 1, 34)
    # However long a query may be, a passage keeps one token.
    greedy = PairEncoder(tokenizer, max_length=40, query_max_length=1000)
    assert counts(greedy, long_query, long_passage) == (36, 1, 40)
    capped = PairEncoder(tokenizer, max_length=40, query_max_length=5, passage_max_length=10)
    assert counts(capped, long_query, long_passage) == (5, 10, 18)


def test_cut_lengths_are_those_of_the_encodings():
    tokenizer = make_tokenizer("roberta")
    pairs = [("red " * q, "blue " * p) for q in (1, 8, 30) for p in (1, 9, 50)]
    encoder = PairEncoder(tokenizer, max_length=24, query_max_length=10, passage_max_length=12)
    lengths = encoder.cut_lengths(
        encoder.text_lengths([query for query, _ in pairs]),
        encoder.text_lengths([passage for _, passage in pairs]),
    )
    assert lengths.tolist() == encoder(pairs).lengths.tolist()


def test_lengths_that_leave_no_room_are_refused():
    tokenizer = make_tokenizer("bert")
    with pytest.raises(ArgumentError, match="max_length is 4 - a pair takes 3 special tokens"):
        PairEncoder(tokenizer, max_length=4)
    with pytest.raises(ArgumentError, match="query_max_length is 0"):
        PairEncoder(tokenizer, query_max_length=0)


def test_a_tokenizer_that_builds_no_pair_is_refused():
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = type(tokenizer.backend_tokenizer.post_processor)(
        single="$A", pair="$B:1 $A", special_tokens=[]
    )
    with pytest.raises(ModelError, match="a cross-encoder reads query, then passage"):
        PairEncoder(tokenizer)


def test_padding_without_a_padding_token_is_refused():
    tokenizer = make_tokenizer("bert")
    tokenizer.pad_token = None
    encodings = PairEncoder(tokenizer)([("red", "blue"), ("red", "blue blue")])
    assert encodings.pad([0])["input_ids"].shape == (1, 5)
    with pytest.raises(ModelError, match="no padding token"):
        encodings.pad([0, 1])


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


def test_a_model_with_several_logits_is_refused():
    encodings = PairEncoder(make_tokenizer("bert"))([("red", "blue")])
    with pytest.raises(ModelError, match="a reranker gives one score a pair"):
        score_encodings(make_model(num_labels=3), encodings)


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


def make_batch(*, budget=10_000, in_batch_negatives=0, group_size=4, count=5, rows=None, **keys):
    rows = rows or toy_rows(count)
    examples = [parse_example(json.dumps(row).encode()) for row in rows]
    dataset = GroupDataset(examples, group_size=group_size)
    groups = [dataset[GroupKey(0, i, **keys)] for i in range(len(examples))]
    collator = GroupCollator(
        PairEncoder(make_tokenizer("bert")),
        micro_batch_tokens=budget,
        in_batch_negatives=in_batch_negatives,
    )
    return collator(groups), groups


def test_scores_come_back_to_their_queries():
    model = make_model()
    batch, groups = make_batch(budget=50)
    assert len(batch["micro_batches"]) > 3
    assert batch["present"] is None
    scores = group_scores(model, batch)
    encoder = PairEncoder(make_tokenizer("bert"))
    for row, group in zip(scores, groups, strict=True):
        expected = score_encodings(model, encoder([(group.query, p) for p in group.passages]))
        torch.testing.assert_close(row.detach(), expected)


def test_micro_batches_give_the_gradients_of_one_padded_forward():
    gradients = []
    for budget in (40, 1_000_000):
        model = make_model()
        batch, _ = make_batch(budget=budget)
        torch.logsumexp(group_scores(model, batch), dim=1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_in_batch_negatives_are_never_a_query_s_own():
    shared = "the red river is water"
    rows = toy_rows(4, negatives=3)
    rows[0]["pos"] = [shared, "the second positive of the first query"]
    rows[1]["neg"] = [shared, "the second positive of the first query", "red stone"]
    rows[2]["pos"] = [shared]
    examples = [parse_example(json.dumps(row).encode()) for row in rows]
    dataset = GroupDataset(examples, group_size=4)
    collator = GroupCollator(
        PairEncoder(make_tokenizer("bert")), micro_batch_tokens=100, in_batch_negatives=5
    )
    drawn = set()
    for epoch in range(20):
        groups = [dataset[GroupKey(epoch, i)] for i in range(4)]
        for number, group in enumerate(groups):
            lent = collator._borrow(group, groups)
            assert len(lent) == len(set(lent)) == 5
            assert not set(lent) & set(examples[number].pos)
            assert not set(lent) & set(group.passages)
            others = {text for other in groups if other is not group for text in other.passages}
            assert set(lent) <= others
            drawn.update((number, text) for text in lent)
    assert len(drawn) > 20


def test_a_positive_of_the_same_query_on_another_line_is_not_lent():
    rows = [
        {"query": "what is red", "pos": ["the red river"], "neg": ["stone"]},
        {"query": "what  is red ", "pos": ["the apple"], "neg": ["water"]},
        {
            "query": "which bird",
            "pos": ["the  red river"],
            "neg": ["the apple"],
            "passage_prompt": "look : ",
        },
        {"query": "who is king", "pos": ["a king"], "neg": ["light"]},
    ]
    examples = [parse_example(json.dumps(row).encode()) for row in rows]
    dataset = GroupDataset(examples, group_size=2, known_positives=KnownPositives(examples))
    collator = GroupCollator(
        PairEncoder(make_tokenizer("bert")), micro_batch_tokens=100, in_batch_negatives=9
    )
    groups = [dataset[GroupKey(0, i)] for i in range(4)]
    # The second line is not in the batch, and what it says of the first query still holds.
    batch = [groups[0], *groups[2:]]
    assert sorted(collator._borrow(groups[0], batch)) == ["a king", "light"]
    assert sorted(collator._borrow(groups[1], groups)) == ["a king", "light", "stone"]
    lent = sorted(collator._borrow(groups[3], groups))
    assert len(lent) == 4 and sum("apple" in text for text in lent) == 1


def test_missing_in_batch_negatives_leave_empty_places():
    batch, groups = make_batch(count=2, in_batch_negatives=6)
    assert batch["places"].shape == (2, 10)
    assert batch["present"].sum(dim=1).tolist() == [
        4 + len(set(other.keys) - group.positives - set(group.keys))
        for group, other in (groups, groups[::-1])
    ]
    assert batch["present"][:, :4].all()


def test_lent_groups_are_not_scored():
    examples = [parse_example(json.dumps(row).encode()) for row in toy_rows(4)]
    dataset = GroupDataset(examples, group_size=3)
    groups = [dataset[GroupKey(0, i, scored=i < 2)] for i in range(4)]
    collator = GroupCollator(
        PairEncoder(make_tokenizer("bert")), micro_batch_tokens=100, in_batch_negatives=4
    )
    batch = collator(groups)
    assert batch["places"].shape == (2, 7)
    assert batch["weights"].tolist() == [1, 1]
    # Two processes, each scoring half, use the negatives that one process would.
    whole = [
        collator._borrow(group, [dataset[GroupKey(0, i)] for i in range(4)]) for group in groups
    ]
    assert [collator._borrow(group, groups) for group in groups][:2] == whole[:2]
