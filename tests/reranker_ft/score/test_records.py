"""Scored lines: every kind of line, streamed, order and fields kept."""

import json

import pytest

from reranker_ft.errors import ArgumentError, DataError
from reranker_ft.score.records import count_pairs, parse_record, score_file
from reranker_ft.score.reranker import Reranker


@pytest.fixture(scope="module")
def reranker(model_folders):
    return Reranker(model_folders(), devices="cpu")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_groups_and_tsv_give_equal_scores(tmp_path, write_jsonl, reranker):
    pairs = [("what is red", "the red apple"), ("what is blue", "a river")]
    expected = reranker.compute_score(pairs)
    as_lines = write_jsonl([{"query": q, "passage": p, "n": 1} for q, p in pairs], "pairs.jsonl")
    (tmp_path / "pairs.tsv").write_text("".join(f"{q}\t{p}\n\n" for q, p in pairs))
    score_file(reranker, as_lines, tmp_path / "a.jsonl")
    counted = score_file(reranker, tmp_path / "pairs.tsv", tmp_path / "b.jsonl", tsv=True)
    assert counted == {"lines": 2, "pairs": 2}
    for name in ("a.jsonl", "b.jsonl"):
        rows = read(tmp_path / name)
        assert [(row["query"], row["passage"]) for row in rows] == pairs
        assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-6)
    assert read(tmp_path / "a.jsonl")[0]["n"] == 1


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"query": "a"}', "neither `passage` nor `pos`"),
        (b'{"query": "a", "passage": 3}', "`passage` is missing or not a string"),
        (b'{"passage": "a"}', "`query` is missing or not a string"),
        (b'{"query": "a", "pos": "b"}', "`pos` is a string"),
        (b'["a", "b"]', "holds a list|is a list|a list"),
        (b'{"query": ', "broken JSON"),
        (b'{"query": "a", "passage": "b", "prompt": 3}', "`prompt` is a number"),
        (b'{"query": "a", "passage": "b", "n": [NaN]}', "JSON has none of these"),
        (b'{"query": "a", "passage": "b", "n": 1e999}', "JSON has none of these"),
        (b'{"query": "a", "pos": ["b"], "n": -Infinity}', "JSON has none of these"),
        (b'{"query": "a", "pos": ["b"], "n": 1%s.0}' % (b"0" * 400), "JSON has none of these"),
        (b'{"query": "\xff"}', "not UTF-8"),
    ],
)
def test_lines_that_are_neither_are_refused(line, found):
    with pytest.raises(ValueError, match=found):
        parse_record(line)


def test_tsv_lines_have_two_columns():
    for line, found in [
        (b"alone", "1 column"),
        (b"a\tb\tc", "3 column"),
        (b"\xff\tb", "UTF-8"),
        (b"\xef\xbb\xbfa\tb", "byte order mark"),
    ]:
        with pytest.raises(ValueError, match=found):
            parse_record(line, tsv=True)


def test_all_broken_lines_are_reported_before_anything_is_scored(tmp_path, write_jsonl):
    data = write_jsonl([{"query": "a", "passage": "b"}] + [{"query": "a"}] * 12)
    with pytest.raises(DataError, match=r"12 problems(.|\n)*data.jsonl:2: neither") as refused:
        score_file(None, data, tmp_path / "out.jsonl")
    assert str(refused.value).count("data.jsonl:") == 10
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ArgumentError, match="does not exist"):
        count_pairs(tmp_path / "absent.jsonl")


def line(**fields):
    return json.dumps(fields).encode()


def test_half_characters_of_lines_to_score_are_refused():
    for fields in (rb'"passage": "\ud800"', rb'"passage": "p", "id": "\ud800"'):
        with pytest.raises(ValueError, match="half of a character"):
            parse_record(b'{"query": "q", %s}' % fields)
