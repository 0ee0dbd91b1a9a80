"""Groups become batches, and scores come back to their places."""

import json

import torch

from reranker_ft.data.examples import parse_example
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.model.scoring import score_encodings
from reranker_ft.train.collate import GroupCollator, group_scores
from reranker_ft.train.groups import GroupDataset, GroupKey, KnownPositives
from tests.reranker_ft.conftest import make_model, make_tokenizer, toy_rows


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
    scores = group_scores(model, batch)[0]
    encoder = PairEncoder(make_tokenizer("bert"))
    for row, group in zip(scores, groups, strict=True):
        expected = score_encodings(model, encoder([(group.query, p) for p in group.passages]))
        torch.testing.assert_close(row.detach(), expected)


def test_micro_batches_give_the_gradients_of_one_padded_forward():
    gradients = []
    for budget in (40, 1_000_000):
        model = make_model()
        batch, _ = make_batch(budget=budget)
        torch.logsumexp(group_scores(model, batch)[0], dim=1).sum().backward()
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
