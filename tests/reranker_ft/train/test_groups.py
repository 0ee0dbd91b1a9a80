"""Groups drawn from examples, and the batches of each process."""

import json

import pytest
from torch.utils.data import DataLoader

from reranker_ft.data.examples import Example, ExampleFiles, parse_example, text_key
from reranker_ft.errors import ArgumentError
from reranker_ft.train.groups import GroupBatchSampler, GroupDataset, GroupKey
from tests.reranker_ft.conftest import toy_rows


def examples(count=6, negatives=5):
    return [parse_example(json.dumps(row).encode()) for row in toy_rows(count, negatives=negatives)]


def test_a_group_is_one_positive_and_distinct_negatives():
    dataset = GroupDataset(examples(negatives=7), group_size=6, seed=1)
    seen = set()
    for epoch in range(30):
        group = dataset[GroupKey(epoch, 2)]
        example = dataset.examples[2]
        assert group.passages[0] in example.pos
        assert set(group.passages[1:]) <= set(example.neg)
        assert len(set(group.passages[1:])) == 5
        seen.update(group.passages[1:])
    assert seen == set(dataset.examples[2].neg)


def test_teacher_scores_follow_their_passages():
    example = parse_example(
        b'{"query": "q", "pos": ["p0", "p1"], "neg": ["n0", "n1", "n2"],'
        b' "pos_scores": [10, 11], "neg_scores": [0, 1, 2]}'
    )
    scores = {"p0": 10, "p1": 11, "n0": 0, "n1": 1, "n2": 2}
    dataset = GroupDataset([example], group_size=3)
    for epoch in range(20):
        group = dataset[GroupKey(epoch, 0)]
        assert list(group.teacher_scores) == [scores[text] for text in group.passages]


def test_too_few_negatives_are_repeated_evenly_with_one_warning(caplog):
    dataset = GroupDataset(examples(negatives=3), group_size=9)
    for key in (GroupKey(0, 0), GroupKey(0, 1), GroupKey(1, 0)):
        group = dataset[key]
        counts = [group.passages[1:].count(text) for text in dataset.examples[key.example].neg]
        assert sorted(counts) == [2, 3, 3]
    assert len(caplog.records) == 1
    assert "has 3 negatives and a group of 9 needs 8" in caplog.text


def test_draws_depend_on_seed_epoch_and_example_alone():
    dataset = GroupDataset(examples(negatives=9), group_size=4, seed=5)
    in_order = [dataset[GroupKey(0, i)].passages for i in range(6)]
    backwards = [dataset[GroupKey(0, i)].passages for i in reversed(range(6))]
    assert in_order == backwards[::-1]
    assert in_order != [dataset[GroupKey(1, i)].passages for i in range(6)]
    other_seed = GroupDataset(examples(negatives=9), group_size=4, seed=6)
    assert in_order != [other_seed[GroupKey(0, i)].passages for i in range(6)]


@pytest.mark.parametrize("workers", [1, 2])
def test_draws_do_not_depend_on_workers(write_jsonl, workers):
    dataset = GroupDataset(ExampleFiles([write_jsonl(toy_rows(10))]), group_size=4)
    batches = GroupBatchSampler(10, 3, seed=0)

    def groups(workers):
        loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list)
        return [group for batch in loader for group in batch]

    assert groups(0) == groups(workers)


@pytest.mark.parametrize(
    ("count", "batch_size", "processes"), [(12, 2, 2), (10, 2, 3), (9, 2, 2), (7, 4, 1), (1, 2, 3)]
)
def test_every_example_counts_once_on_any_number_of_processes(count, batch_size, processes):
    samplers = [
        GroupBatchSampler(count, batch_size, seed=0, process=p, processes=processes)
        for p in range(processes)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1
    batches = [list(sampler) for sampler in samplers]
    whole = list(GroupBatchSampler(count, batch_size * processes, seed=0))
    for step, global_batch in enumerate(whole):
        parts = [batches[p][step] for p in range(processes)]
        assert all(parts)
        assert [key for part in parts for key in part if key.weight] == global_batch
    assert sorted(key.example for batch in whole for key in batch) == list(range(count))


def test_lent_groups_stand_in_the_order_of_the_global_batch():
    samplers = [
        GroupBatchSampler(5, 2, seed=0, process=p, processes=2, lend=True) for p in range(2)
    ]
    whole = list(GroupBatchSampler(5, 4, seed=0))
    for step, global_batch in enumerate(whole):
        first, second = (list(sampler)[step] for sampler in samplers)
        for part in (first, second):
            assert [k.example for k in part if k.weight] == [k.example for k in global_batch]
        assert [a.scored != b.scored for a, b in zip(first, second, strict=False)] == [True] * len(
            global_batch
        )
        assert any(key.scored for key in first)
        assert any(key.scored for key in second)


def test_epochs_are_shuffled_apart_and_alike():
    sampler = GroupBatchSampler(50, 5, seed=0)
    first = [[key.example for key in batch] for batch in sampler]
    assert first == [[key.example for key in batch] for batch in sampler]
    sampler.set_epoch(1)
    assert first != [[key.example for key in batch] for batch in sampler]
    assert first != [[k.example for k in b] for b in GroupBatchSampler(50, 5, seed=1)]


def test_drop_last_leaves_out_the_partial_batch_and_refuses_to_leave_nothing():
    assert [len(batch) for batch in GroupBatchSampler(10, 4, seed=0, drop_last=True)] == [4, 4]
    with pytest.raises(ArgumentError, match="3 examples do not fill one batch of 4"):
        GroupBatchSampler(3, 4, seed=0, drop_last=True)


def test_a_shuffled_positive_is_still_its_query_s_own():
    text = " ".join(f"w{i}" for i in range(60))
    example = Example("q", (text,), ("n",))
    group = GroupDataset([example], group_size=2, shuffle_ratio=1.0, seed=2)[GroupKey(0, 0)]
    assert group.passages[0] != text
    assert sorted("".join(group.passages[0].split())) == sorted("".join(text.split()))
    assert group.positives == {group.keys[0]} == {text_key(text)}
