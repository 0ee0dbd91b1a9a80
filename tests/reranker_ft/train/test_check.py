"""The report on training data."""

import json

import pytest

from reranker_ft.cli.describe import describe_check
from reranker_ft.errors import ArgumentError
from reranker_ft.model.pairs import PairEncoder
from reranker_ft.train.check import check_data, model_positions
from tests.reranker_ft.conftest import MAX_POSITIONS, make_tokenizer, toy_rows


def test_counts(write_jsonl, tmp_path):
    rows = toy_rows(4, negatives=7)
    rows += [
        rows[0],  # a duplicate line, hence a duplicate query
        {**rows[1], "pos": ["another positive"]},  # a duplicate query only
        {"query": "q1", "pos": ["p", "p"], "neg": ["n", "p", "n"], "pos_scores": [1, 1]},
        {"query": "q2", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": [0]},
        {"query": "q3", "pos": ["p"]},
    ]
    path = write_jsonl(rows)
    with path.open("a") as file:
        file.write('\n{"query": "no pos"}\nnot json\n')
    report = check_data([path], train_group_size=8)
    assert report.files == 1
    assert report.lines == 11
    assert report.examples == 9
    assert report.problems == 2
    assert [text.split(": ")[0] for text in report.shown_problems] == [f"{path}:11", f"{path}:12"]
    assert report.positives == 10
    assert report.negatives == 6 * 7 + 3 + 1
    assert report.duplicate_queries == 2
    assert report.duplicate_lines == 1
    assert report.repeated_passages == 2
    assert report.positives_among_negatives == 1
    assert report.too_few_negatives == 3
    assert report.without_negatives == 1
    assert report.with_scores == 1
    assert report.tokens is None
    assert not report.trainable
    assert json.loads(json.dumps(report.to_dict()))["trainable"] is False


def test_good_data_are_trainable(write_jsonl):
    assert check_data([write_jsonl(toy_rows(3, negatives=7))]).trainable


def test_token_lengths_and_what_is_cut(write_jsonl):
    tokenizer = make_tokenizer("bert")
    rows = [
        {"query": "red", "pos": ["blue " * 3], "neg": ["blue " * 20]},
        {"query": "red " * 10, "pos": ["blue"], "neg": ["blue " * 9]},
    ]
    report = check_data([write_jsonl(rows)], tokenizer=tokenizer, max_length=16)
    tokens = report.tokens
    assert (tokens.query_tokens.p50, tokens.query_tokens.p100) == (10, 10)
    assert (tokens.passage_tokens.p50, tokens.passage_tokens.p100) == (9, 20)
    assert tokens.pair_tokens.p100 == 24
    assert tokens.pairs == 4
    # 24 tokens are cut to 16, and 10 + 9 + 3 to 16.
    assert tokens.cut_pairs == 2
    assert tokens.lost_tokens == (8 + 6) / (7 + 24 + 14 + 22)
    pairs = [(row["query"], text) for row in rows for text in row["pos"] + row["neg"]]
    kept = PairEncoder(tokenizer, max_length=16)(pairs).lengths.sum()
    assert 67 - kept == 14


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pairs_are_cut_at_the_positions_of_the_model(write_jsonl, model_folders, kind, tmp_path):
    positions = model_positions(str(model_folders(kind)))
    assert positions == MAX_POSITIONS
    data = write_jsonl([{"query": "red", "pos": ["blue"], "neg": ["blue " * 100]}])
    tokenizer = make_tokenizer(kind)
    report = check_data([data], tokenizer=tokenizer, positions=positions, max_length=512)
    assert (report.tokens.max_length, report.tokens.cut_pairs) == (MAX_POSITIONS, 1)
    text = describe_check(report)
    assert f"max_length {MAX_POSITIONS} (the model's positions) cuts 1 of 2 pairs" in text
    assert model_positions(str(tmp_path)) is None  # a tokenizer alone


@pytest.mark.parametrize("name", ["max_length", "query_max_length", "passage_max_length"])
def test_lengths_of_nothing_are_refused_without_a_tokenizer_too(write_jsonl, name):
    with pytest.raises(ArgumentError, match=f"{name} is -3"):
        check_data([write_jsonl(toy_rows(1))], **{name: -3})


def test_a_group_of_the_positive_alone_needs_no_negatives(write_jsonl):
    data = write_jsonl([{"query": "red", "pos": ["blue"]}])
    report = check_data([data], train_group_size=1)
    assert report.trainable
    assert "no issues found" in describe_check(report)
    refused = check_data([data], train_group_size=2)
    assert not refused.trainable
    assert "--train_group_size 1 and --in_batch_negatives" in describe_check(refused)
