"""Reading data files, and drawing groups from them."""

import json
import pickle

import pytest
from torch.utils.data import DataLoader

from reranker_ft.data.examples import Example, ExampleFiles, data_files, parse_example, text_key
from reranker_ft.data.instructions import Instructions
from reranker_ft.errors import ArgumentError, DataError
from reranker_ft.score.records import parse_record
from reranker_ft.train.groups import GroupBatchSampler, GroupDataset, GroupKey
from tests.reranker_ft.conftest import toy_rows


def line(**fields):
    return json.dumps(fields).encode()


def test_a_line_becomes_an_example():
    example = parse_example(
        line(query="q", pos=["p"], neg=["n", "m"], pos_scores=[2], neg_scores=[1, 0.5], prompt="i")
    )
    assert example == Example("q", ("p",), ("n", "m"), (2.0,), (1.0, 0.5), "i")
    assert parse_example(line(query="q", pos=["p"])).neg == ()
    assert parse_example(line(query="q", pos=["\N{PANDA FACE}"])).pos == ("\N{PANDA FACE}",)


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (b'{"query": "q", "pos": ["p"]', "broken JSON"),
        (b'{"query": "\xff", "pos": ["p"]}', "byte 11 of the line is not UTF-8"),
        (b'\xef\xbb\xbf{"query": "q", "pos": ["p"]}', "begins with a byte order mark"),
        (b"[1, 2]", "the line is a list"),
        (line(pos=["p"], neg=["n"]), "`query` is missing"),
        (line(query=3, pos=["p"], neg=["n"]), "`query` is a number"),
        (line(query="  ", pos=["p"], neg=["n"]), "`query` has no text"),
        (line(query="q", neg=["n"]), "`pos` is missing"),
        (line(query="q", pos=[], neg=["n"]), "`pos` is an empty list"),
        (line(query="q", pos="p", neg=["n"]), "`pos` is a string"),
        (line(query="q", pos=["p", None], neg=["n"]), "`pos[1]` is null"),
        (line(query="q", pos=["p", " "], neg=["n"]), "`pos[1]` has no text"),
        (line(query="q", pos=["p"], neg={"a": 1}), "`neg` is an object"),
        (line(query="q", pos=["p"], neg=["n", 7]), "`neg[1]` is a number"),
        (
            line(query="q", pos=["p"], neg=["n"], pos_scores=[1, 2]),
            "`pos_scores` is 2 scores for 1",
        ),
        (line(query="q", pos=["p"], neg=["n"], neg_scores=["1"]), "`neg_scores[0]` is '1'"),
        (b'{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [NaN]}', "is nan"),
        (line(query="q", pos=["p"], neg=["n"], prompt=1), "`prompt` is a number"),
        (
            line(query="q", pos=["p"], neg=["n"], pos_scores=[10**400]),
            "is 100000000000000000...0000000000000000000 - scores",
        ),
        *(
            (b'{"query": "q", "pos": ["p"], "neg": ["n"], %s}' % field, "is half of a character")
            for field in (
                rb'"pos": ["a \ud83d b"]',
                rb'"prompt": "\uD800"',
                rb'"passage_prompt": "\udc00"',
                rb'"source": {"id": ["\ud800"]}',
                rb'"\ud800": 1',
            )
        ),
    ],
)
def test_a_broken_line_is_named(tmp_path, broken, found):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(query="q", pos=["p"], neg=["n"]) + b"\n\n" + broken + b"\n")
    with pytest.raises(DataError) as caught:
        ExampleFiles([path])
    assert str(caught.value).startswith(f"{path}:3: ")
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_characters_of_lines_to_score_are_refused():
    for fields in (rb'"passage": "\ud800"', rb'"passage": "p", "id": "\ud800"'):
        with pytest.raises(ValueError, match="half of a character"):
            parse_record(b'{"query": "q", %s}' % fields)


def test_all_problems_are_counted_and_ten_are_shown(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(b"{}\n" * 8)
    second.write_bytes(b"{}\n" * 7)
    with pytest.raises(DataError) as caught:
        ExampleFiles([tmp_path])
    shown = str(caught.value).splitlines()
    assert shown[0] == "15 problems in the data, the first 10 of them:"
    assert [text.split(": ")[0].strip() for text in shown[1:]] == [
        *(f"{first}:{n}" for n in range(1, 9)),
        f"{second}:1",
        f"{second}:2",
    ]


def test_negatives_and_scores_are_required_where_they_are_needed(write_jsonl):
    path = write_jsonl([{"query": "q", "pos": ["p"]}])
    assert len(ExampleFiles([path])) == 1
    with pytest.raises(DataError, match="`neg` is missing or empty"):
        ExampleFiles([path], negatives_required=True)
    with pytest.raises(DataError, match="`pos_scores` is missing"):
        ExampleFiles([path], scores_required=True)


def test_missing_paths_and_empty_data_are_refused(tmp_path, write_jsonl):
    with pytest.raises(ArgumentError, match="does not exist"):
        data_files([tmp_path / "absent.jsonl"])
    with pytest.raises(ArgumentError, match=r"holds no \.jsonl or \.json file"):
        data_files([tmp_path])
    with pytest.raises(DataError, match="no line with an example"):
        ExampleFiles([write_jsonl([])])


def test_examples_are_read_by_position(tmp_path):
    rows = toy_rows(9)
    folder = tmp_path / "folder"
    folder.mkdir()
    text = [json.dumps({**row, "query": f"é{i} {row['query']}"}) for i, row in enumerate(rows)]
    (folder / "a.jsonl").write_text("\n".join(text[:4]) + "\n", encoding="utf-8")
    (folder / "b.json").write_text("\n\r\n" + "\r\n".join(text[4:7]), encoding="utf-8")
    (folder / "notes.txt").write_text("not data")
    last = tmp_path / "c.jsonl"
    last.write_text("\n".join(text[7:]), encoding="utf-8")
    files = ExampleFiles([folder, last])
    expected = [parse_example(t.encode()) for t in text]
    assert list(files) == expected
    assert [files[i] for i in (8, 0, 5, -1)] == [expected[i] for i in (8, 0, 5, 8)]
    assert files[2:4] == expected[2:4]
    assert pickle.loads(pickle.dumps(files))[6] == expected[6]
    with pytest.raises(IndexError):
        files[9]


def test_a_sample_of_each_file_is_seeded(write_jsonl):
    paths = [write_jsonl(toy_rows(20), name) for name in ("a.jsonl", "b.jsonl")]
    sample = list(ExampleFiles(paths, max_per_file=5, seed=3))
    assert len(sample) == 10
    assert sample[:5] != sample[5:]
    assert sample == list(ExampleFiles(paths, max_per_file=5, seed=3))
    assert sample != list(ExampleFiles(paths, max_per_file=5, seed=4))


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
        line(
            query="q",
            pos=["p0", "p1"],
            neg=["n0", "n1", "n2"],
            pos_scores=[10, 11],
            neg_scores=[0, 1, 2],
        )
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


def test_instructions_go_around_texts_and_a_line_has_its_own():
    instructions = Instructions("find:", "{} {}\\n", "read:", "<{}>{}")
    assert instructions.of_query("q") == "find: q\n"
    assert instructions.of_query("q", "seek:") == "seek: q\n"
    assert instructions.of_passage("p") == "<read:>p"
    assert Instructions().of_query("q") == "q"
    for template in ("{}", "{} {} {}", "no place", "{a}{b}"):
        with pytest.raises(ArgumentError, match="has two places"):
            Instructions(query_format=template)


def test_a_shuffled_positive_is_still_its_query_s_own():
    text = " ".join(f"w{i}" for i in range(60))
    example = Example("q", (text,), ("n",))
    group = GroupDataset([example], group_size=2, shuffle_ratio=1.0, seed=2)[GroupKey(0, 0)]
    assert group.passages[0] != text
    assert sorted("".join(group.passages[0].split())) == sorted("".join(text.split()))
    assert group.positives == {group.keys[0]} == {text_key(text)}
