"""Results as text for the terminal."""

from reranker_ft.cli.describe import describe_check, describe_comparison, describe_mining
from reranker_ft.mine.mine import MiningReport
from reranker_ft.train.check import check_data


def test_the_table_shows_means_intervals_and_differences(results):
    table = describe_comparison(results)
    lines = table.splitlines()
    assert lines[0].endswith("a.jsonl, 12 queries, 95 % intervals")
    mean = results[0].means["mrr@10"]
    assert "MRR@10" in table and "R@1" in table
    assert f"{mean.mean:.3f}" in lines[3] and lines[3].startswith(results[0].model)
    assert f"[{mean.low:.3f}, {mean.high:.3f}]" in lines[4]
    gain = results[1].differences["mrr@10"]
    assert f"{gain.mean:+.3f}" in lines[7]
    assert f"[{gain.low:+.3f}, {gain.high:+.3f}]" in lines[8]
    assert table.count("95 % intervals") == 2
    assert all(line == line.rstrip() for line in lines)


def check(write_jsonl, *rows, **options):
    return describe_check(check_data([write_jsonl(list(rows))], **options))


def test_issues_of_training_data_name_their_lines(write_jsonl):
    row = {"query": "q", "pos": ["p"], "neg": ["n", "", " "]}
    text = check(write_jsonl, row, {**row, "query": "r"}, row, train_group_size=3)
    assert "1 line repeats an earlier line (" in text
    assert "data.jsonl:3)" in text
    assert "6 negatives have no text (" in text
    several = check(write_jsonl, *[row] * 9, train_group_size=9)
    assert "8 lines repeat an earlier line (" in several
    assert "data.jsonl:4, ...)" in several
    assert "9 lines have fewer than 8 negatives: training repeats those they have (" in several


def test_good_data_have_no_issues_and_empty_data_do(write_jsonl):
    row = {"query": "q", "pos": ["p"], "neg": ["n"]}
    assert check(write_jsonl, row, train_group_size=2).endswith("\n\nno issues found")
    empty = check(write_jsonl)
    assert "no examples" in empty
    assert "no issues found" not in empty


def test_mining_is_described_in_the_right_number():
    report = MiningReport(queries=1200, pool=3, mined=5, filled=1, guarded=2, short=1)
    text = describe_mining(report, "out.jsonl")
    assert "1,200 queries, 3 distinct passages in the pool: out.jsonl" in text
    assert "1 query has fewer negatives than asked for" in text
