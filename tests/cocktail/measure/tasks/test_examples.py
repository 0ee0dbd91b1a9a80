"""Reading examples: columns, line numbers, negatives, order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cocktail.measure.tasks.examples import ExampleError, content_order, read_ranked, read_written

GOOD = {"query": "q", "pos": ["p"], "neg": ["a", "b", "c"]}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"pos": ["p"], "neg": ["n"]}, "lacks 'query'"),
        ({"query": "q", "neg": ["n"]}, "lacks 'pos'"),
        ({"query": "q", "pos": []}, "'pos' is an empty list"),
        ({"query": "q", "pos": "p", "neg": ["n"]}, "'pos' is not a list of strings"),
        ({"query": " ", "pos": ["p"]}, "'query' is empty"),
        ({"query": 3, "pos": ["p"]}, "'query' is a int"),
        ({**GOOD, "neg": ["a", "p"]}, "has 1 negative unlike its positives, but 2 were"),
        ({**GOOD, "prompt": "find"}, "has prompt"),
        ({**GOOD, "neg": None}, "'neg' is null"),
        ({**GOOD, "pos": None}, "'pos' is null"),
        ({**GOOD, "pos": [""]}, "'pos' has an empty passage"),
        ({**GOOD, "neg": ["a", " ", "b"]}, "'neg' has an empty passage"),
        ({**GOOD, "query": "q \ud800 a"}, r"'query' has the lone surrogate \ud800"),
        ({**GOOD, "neg": ["a", "b", "\udfff"]}, r"'neg' has the lone surrogate \udfff"),
        (["q"], "is a list"),
    ],
)
def test_a_bad_line_is_named_in_one_line(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in (GOOD, row)) + "\n")
    with pytest.raises(ExampleError) as error:
        read_ranked(path, negatives=2)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_json_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"query": \n')
    with pytest.raises(ExampleError, match=r"data.jsonl:1: is not JSON"):
        read_ranked(path)
    with pytest.raises(ExampleError, match="cannot be read"):
        read_ranked(tmp_path / "none.jsonl")
    path.write_bytes(b"\xff\n")
    with pytest.raises(ExampleError, match="not UTF-8"):
        read_ranked(path)


@pytest.mark.parametrize("data", [[], "empty"])
def test_no_examples(tmp_path: Path, data: object) -> None:
    if data == "empty":
        data = tmp_path / "data.jsonl"
        data.write_text("\n")
    with pytest.raises(ExampleError, match="at least one"):
        read_ranked(data)  # type: ignore[arg-type]


def test_written_examples_need_both_columns() -> None:
    with pytest.raises(ExampleError, match="example 2: lacks 'output'"):
        read_written([{"input": "a", "output": "b"}, {"input": "a"}])
    with pytest.raises(ExampleError, match="and 2 more"):
        read_written([{"x": 1}] * 3)


def test_halves_of_characters_are_no_texts_to_write() -> None:
    with pytest.raises(ExampleError, match="example 1: 'output' has the lone surrogate"):
        read_written([{"input": "a", "output": "\ud83d"}])
    assert read_written([{"input": "a", "output": "\U0001f600"}])


@pytest.mark.parametrize("data", [None, 3])
def test_what_holds_no_examples_is_named(data: object) -> None:
    with pytest.raises(ExampleError, match="they must be a JSONL file or a list"):
        read_ranked(data)  # type: ignore[arg-type]
    with pytest.raises(ExampleError, match="no file of examples is named"):
        read_ranked("")


def test_lines_that_json_does_not_end(tmp_path: Path) -> None:
    """U+2028 is a line end to str.splitlines and none to JSONL."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({**GOOD, "query": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert read_ranked(path)[0].query == "a\u2028b"


def test_negatives_are_drawn_by_seed_and_content_alone() -> None:
    row = {"query": "q", "pos": ["p"], "neg": [f"n{i}" for i in range(20)]}
    other = {**row, "query": "another"}
    drawn = read_ranked([row, other], negatives=5, seed=1)
    assert drawn[0].negatives == read_ranked([other, row], negatives=5, seed=1)[1].negatives
    assert drawn[0].negatives != read_ranked([row], negatives=5, seed=2)[0].negatives
    assert drawn[0].negatives != drawn[1].negatives
    shuffled = {**row, "neg": row["neg"][::-1]}
    assert set(read_ranked([shuffled], negatives=5, seed=1)[0].negatives) == set(drawn[0].negatives)


def test_the_order_of_examples_comes_from_their_content() -> None:
    rows = [{"input": str(i), "output": "x"} for i in range(9)]
    forwards, backwards = read_written(rows), read_written(rows[::-1])
    first = [forwards[i].input for i in content_order(forwards, 0)]
    assert first == [backwards[i].input for i in content_order(backwards, 0)]
    assert first != [forwards[i].input for i in content_order(forwards, 1)]
