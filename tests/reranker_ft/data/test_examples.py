"""Data files become examples, or are refused by line."""

import json
import pickle

import pytest

from reranker_ft.data.examples import Example, ExampleFiles, data_files, parse_example
from reranker_ft.errors import ArgumentError, DataError
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
